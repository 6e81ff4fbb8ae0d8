//! Labels in a file: a column of Parquet or a tensor of safetensors, of any integer type.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use arrow::array::{Array, AsArray as _};
use arrow::datatypes::{DataType, UInt32Type};
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;
use safetensors::tensor::Dtype;

use super::columnar;
use super::hostile::guarded;
use super::vectors::tensor_info;
use crate::error::{Context as _, Error, Result};

/// Reads labels from the named column or tensor; without a name, from the only column of
/// integers called `cluster` or `label`, or the only tensor of integers.
pub fn read(path: &Path, name: Option<&str>) -> Result<Vec<u32>> {
    let found = match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => guarded(|| column(path, name)),
        Some("safetensors") => tensor(path, name),
        _ => Err(Error::usage("expected a name that ends in .parquet or .safetensors")),
    };
    found.context(|| format!("reading labels of {}", path.display()))
}

fn column(path: &Path, name: Option<&str>) -> Result<Vec<u32>> {
    let place = || format!("cannot open {}", path.display());
    let file = std::fs::File::open(path).context(place)?;
    let damaged = |e: ParquetError| Error::corrupt("damaged").caused_by(e);
    let builder = columnar::open(file)?;

    let fields = builder.schema().fields().clone();
    let meant = |found: &str| match name {
        Some(name) => found == name,
        None => found == "cluster" || found == "label",
    };

    let index = fields.iter().position(|f| meant(f.name())).ok_or_else(|| {
        let names: Vec<&str> = fields.iter().map(|f| f.name().as_str()).collect();
        let (wanted, names) = (name.unwrap_or("cluster or label"), names.join(", "));
        Error::usage(format!("there is no column {wanted}; there are: {names}"))
    })?;

    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let mut labels = Vec::new();
    for batch in builder.with_projection(mask).build().map_err(damaged)? {
        let batch = batch.map_err(|e| Error::corrupt("damaged").caused_by(e))?;
        let (array, field) = (batch.column(0), &fields[index]);
        if !field.data_type().is_integer() || array.null_count() > 0 {
            let (name, found) = (field.name(), field.data_type());
            return Err(Error::corrupt(format!(
                "column {name} holds {found} or nulls, expected whole numbers"
            )));
        }

        // Unsafe casts turn a negative label into an error and not into a null.
        let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
        let cast = arrow::compute::cast_with_options(array, &DataType::UInt32, &options);
        let cast =
            cast.context(|| "a label is not a whole number of 32 bits".to_owned())?;

        labels.extend_from_slice(cast.as_primitive::<UInt32Type>().values());
    }
    Ok(labels)
}

fn tensor(path: &Path, name: Option<&str>) -> Result<Vec<u32>> {
    let whole = [Dtype::U8, Dtype::I32, Dtype::U32, Dtype::I64];

    let (key, info, offset) = tensor_info(path, name, |info| {
        info.shape.len() == 1 && whole.contains(&info.dtype)
    })?;

    if info.shape.len() != 1 || !whole.contains(&info.dtype) {
        let (found, shape) = (info.dtype, info.shape);
        return Err(Error::corrupt(format!(
            "tensor {key} is {found:?} {shape:?}, expected one axis of U8, I32, U32 or I64"
        )));
    }

    let mut bytes = vec![0_u8; info.data_offsets.1 - info.data_offsets.0];
    let file = std::fs::File::open(path).context(|| "cannot open it".to_owned())?;
    file.read_exact_at(&mut bytes, offset).context(|| "it is damaged".to_owned())?;

    let size = info.dtype.bitsize() / 8;
    let value = |bytes: &[u8]| {
        let mut wide = [0_u8; 8];
        wide[..size].copy_from_slice(bytes);

        // A negative I32 becomes a number above 2^31, a negative I64 one above 2^63.
        let value = u64::from_le_bytes(wide);
        let limit = if info.dtype == Dtype::I32 { 1 << 31 } else { 1 << 32 };
        u32::try_from(value).ok().filter(|_| value < limit).ok_or_else(|| {
            Error::corrupt(format!("tensor {key} holds a label that is no 32-bit index"))
        })
    };

    bytes.chunks_exact(size).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::table::{Column, Table};

    #[test]
    fn labels_come_from_columns_and_from_tensors_of_integers() {
        use safetensors::tensor::TensorView;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.parquet");
        Table::new()
            .with("id", Column::U32(vec![9, 9]))
            .with("cluster", Column::U32(vec![3, 1]))
            .with("share", Column::F32(vec![0.5, 0.5]))
            .write(&path)
            .unwrap();
        assert_eq!(read(&path, None).unwrap(), [3, 1]);
        assert_eq!(read(&path, Some("id")).unwrap(), [9, 9]);
        assert!(read(&path, Some("share")).is_err());
        assert!(read(&path, Some("nothing")).is_err());
        let path = folder.path().join("l.safetensors");
        for (bytes, dtype, expected) in [
            ([5_i64, 2].map(i64::to_le_bytes).concat(), Dtype::I64, Some([5, 2])),
            ([5_i32, 2].map(i32::to_le_bytes).concat(), Dtype::I32, Some([5, 2])),
            (vec![5, 2], Dtype::U8, Some([5, 2])),
            ([5_i64, -1].map(i64::to_le_bytes).concat(), Dtype::I64, None),
            ([5_i32, -1].map(i32::to_le_bytes).concat(), Dtype::I32, None),
            ([5.0_f32, 1.0].map(f32::to_le_bytes).concat(), Dtype::F32, None),
        ] {
            let view = TensorView::new(dtype, vec![2], &bytes).unwrap();
            safetensors::serialize_to_file([("l", view)], None, &path).unwrap();
            let found = read(&path, None).ok();
            assert_eq!(found.as_deref(), expected.as_ref().map(<[u32; 2]>::as_slice));
        }
    }
}
