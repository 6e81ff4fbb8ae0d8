//! Writing and reading a table in row groups, with memory for one group whatever the size of
//! the file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::column::{self, Column};
use super::{GROUP, Table};
use crate::error::{Context, Error, Result};
use crate::io::columnar;
use crate::io::hostile::guarded;

/// Writes a table part by part; the first part fixes the columns.
#[derive(Debug)]
pub struct TableWriter {
    path: PathBuf,
    writer: Option<ArrowWriter<File>>,
    waiting: Option<Table>,
}

impl TableWriter {
    /// Opens the file for writing.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), writer: None, waiting: None })
    }

    /// Adds rows.
    pub fn push(&mut self, part: &Table) -> Result<()> {
        let place = || format!("writing {}", self.path.display());
        let rows = part.rows();
        if let Some((name, column)) =
            part.columns().iter().find(|(_, c)| c.rows() != rows)
        {
            let found = column.rows();
            return Err(Error::failed(format!(
                "column {name} has {found} rows, expected {rows} as the first column has"
            )))
            .context(place);
        }

        let mut waiting = match self.waiting.take() {
            None => part.clone(),
            Some(mut waiting) => {
                if waiting.columns.len() != part.columns.len() {
                    return Err(Error::failed(format!(
                        "found {} columns, expected {} as in the first part",
                        part.columns.len(),
                        waiting.columns.len()
                    )))
                    .context(place);
                }
                for ((_, all), (_, more)) in waiting.columns.iter_mut().zip(&part.columns)
                {
                    all.append(more.clone()).context(place)?;
                }
                waiting
            }
        };

        // Groups are cut from what is waiting, whatever the sizes of the parts were: the bytes
        // must not depend on them.
        let (mut start, group) = (0, rows_of_group(part));
        while waiting.rows() - start >= group {
            self.group(&waiting.slice(start, group))?;
            start += group;
        }

        if start > 0 {
            waiting = waiting.slice(start, waiting.rows() - start);
        }
        self.waiting = Some(waiting);
        Ok(())
    }

    /// Writes what is waiting and the footer.
    pub fn finish(mut self) -> Result<()> {
        if let Some(rest) = self.waiting.take()
            && (rest.rows() > 0 || self.writer.is_none())
        {
            self.group(&rest)?;
        }

        let place = format!("writing {}", self.path.display());
        let writer = self
            .writer
            .ok_or_else(|| Error::failed(format!("{place}: there are no columns")))?;
        writer.close().context(|| place)?;
        Ok(())
    }

    /// Writes one row group. The file is created with the first one, whose columns fix the
    /// schema.
    fn group(&mut self, part: &Table) -> Result<()> {
        let place = format!("writing {}", self.path.display());
        let schema = Arc::new(schema(part)?);
        let arrays =
            part.columns().iter().map(|(_, c)| c.to_arrow()).collect::<Result<_>>()?;
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)
            .context(|| place.clone())?;

        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let file = File::create(&self.path).context(|| place.clone())?;
                let properties = Some(properties(part));
                let writer = ArrowWriter::try_new(file, schema, properties);
                none.insert(writer.context(|| place.clone())?)
            }
        };
        writer.write(&batch).context(|| place.clone())?;
        writer.flush().context(|| place)
    }
}

/// Rows of a row group. Rows of bytes (pictures) are large: thousands of them would need much
/// memory.
fn rows_of_group(table: &Table) -> usize {
    let heavy = table.columns().iter().any(|(_, c)| matches!(c, Column::Bytes(_)));
    if heavy { GROUP / 16 } else { GROUP }
}

fn schema(table: &Table) -> Result<Schema> {
    let fields = table.columns().iter();
    let fields = fields.map(|(name, c)| Ok(Field::new(name, c.data_type()?, false)));
    Ok(Schema::new(fields.collect::<Result<Vec<_>>>()?))
}

