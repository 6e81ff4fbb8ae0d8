//! Weights in one safetensors file, or in several of a limited size with Hugging Face's index.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value, json};

use crate::error::{Context, Result};
use crate::io::tensors::{Tensor, Tensors};

/// Bytes of an f32.
const WIDTH: u64 = 4;

/// Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` and
/// `model.safetensors.index.json` where the tensors need more than `limit` bytes.
///
/// Tensors go into shards in the order of their names; one larger than the limit has a shard
/// of its own. Memory: the bytes of one tensor.
pub(super) fn write(folder: &Path, tensors: &Tensors, limit: Option<u64>) -> Result<()> {
    let shards = divide(tensors, limit.unwrap_or(u64::MAX));
    if let [_] | [] = shards.as_slice() {
        let all: Vec<_> = tensors.iter().collect();
        return write_one(&folder.join("model.safetensors"), &all);
    }

    // The index says which file holds a tensor, so that a loader opens no file in vain.
    let mut map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let (number, count) = (index + 1, shards.len());
        let file = format!("model-{number:05}-of-{count:05}.safetensors");
        write_one(&folder.join(&file), shard)?;
        map.extend(shard.iter().map(|(name, _)| ((*name).clone(), json!(file))));
    }

    let total: u64 = tensors.values().map(bytes).sum();
    let index =
        json!({ "metadata": { "total_size": total }, "weight_map": Value::Object(map) });
    write_json(&folder.join("model.safetensors.index.json"), &index)
}

/// Writes indented JSON.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n"))
        .context(|| format!("writing {}", path.display()))
}

/// The tensors of one file.
type Shard<'a> = Vec<(&'a String, &'a Tensor)>;

/// Divides tensors into shards of at most `limit` bytes, in the order of their names.
fn divide(tensors: &Tensors, limit: u64) -> Vec<Shard<'_>> {
    let mut shards: Vec<Shard<'_>> = Vec::new();
    // Bytes that the last shard can still take.
    let mut room = 0;

    for (name, tensor) in tensors {
        let size = bytes(tensor);
        if let Some(shard) = shards.last_mut().filter(|_| size <= room) {
            shard.push((name, tensor));
        } else {
            shards.push(vec![(name, tensor)]);
            room = limit;
        }
        room = room.saturating_sub(size);
    }
    shards
}

/// Bytes of a tensor's values in a file.
fn bytes(tensor: &Tensor) -> u64 {
    WIDTH * tensor.data.len() as u64
}

/// Writes one file of tensors. Its metadata name PyTorch as the format, because Hugging Face's
/// loader refuses a file whose metadata do not name one.
fn write_one(path: &Path, tensors: &[(&String, &Tensor)]) -> Result<()> {
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into_iter().collect());
    let views = tensors.iter().map(|(name, tensor)| (name, Stored(tensor)));
    safetensors::serialize_to_file(views, metadata, path)
        .context(|| format!("writing {}", path.display()))
}

/// A tensor as the safetensors crate wants to see it.
struct Stored<'a>(&'a Tensor);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.0.data.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        self.0.data.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_hold_every_tensor_once_and_keep_to_the_limit() {
        let tensor = |n: usize| Tensor { shape: vec![n], data: vec![1.0; n] };
        let sizes = [3, 1, 9, 2, 2, 4, 1];
        let tensors: Tensors = sizes
            .iter()
            .enumerate()
            .map(|(i, &n)| (format!("t{i}"), tensor(n)))
            .collect();
        for limit in [1, 4, 16, 20, 40, 1000] {
            let shards = divide(&tensors, limit);
            let names: Vec<_> = shards.iter().flatten().map(|(name, _)| *name).collect();
            assert_eq!(names, tensors.keys().collect::<Vec<_>>());
            for shard in &shards {
                let size: u64 = shard.iter().map(|(_, t)| bytes(t)).sum();
                assert!(size <= limit || shard.len() == 1, "{limit}: {size}");
            }
        }
        assert_eq!(divide(&tensors, 1000).len(), 1);
    }
}
