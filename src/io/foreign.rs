//! Tensors of any element type in a foreign safetensors file: floats become f32, integers
//! i64.
//!
//! Our own files hold f32 only and are read by [`super::tensors`], which refuses the rest.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::hostile::check_names;
use crate::error::{Context, Error, Result};

/// Row-major values, of which every element type becomes one of two.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// From F16, BF16, F32 (exactly) or F64 (rounded).
    Floats(Vec<f32>),
    /// From signed and unsigned integers of 8 to 64 bits.
    Integers(Vec<i64>),
}

/// A tensor of a foreign file.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Extent of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Values,
}

/// Reads every tensor of a file; other element types than floats and integers are refused.
pub fn read(path: &Path) -> Result<BTreeMap<String, Array>> {
    let place = path.display();
    let bytes = std::fs::read(path).context(|| format!("reading {place}"))?;
    check_names(&bytes).context(|| format!("reading {place}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| {
        Error::corrupt(format!("{place} is not a safetensors file")).caused_by(e)
    })?;

    let mut arrays = BTreeMap::new();
    for (name, view) in file.tensors() {
        let values = floats(&view).map(Values::Floats);
        let values = values.or_else(|| integers(&view).map(Values::Integers));

        let Some(values) = values else {
            let found = view.dtype();
            return Err(Error::failed(format!(
                "{place}: tensor {name} has type {found:?}, expected floats or integers"
            )));
        };
        let array = Array { shape: view.shape().to_vec(), values };
        arrays.insert(name.clone(), array);
    }
    Ok(arrays)
}

/// The values as f32; `None` if they are not floats.
pub fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let dtype = match view.dtype() {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => return None,
    };

    let count: usize = view.shape().iter().product();
    candle_core::Tensor::from_raw_buffer(view.data(), dtype, &[count], &Device::Cpu)
        .and_then(|tensor| tensor.to_dtype(DType::F32)?.to_vec1())
        .ok()
}

/// The values as i64; `None` if they are no integers or do not fit.
fn integers(view: &TensorView<'_>) -> Option<Vec<i64>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::I8 => bytes.iter().map(|v| i64::from(v.cast_signed())).collect(),
        Dtype::U8 => bytes.iter().map(|v| i64::from(*v)).collect(),
        Dtype::I16 => each(bytes, |v| i64::from(i16::from_le_bytes(v))),
        Dtype::U16 => each(bytes, |v| i64::from(u16::from_le_bytes(v))),
        Dtype::I32 => each(bytes, |v| i64::from(i32::from_le_bytes(v))),
        Dtype::U32 => each(bytes, |v| i64::from(u32::from_le_bytes(v))),
        Dtype::I64 => each(bytes, i64::from_le_bytes),
        Dtype::U64 => {
            let all = each(bytes, u64::from_le_bytes);
            return all.into_iter().map(|v| i64::try_from(v).ok()).collect();
        }
        _ => return None,
    })
}

fn each<const N: usize, T>(bytes: &[u8], make: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| make(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_integer_type_reads_as_the_same_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.safetensors");
        let wide = |size: usize| -> Vec<u8> {
            [7_u8, 0, 120]
                .iter()
                .flat_map(|v| [*v].into_iter().chain(vec![0; size - 1]))
                .collect()
        };
        let types = [
            (Dtype::I8, 1),
            (Dtype::U8, 1),
            (Dtype::I16, 2),
            (Dtype::U16, 2),
            (Dtype::I32, 4),
            (Dtype::U32, 4),
            (Dtype::I64, 8),
            (Dtype::U64, 8),
        ];
        let stored: Vec<_> = types
            .iter()
            .map(|(dtype, size)| (format!("{dtype:?}"), *dtype, wide(*size)))
            .collect();
        let views = stored.iter().map(|(name, dtype, bytes)| {
            (name, TensorView::new(*dtype, vec![3], bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let read = read(&path).unwrap();
        assert_eq!(read.len(), types.len());
        for array in read.values() {
            assert_eq!(array.values, Values::Integers(vec![7, 0, 120]));
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.safetensors");
        let view = TensorView::new(Dtype::BOOL, vec![2], &[0, 1]).unwrap();
        safetensors::serialize_to_file([("mask", view)], None, &path).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("mask") && error.contains("BOOL"), "{error}");
    }
}