fn properties(table: &Table) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_created_by("upcycle".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP))
        .set_dictionary_enabled(false);

    for (name, column) in table.columns() {
        let parts =
            |parts: &[&str]| ColumnPath::new(parts.iter().map(|&p| p.into()).collect());
        match column {
            Column::Vectors { .. } => {
                // One part a level: a dotted string would be one name, silently ignored.
                let path = parts(&[name, "list", "element"]);
                builder = builder
                    .set_column_encoding(path.clone(), Encoding::BYTE_STREAM_SPLIT)
                    .set_column_statistics_enabled(path, EnabledStatistics::None);
            }
            Column::Text(_) => {
                builder = builder.set_column_dictionary_enabled(parts(&[name]), true);
            }
            Column::Bytes(_) => {
                // Pictures are compressed already; plain values can be read one by one.
                let path = parts(&[name]);
                builder = builder
                    .set_column_statistics_enabled(path.clone(), EnabledStatistics::None)
                    .set_column_compression(path, Compression::UNCOMPRESSED);
            }
            _ => {}
        }
    }

    builder.build()
}

/// Reads a table group by group.
pub struct TableReader {
    path: PathBuf,
    schema: Arc<Schema>,
    rows: usize,
    reader: ParquetRecordBatchReader,
}

impl std::fmt::Debug for TableReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TableReader({}, {} rows)", self.path.display(), self.rows)
    }
}

impl TableReader {
    /// Opens a Parquet file and reads its footer.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_without(path, None)
    }

    /// The same as [`TableReader::open`], passing over one column.
    pub fn open_without(path: &Path, column: Option<&str>) -> Result<Self> {
        let place = path.display();
        let file = File::open(path).context(|| format!("reading {place}"))?;
        let damaged = |e: parquet::errors::ParquetError| {
            Error::corrupt(format!("{place} is not a Parquet file")).caused_by(e)
        };
        let open = || {
            let builder = columnar::open(file)?;
            let rows = builder.metadata().file_metadata().num_rows();
            let rows = usize::try_from(rows).map_err(|e| {
                let message = format!("{place} says that it has {rows} rows");
                Error::corrupt(message).caused_by(e)
            })?;

            // The schema that is shown must be that of the columns that are read.
            let (all, wanted) = (builder.schema().fields(), |f: &Field| {
                column.is_none_or(|column| f.name() != column)
            });
            let kept: Vec<usize> = (0..all.len()).filter(|&i| wanted(&all[i])).collect();
            let schema = Arc::new(builder.schema().project(&kept).map_err(|e| {
                Error::corrupt(format!("{place} has a damaged schema")).caused_by(e)
            })?);

            let mask = ProjectionMask::roots(builder.parquet_schema(), kept);
            let builder = builder.with_projection(mask).with_batch_size(GROUP);
            let reader = builder.build().map_err(damaged)?;
            Ok(Self { path: path.to_owned(), schema, rows, reader })
        };
        guarded(open).context(|| format!("reading {place}"))
    }

    /// Number of rows of the file.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The next part, `None` at the end.
    #[expect(clippy::should_implement_trait, reason = "an iterator would hide the error")]
    pub fn next(&mut self) -> Result<Option<Table>> {
        let place = || format!("reading {}", self.path.display());
        let reader = &mut self.reader;
        match guarded(|| Ok(reader.next())).context(place)? {
            None => Ok(None),
            Some(batch) => {
                let batch = batch.map_err(|e| Error::corrupt(place()).caused_by(e))?;
                let columns = guarded(|| column::from_batch(&batch)).context(place)?;
                Ok(Some(Table { columns }))
            }
        }
    }

    /// A table of this file's columns without rows.
    pub(super) fn empty(&self) -> Result<Table> {
        let batch = RecordBatch::new_empty(Arc::clone(&self.schema));
        let place = || format!("reading {}", self.path.display());
        Ok(Table { columns: column::from_batch(&batch).context(place)? })
    }

    /// Name and type of every column, for display.
    pub fn schema(&self) -> Vec<(String, DataType)> {
        let fields = self.schema.fields().iter();
        fields.map(|f| (f.name().clone(), f.data_type().clone())).collect()
    }
}
