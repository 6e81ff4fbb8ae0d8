//! One column of a table, and its conversion from and to Arrow.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeListArray,
    Float32Array, Float64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    UInt32Array,
};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, UInt32Type};

use crate::error::{Context, Error, Result};

/// The values of one column, none of which is ever null.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are their types")]
pub enum Column {
    U32(Vec<u32>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Text(Vec<String>),
    TextList(Vec<Vec<String>>),
    Bytes(Vec<Vec<u8>>),
    /// Vectors of one width, row by row.
    Vectors {
        width: usize,
        data: Vec<f32>,
    },
}

impl Column {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::U32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::Text(v) => v.len(),
            Self::TextList(v) => v.len(),
            Self::Bytes(v) => v.len(),
            Self::Vectors { width, data } => data.len() / (*width).max(1),
        }
    }

    /// The type's name, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::U32(_) => "u32",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::Text(_) => "text",
            Self::TextList(_) => "list of text",
            Self::Bytes(_) => "binary",
            Self::Vectors { .. } => "vector",
        }
    }

    pub(super) fn slice(&self, start: usize, len: usize) -> Self {
        let range = start..start + len;
        match self {
            Self::U32(v) => Self::U32(v[range].to_vec()),
            Self::F32(v) => Self::F32(v[range].to_vec()),
            Self::F64(v) => Self::F64(v[range].to_vec()),
            Self::Bool(v) => Self::Bool(v[range].to_vec()),
            Self::Text(v) => Self::Text(v[range].to_vec()),
            Self::TextList(v) => Self::TextList(v[range].to_vec()),
            Self::Bytes(v) => Self::Bytes(v[range].to_vec()),
            Self::Vectors { width, data } => {
                let data = data[start * width..(start + len) * width].to_vec();
                Self::Vectors { width: *width, data }
            }
        }
    }

    pub(super) fn append(&mut self, more: Self) -> Result<()> {
        match (self, more) {
            (Self::U32(all), Self::U32(more)) => all.extend(more),
            (Self::F32(all), Self::F32(more)) => all.extend(more),
            (Self::F64(all), Self::F64(more)) => all.extend(more),
            (Self::Bool(all), Self::Bool(more)) => all.extend(more),
            (Self::Text(all), Self::Text(more)) => all.extend(more),
            (Self::TextList(all), Self::TextList(more)) => all.extend(more),
            (Self::Bytes(all), Self::Bytes(more)) => all.extend(more),
            (Self::Vectors { width, data }, Self::Vectors { width: w, data: more })
                if *width == w =>
            {
                data.extend(more);
            }

            (all, more) => {
                let (found, expected) = (more.kind(), all.kind());
                return Err(Error::failed(format!(
                    "a column of type {expected} goes on with {found}, expected one type (and \
                     for vectors one width)"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn data_type(&self) -> Result<DataType> {
        Ok(match self {
            Self::U32(_) => DataType::UInt32,
            Self::F32(_) => DataType::Float32,
            Self::F64(_) => DataType::Float64,
            Self::Bool(_) => DataType::Boolean,
            Self::Text(_) => DataType::Utf8,
            Self::TextList(_) => DataType::List(element(DataType::Utf8)),
            Self::Bytes(_) => DataType::Binary,
            Self::Vectors { width, .. } => {
                let width = i32::try_from(*width)
                    .context(|| format!("vectors of width {width} in a table"))?;
                DataType::FixedSizeList(element(DataType::Float32), width)
            }
        })
    }

    pub(super) fn to_arrow(&self) -> Result<ArrayRef> {
        Ok(match self {
            Self::U32(v) => Arc::new(UInt32Array::from(v.clone())),
            Self::F32(v) => Arc::new(Float32Array::from(v.clone())),
            Self::F64(v) => Arc::new(Float64Array::from(v.clone())),
            Self::Bool(v) => Arc::new(BooleanArray::from(v.clone())),
            Self::Text(v) => Arc::new(StringArray::from_iter_values(v)),
            Self::TextList(v) => {
                // The builder's own child is nullable and has another name.
                let builder = ListBuilder::new(StringBuilder::new());
                let mut builder = builder.with_field(element(DataType::Utf8));
                for list in v {
                    for text in list {
                        builder.values().append_value(text);
                    }
                    builder.append(true);
                }
                Arc::new(builder.finish())
            }
            Self::Bytes(v) => Arc::new(BinaryArray::from_iter_values(v)),
            Self::Vectors { data, .. } => {
                let DataType::FixedSizeList(field, width) = self.data_type()? else {
                    return Err(Error::failed("vectors are fixed-size lists"));
                };
                let values = Arc::new(Float32Array::from(data.clone()));
                let array = FixedSizeListArray::try_new(field, width, values, None);
                Arc::new(array.context(|| "a column of vectors".to_owned())?)
            }
        })
    }

    pub(super) fn from_arrow(array: &dyn Array) -> Result<Self> {
        if array.null_count() > 0 {
            return Err(Error::corrupt("the column holds nulls, expected none"));
        }

        Ok(match array.data_type() {
            DataType::UInt32 => {
                Self::U32(array.as_primitive::<UInt32Type>().values().to_vec())
            }
            DataType::Float32 => {
                Self::F32(array.as_primitive::<Float32Type>().values().to_vec())
            }
            DataType::Float64 => {
                Self::F64(array.as_primitive::<Float64Type>().values().to_vec())
            }
            DataType::Boolean => Self::Bool(array.as_boolean().values().iter().collect()),
            DataType::Utf8 => Self::Text(texts(array)),
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Self::Bytes((0..array.len()).map(|i| array.value(i).to_vec()).collect())
            }
            DataType::List(field) if field.data_type() == &DataType::Utf8 => {
                let array = array.as_list::<i32>();
                Self::TextList((0..array.len()).map(|i| texts(&array.value(i))).collect())
            }
            DataType::FixedSizeList(field, width)
                if field.data_type() == &DataType::Float32 =>
            {
                let values = array.as_fixed_size_list().values();
                let data = values.as_primitive::<Float32Type>().values().to_vec();
                let width =
                    usize::try_from(*width).context(|| "a list width".to_owned())?;
                Self::Vectors { width, data }
            }
            other => {
                return Err(Error::corrupt(format!(
                    "the column has type {other}, expected one that upcycle writes"
                )));
            }
        })
    }
}

/// The columns of a batch with their names.
pub(super) fn from_batch(batch: &RecordBatch) -> Result<Vec<(String, Column)>> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    columns
        .map(|(field, array)| {
            let column = Column::from_arrow(array)
                .context(|| format!("column {}", field.name()))?;
            Ok((field.name().clone(), column))
        })
        .collect()
}

/// The child of a list. Its name and that it is never null are part of the schema, and so of
/// the bytes.
fn element(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", kind, false))
}

fn texts(array: &dyn Array) -> Vec<String> {
    let array = array.as_string::<i32>();
    (0..array.len()).map(|i| array.value(i).to_owned()).collect()
}
