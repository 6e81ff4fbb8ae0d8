//! Tensors from foreign files: safetensors of any float type, shards, and PyTorch pickles.
//!
//! Wrappers' prefixes are taken off the names and buffers that are no weights are left out,
//! both from short lists; everything else is kept for the accounting in [`super::layout`].

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::{PthTensors, TensorInfo};
use safetensors::tensor::SafeTensors;

use super::pickle;
use crate::error::{Context, Error, Result};
use crate::io::foreign;
use crate::io::hostile::check_names;
use crate::io::tensors::{Tensor, Tensors};

/// What `DistributedDataParallel`, `torch.compile` and `CustomTextCLIP` put before names.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "text."];

/// Entries that are no weights: three scalars of `OpenAI`'s archives, and Hugging Face's old
/// buffers 0, 1, 2, ..
const IGNORED: [&str; 5] = [
    "input_resolution",
    "context_length",
    "vocab_size",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
];

/// Reads a file of weights by its extension.
pub(super) fn read(path: &Path) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => read_shards(path, &mut tensors)?,
        Some("safetensors") => read_safetensors(path, &mut tensors)?,
        Some("pt" | "pth" | "bin" | "ckpt") => read_pickle(path, &mut tensors)?,
        _ => {
            let place = path.display();
            return Err(Error::usage(format!(
                "{place} is no checkpoint: expected .safetensors, .pt, .pth, .bin or .ckpt"
            )));
        }
    }
    Ok(tensors)
}

/// The name without wrappers' prefixes; `None` for what is no weight.
fn own_name(name: &str) -> Option<&str> {
    let mut own = name;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| own.strip_prefix(prefix)) {
        own = rest;
    }
    (!IGNORED.contains(&own)).then_some(own)
}

/// Adds a tensor, refusing a second one of that name and values that are not finite.
fn add(tensors: &mut Tensors, place: &Path, name: &str, tensor: Tensor) -> Result<()> {
    let place = place.display();
    if let Some(value) = tensor.data.iter().find(|value| !value.is_finite()) {
        return Err(Error::corrupt(format!(
            "{place}: tensor {name} holds {value} as f32"
        )));
    }
    if tensors.insert(name.to_owned(), tensor).is_some() {
        return Err(Error::corrupt(format!("{place}: tensor {name} is there twice")));
    }
    Ok(())
}

fn read_safetensors(path: &Path, tensors: &mut Tensors) -> Result<()> {
    let place = path.display();
    let bytes = std::fs::read(path).context(|| format!("reading {place}"))?;
    check_names(&bytes).context(|| format!("reading {place}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| {
        Error::corrupt(format!("{place} is not a safetensors file")).caused_by(e)
    })?;
    for (name, view) in file.tensors() {
        let Some(own) = own_name(&name) else { continue };
        let data = foreign::floats(&view).ok_or_else(|| {
            let found = view.dtype();
            Error::failed(format!(
                "{place}: tensor {name} has type {found:?}, expected F16, BF16, F32 or F64"
            ))
        })?;
        add(tensors, path, own, Tensor::new(view.shape().to_vec(), data)?)?;
    }
    Ok(())
}

/// Hugging Face's index of shards: `weight_map` says which file holds which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_shards(path: &Path, tensors: &mut Tensors) -> Result<()> {
    let place = path.display();
    let text = std::fs::read_to_string(path).context(|| format!("reading {place}"))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| {
        Error::corrupt(format!("{place} is not an index of shards")).caused_by(e)
    })?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    for shard in shards {
        // A shard lies beside its index: a name that leads elsewhere is an attack.
        if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
            return Err(Error::corrupt(format!(
                "{place}: {shard} is not a plain file name"
            )));
        }
        read_safetensors(&path.with_file_name(shard), tensors)?;
    }
    let listed: BTreeSet<&str> =
        index.weight_map.keys().filter_map(|name| own_name(name)).collect();
    let found: BTreeSet<&str> = tensors.keys().map(String::as_str).collect();
    let differing: Vec<&str> = listed.symmetric_difference(&found).copied().collect();
    if differing.is_empty() {
        Ok(())
    } else {
        let names = differing.join(", ");
        Err(Error::corrupt(format!("{place} and its shards disagree about {names}")))
    }
}

/// A PyTorch zip archive: a state dict, or a training checkpoint that holds one.
fn read_pickle(path: &Path, tensors: &mut Tensors) -> Result<()> {
    let place = path.display();
    let size = std::fs::metadata(path).context(|| format!("reading {place}"))?.len();
    pickle::check(path)?;
    // candle's reader indexes without looking, so a hostile pickle can make it panic.
    let read =
        catch_unwind(AssertUnwindSafe(|| read_pickle_unguarded(path, size, tensors)));
    read.unwrap_or_else(|_| {
        Err(Error::corrupt(format!("{place} is not a readable PyTorch checkpoint")))
    })
}

fn read_pickle_unguarded(path: &Path, size: u64, tensors: &mut Tensors) -> Result<()> {
    let place = path.display();
    let file = PthTensors::new(path, Some("state_dict"))
        .or_else(|_| PthTensors::new(path, None))
        .map_err(|e| {
            Error::corrupt(format!("{place} is not a PyTorch zip checkpoint"))
                .caused_by(e)
        })?;
    let infos: BTreeMap<&String, &TensorInfo> = file.tensor_infos().iter().collect();
    let mut total = 0_u64;
    if infos.is_empty() {
        return Err(Error::failed(format!(
            "{place} holds no state dict of tensors; a TorchScript archive has to be saved \
             as one first: torch.save(model.state_dict(), path)"
        )));
    }
    for (name, info) in infos {
        let Some(own) = own_name(name) else { continue };
        if !matches!(info.dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            let found = info.dtype;
            return Err(Error::failed(format!(
                "{place}: tensor {name} has type {found:?}, expected a float"
            )));
        }
        let shape = info.layout.dims().to_vec();
        let bytes = shape
            .iter()
            .try_fold(info.dtype.size_in_bytes(), |n, &axis| n.checked_mul(axis))
            .and_then(|n| u64::try_from(n).ok());
        if bytes.is_none_or(|bytes| bytes > size) {
            return Err(Error::corrupt(format!(
                "{place}: tensor {name} of shape {shape:?} is larger than the file"
            )));
        }
        // Tied weights share storage, but not a thousand of them.
        total = total.saturating_add(bytes.unwrap_or(u64::MAX));
        if total > size.saturating_mul(2) {
            return Err(Error::corrupt(format!(
                "{place}: its tensors are more than twice as large as the file"
            )));
        }
        let data = file
            .get(name)
            .and_then(|tensor| match tensor {
                Some(tensor) => tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1(),
                None => candle_core::bail!("not in the file"),
            })
            .map_err(|e| {
                Error::corrupt(format!("{place}: reading tensor {name}")).caused_by(e)
            })?;
        add(tensors, path, own, Tensor::new(shape, data)?)?;
    }
    Ok(())
}
