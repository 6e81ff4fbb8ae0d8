//! Tables in Parquet: a few column types, read and written whole or as a stream.
//!
//! Equal tables have equal bytes. As these depend on the rows of every write call, on
//! dictionaries and on the creator's name, all of that is fixed: every write is a row group
//! of [`GROUP`] rows; text has a dictionary and numbers have none; vectors are
//! `FixedSizeList<f32>`, stored as `BYTE_STREAM_SPLIT` + zstd without statistics; and the
//! creator is always `upcycle`.
//!
//! Which tables there are is the subject of [`tables`](crate::tables).

mod column;
mod stream;

pub use column::Column;
pub use stream::{TableReader, TableWriter};

use std::path::Path;

use crate::error::{Error, Result};

/// Rows of a row group, and of every write but the last.
pub const GROUP: usize = 8192;

/// Named columns of equal length, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    columns: Vec<(String, Column)>,
}

impl Table {
    /// A table without columns.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column.
    #[must_use]
    pub fn with(mut self, name: &str, column: Column) -> Self {
        self.columns.push((name.to_owned(), column));
        self
    }

    /// The columns in order.
    pub fn columns(&self) -> &[(String, Column)] {
        &self.columns
    }

    /// Number of rows, by the first column; columns of different lengths are refused when the
    /// table is written.
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, column)| column.rows())
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Result<&Column> {
        Ok(&self.columns[self.position(name)?].1)
    }

    /// Removes the column of this name and returns it.
    pub fn take(&mut self, name: &str) -> Result<Column> {
        Ok(self.columns.remove(self.position(name)?).1)
    }

    /// Removes a column of vectors and returns their width and all values, row by row.
    pub fn take_vectors(&mut self, name: &str) -> Result<(usize, Vec<f32>)> {
        match self.take(name)? {
            Column::Vectors { width, data } => Ok((width, data)),
            other => {
                let found = other.kind();
                Err(Error::corrupt(format!(
                    "column {name} holds {found}, expected vector"
                )))
            }
        }
    }

    fn position(&self, name: &str) -> Result<usize> {
        self.columns.iter().position(|(own, _)| own == name).ok_or_else(|| {
            let names: Vec<_> =
                self.columns.iter().map(|(own, _)| own.as_str()).collect();
            let names = names.join(", ");
            Error::corrupt(format!("there is no column {name} among {names}"))
        })
    }

    /// Rows `start..start + len`, copied.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Self {
        let cut = |(n, c): &(String, Column)| (n.clone(), c.slice(start, len));
        Self { columns: self.columns.iter().map(cut).collect() }
    }

    /// Writes the whole table to a Parquet file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut writer = TableWriter::create(path)?;
        writer.push(self)?;
        writer.finish()
    }

    /// Reads a whole Parquet file.
    pub fn read(path: &Path) -> Result<Self> {
        let mut reader = TableReader::open(path)?;

        let mut whole = reader.empty()?;
        while let Some(part) = reader.next()? {
            for ((_, all), (_, more)) in whole.columns.iter_mut().zip(part.columns) {
                all.append(more)?;
            }
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: usize) -> Table {
        let numbers = || (0..rows).map(crate::num::index_u32);
        Table::new()
            .with("id", Column::U32(numbers().collect()))
            .with(
                "x",
                Column::F32(
                    numbers().map(|i| crate::num::round_f32(f64::from(i))).collect(),
                ),
            )
            .with("y", Column::F64(numbers().map(f64::from).collect()))
            .with("b", Column::Bool(numbers().map(|i| i % 3 == 0).collect()))
            .with("t", Column::Text(numbers().map(|i| format!("t{}", i % 5)).collect()))
            .with(
                "l",
                Column::TextList(
                    numbers().map(|i| vec!["a".into(); i as usize % 3]).collect(),
                ),
            )
            .with(
                "p",
                Column::Bytes(numbers().map(|i| vec![7; i as usize % 4]).collect()),
            )
            .with("v", Column::Vectors { width: 3, data: vec![0.25; rows * 3] })
    }

    #[test]
    fn tables_survive_a_round_trip_whatever_the_pushes() {
        let folder = tempfile::tempdir().unwrap();
        for rows in [0, 1, GROUP, GROUP + 1, 2 * GROUP + 17] {
            let (one, two) = (folder.path().join("1"), folder.path().join("2"));
            table(rows).write(&one).unwrap();
            assert_eq!(Table::read(&one).unwrap(), table(rows));
            let mut writer = TableWriter::create(&two).unwrap();
            let mut start = 0;
            while start < rows {
                let len = 1000.min(rows - start);
                writer.push(&table(rows).slice(start, len)).unwrap();
                start += len;
            }
            if rows == 0 {
                writer.push(&table(0)).unwrap();
            }
            writer.finish().unwrap();
            assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        }
    }

    #[test]
    fn vectors_are_byte_stream_split() {
        use parquet::file::reader::{FileReader, SerializedFileReader};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        table(100).write(&path).unwrap();
        let file = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let group = file.metadata().row_group(0);
        let column = group
            .columns()
            .iter()
            .find(|c| c.column_path().string().starts_with("v."))
            .unwrap();
        let encodings: Vec<_> = column.encodings().collect();
        assert!(
            encodings.contains(&parquet::basic::Encoding::BYTE_STREAM_SPLIT),
            "{encodings:?}"
        );
        assert!(column.statistics().is_none());
    }

    #[test]
    fn damage_and_misuse_are_errors_that_name_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.parquet");
        table(10).write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(Table::read(&path).unwrap_err().to_string().contains("cut.parquet"));
        let error = table(1).column("nothing").unwrap_err().to_string();
        assert!(error.contains("nothing") && error.contains("id"), "{error}");
        let error = table(1).take_vectors("x").unwrap_err().to_string();
        assert!(error.contains("column x holds f32, expected vector"), "{error}");
        let uneven = table(2).with("z", Column::U32(vec![1]));
        assert!(uneven.write(&path).is_err());
    }
}
