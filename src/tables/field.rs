//! One column of a row struct: its name, and how values get out of rows and back.

use std::fmt;

use crate::error::{Error, Result};
use crate::io::table::Column;

/// A type that a column can hold.
pub trait Value: Default + 'static {
    /// The values as a column.
    fn pack(values: Vec<Self>) -> Result<Column>;

    /// The values of a column; the column itself where it holds another type.
    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column>;
}

/// Takes a column out of rows, leaving defaults.
type Take<R> = Box<dyn Fn(&mut [R]) -> Result<Column>>;

/// Puts the values of a column into as many rows.
type Put<R> = Box<dyn Fn(Column, &mut [R]) -> Result<()>>;

/// A named column of rows of type `R`.
pub struct Field<R> {
    /// Name in the file.
    pub name: &'static str,
    /// Type, as [`Column::kind`] calls it.
    pub kind: &'static str,
    take: Take<R>,
    put: Put<R>,
}

impl<R: 'static> Field<R> {
    /// The column `name` of the field that `of` points to.
    pub fn new<T: Value>(name: &'static str, of: fn(&mut R) -> &mut T) -> Self {
        Self::with(name, of)
    }

    /// The column `name` of a field of `part`, which several kinds of rows share.
    pub fn of_part<P: 'static, T: Value>(
        name: &'static str,
        part: fn(&mut R) -> &mut P,
        of: fn(&mut P) -> &mut T,
    ) -> Self {
        Self::with(name, move |row| of(part(row)))
    }

    fn with<T: Value>(
        name: &'static str,
        of: impl Fn(&mut R) -> &mut T + Copy + 'static,
    ) -> Self {
        let kind = T::pack(Vec::new()).map_or("nothing", |column| column.kind());

        let take = move |rows: &mut [R]| {
            T::pack(rows.iter_mut().map(|row| std::mem::take(of(row))).collect())
        };

        let put = move |column: Column, rows: &mut [R]| {
            let values = T::unpack(column).map_err(|found| {
                let found = found.kind();
                Error::corrupt(format!("column {name} holds {found}, expected {kind}"))
            })?;
            rows.iter_mut().zip(values).for_each(|(row, value)| *of(row) = value);
            Ok(())
        };

        Self { name, kind, take: Box::new(take), put: Box::new(put) }
    }

    /// Takes this column out of rows, leaving defaults.
    pub(super) fn take(&self, rows: &mut [R]) -> Result<Column> {
        (self.take)(rows)
    }

    /// Puts a column into as many rows.
    pub(super) fn put(&self, column: Column, rows: &mut [R]) -> Result<()> {
        (self.put)(column, rows)
    }
}

impl<R> fmt::Debug for Field<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.kind)
    }
}

impl Value for u32 {
    fn pack(values: Vec<Self>) -> Result<Column> {
        Ok(Column::U32(values))
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        if let Column::U32(values) = column { Ok(values) } else { Err(column) }
    }
}

impl Value for f32 {
    fn pack(values: Vec<Self>) -> Result<Column> {
        Ok(Column::F32(values))
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        if let Column::F32(values) = column { Ok(values) } else { Err(column) }
    }
}

impl Value for f64 {
    fn pack(values: Vec<Self>) -> Result<Column> {
        Ok(Column::F64(values))
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        if let Column::F64(values) = column { Ok(values) } else { Err(column) }
    }
}

impl Value for bool {
    fn pack(values: Vec<Self>) -> Result<Column> {
        Ok(Column::Bool(values))
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        if let Column::Bool(values) = column { Ok(values) } else { Err(column) }
    }
}

impl Value for String {
    fn pack(values: Vec<Self>) -> Result<Column> {
        Ok(Column::Text(values))
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        if let Column::Text(values) = column { Ok(values) } else { Err(column) }
    }
}

impl Value for Vec<String> {
    fn pack(values: Vec<Self>) -> Result<Column> {
        Ok(Column::TextList(values))
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        if let Column::TextList(values) = column { Ok(values) } else { Err(column) }
    }
}

/// Byte strings, such as encoded pictures.
impl Value for Vec<u8> {
    fn pack(values: Vec<Self>) -> Result<Column> {
        Ok(Column::Bytes(values))
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        if let Column::Bytes(values) = column { Ok(values) } else { Err(column) }
    }
}

/// Vectors of one width.
impl Value for Vec<f32> {
    fn pack(values: Vec<Self>) -> Result<Column> {
        let width = values.first().map_or(0, Self::len);
        if let Some(other) = values.iter().find(|vector| vector.len() != width) {
            let found = other.len();
            return Err(Error::failed(format!(
                "a column of vectors of {width} values has one of {found}"
            )));
        }
        Ok(Column::Vectors { width, data: values.concat() })
    }

    fn unpack(column: Column) -> std::result::Result<Vec<Self>, Column> {
        match column {
            // Vectors without values cannot be cut into rows, and no table has them.
            Column::Vectors { width, data } if width > 0 => {
                Ok(data.chunks_exact(width).map(<[f32]>::to_vec).collect())
            }
            other => Err(other),
        }
    }
}
