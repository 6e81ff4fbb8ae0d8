//! Named f32 tensors in a safetensors file, with bytes that depend on the content alone.
//!
//! The file carries no free metadata: two or more metadata keys make the format's bytes
//! depend on a hash map's order. Reading refuses what the format's own parser lets through:
//! duplicate names, other element types, sizes that disagree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};

use super::hostile::check_names;
use crate::error::{Context, Error, Result};

/// A row-major f32 tensor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tensor {
    /// Extent of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub data: Vec<f32>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    /// A tensor of this shape, refusing another number of values.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let expected = shape.iter().try_fold(1_usize, |n, &axis| n.checked_mul(axis));
        if expected == Some(data.len()) {
            Ok(Self { shape, data })
        } else {
            let found = data.len();
            Err(Error::failed(format!("a tensor of shape {shape:?} from {found} values")))
        }
    }
}

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

/// Writes the tensors; needs memory for the bytes of one tensor at a time.
pub fn write(path: &Path, tensors: &Tensors) -> Result<()> {
    let views = tensors.iter().map(|(name, tensor)| (name, Stored(tensor)));
    safetensors::serialize_to_file(views, None, path)
        .context(|| format!("writing {}", path.display()))
}

/// Reads every tensor of a file that holds f32 only.
pub fn read(path: &Path) -> Result<Tensors> {
    let place = path.display();
    let bytes = std::fs::read(path).context(|| format!("reading {place}"))?;
    check_names(&bytes).context(|| format!("reading {place}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| {
        Error::corrupt(format!("{place} is not a safetensors file")).caused_by(e)
    })?;
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            let found = view.dtype();
            return Err(Error::corrupt(format!(
                "{place}: tensor {name} has type {found:?}, expected F32"
            )));
        }
        let (values, _) = view.data().as_chunks::<4>();
        let data = values.iter().map(|v| f32::from_le_bytes(*v)).collect();
        let tensor = Tensor::new(view.shape().to_vec(), data).map_err(|e| {
            Error::corrupt(format!("{place}: tensor {name}")).caused_by(e)
        })?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Tensors {
        let mut tensors = Tensors::new();
        let matrix = Tensor::new(vec![2, 3], (0..6_u8).map(f32::from).collect()).unwrap();
        tensors.insert("b".into(), matrix);
        tensors.insert("a".into(), Tensor::new(vec![], vec![-0.5]).unwrap());
        tensors.insert("empty".into(), Tensor::new(vec![0, 4], vec![]).unwrap());
        tensors
    }

    #[test]
    fn tensors_survive_a_round_trip_with_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        write(&one, &some()).unwrap();
        write(&two, &read(&one).unwrap()).unwrap();
        assert_eq!(read(&one).unwrap(), some());
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut");
        write(&path, &some()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(read(&path).is_err(), "{length} of {} bytes", bytes.len());
        }
    }
}
