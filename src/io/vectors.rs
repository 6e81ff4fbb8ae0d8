//! Vectors in a file, a column of Parquet or a tensor of safetensors, read once or many times.
//!
//! A pass decodes on a thread of its own while the caller works, and holds three blocks at a
//! time, whatever the size of the file. Single rows are read without a pass.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use arrow::array::{Array, AsArray as _};
use arrow::datatypes::{DataType, Float32Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, RowSelection, RowSelector};
use safetensors::tensor::{Dtype, TensorInfo};

use super::columnar::{self, Builder};
use super::hostile::guarded;
use super::table::GROUP;
use super::tensors;
use crate::error::{Context as _, Error, Result};

/// A file of `rows` vectors of `width` values.
#[derive(Debug, Clone)]
pub struct VectorFile {
    path: PathBuf,
    rows: usize,
    width: usize,
    name: String,
    spot: Spot,
}

/// Where the values lie in the file.
#[derive(Debug, Clone)]
enum Spot {
    /// A column by its index.
    Column(usize),
    /// The offset of a tensor's first byte.
    Tensor(u64),
}

impl VectorFile {
    /// Opens the named column or tensor; without a name, the only one that can be meant.
    pub fn open(path: &Path, name: Option<&str>) -> Result<Self> {
        let place = || format!("reading vectors of {}", path.display());
        let found = match path.extension().and_then(|ending| ending.to_str()) {
            Some("parquet") => guarded(|| Self::open_parquet(path, name)),
            Some("safetensors") => Self::open_tensor(path, name),
            _ => {
                Err(Error::usage("expected a name that ends in .parquet or .safetensors"))
            }
        };
        found.context(place)
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The name of the column or tensor.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All values, row by row.
    pub fn read(&self) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.rows * self.width);
        self.stream(1, &mut |block| {
            all.extend_from_slice(block);
            Ok(())
        })?;
        Ok(all)
    }

    /// Hands all rows to `visit`, in order and in blocks of 8192 rows, or fewer if the
    /// rows
    /// are long. Every block but the last holds a multiple of `multiple` rows.
    pub fn stream(
        &self,
        multiple: usize,
        visit: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        // Callers want whole multiples, and blocks end anywhere: what is left over is
        // carried to the next block.
        let unit = multiple.max(1) * self.width;
        let mut carried: Vec<f32> = Vec::new();
        let mut seen = 0;

        let result = std::thread::scope(|scope| {
            // The channel holds one block: decoding runs ahead of the visitor, but never
            // far.
            let (send, receive) = mpsc::sync_channel(1);

            // A tensor's block that was visited is the memory of the next but two.
            let (give_back, used) = mpsc::sync_channel(1);

            scope.spawn(move || {
                let mut spare = || used.try_recv().unwrap_or_default();
                let sent = guarded(|| {
                    self.decode(&mut spare, &mut |block| send.send(Ok(block)).is_ok())
                });
                if let Err(error) = sent {
                    // Nobody listens once the visitor has failed.
                    let _ = send.send(Err(error));
                }
            });

            for block in receive {
                let block: Vec<f32> = block?;
                seen += block.len() / self.width;

                // The rest of the last block comes first, so that no row is visited out
                // of order.
                let block = if carried.is_empty() {
                    block
                } else {
                    carried.extend(block);
                    std::mem::take(&mut carried)
                };

                let whole = block.len() / unit * unit;
                if whole > 0 {
                    visit(&block[..whole])?;
                }
                carried.extend_from_slice(&block[whole..]);

                if let Spot::Tensor(_) = self.spot {
                    // At the end nobody wants it.
                    let _ = give_back.try_send(block);
                }
            }

            if carried.is_empty() { Ok(()) } else { visit(&carried) }
        });

        result.context(|| format!("reading vectors of {}", self.path.display()))?;

        // A file may hold fewer rows than its footer says, or more.
        if seen == self.rows {
            return Ok(());
        }
        let (path, rows) = (self.path.display(), self.rows);
        Err(Error::corrupt(format!(
            "{path} holds {seen} rows, expected {rows} as its header says: it is damaged"
        )))
    }

    /// Copies single rows, in the order of `indices`.
    pub fn fetch(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        let place = || format!("reading single vectors of {}", self.path.display());

        // Readers go forward only, so each wanted row is read once, in the order of the
        // file.
        let mut wanted = indices.to_vec();
        wanted.sort_unstable();
        wanted.dedup();

        if wanted.last().is_some_and(|&last| last >= self.rows) {
            let rows = self.rows;
            return Err(Error::failed(format!("row index out of range ({rows} rows)")))
                .context(place);
        }

        let values = match &self.spot {
            Spot::Tensor(offset) => self.fetch_tensor(*offset, &wanted),
            Spot::Column(index) => guarded(|| self.fetch_column(*index, &wanted)),
        };
        let values = values.context(place)?;

        let row = |index: &usize| {
            let at = wanted.partition_point(|other| other < index) * self.width;
            values[at..at + self.width].to_vec()
        };
        Ok(indices.iter().map(row).collect())
    }

    /// Rows decoded at a time: 8192, or the half, quarter, .. of it that has at most 64 MB.
    fn block(&self) -> usize {
        let fits = |rows: &usize| rows * self.width * 4 <= 64 << 20;
        (0..13).map(|power| GROUP >> power).find(fits).unwrap_or(1)
    }

    /// Decodes the whole file until `take` wants no more. Tensors are read into what `spare`
    /// has.
    fn decode(
        &self,
        spare: &mut dyn FnMut() -> Vec<f32>,
        take: &mut dyn FnMut(Vec<f32>) -> bool,
    ) -> Result<()> {
        match &self.spot {
            Spot::Tensor(offset) => {
                let file = open(&self.path)?;
                let block = self.block();
                for first in (0..self.rows).step_by(block) {
                    let count = block.min(self.rows - first);
                    let mut values = spare();
                    values.resize(count * self.width, 0.0);
                    self.tensor_rows(&file, *offset, first, &mut values)?;
                    if !take(values) {
                        break;
                    }
                }
                Ok(())
            }
            Spot::Column(index) => {
                let builder = parquet(&self.path)?;
                let mask = ProjectionMask::roots(builder.parquet_schema(), [*index]);
                let reader =
                    builder.with_projection(mask).with_batch_size(self.block()).build();
                self.batches(reader.context(damaged)?, take)
            }
        }
    }

    fn batches(
        &self,
        reader: ParquetRecordBatchReader,
        take: &mut dyn FnMut(Vec<f32>) -> bool,
    ) -> Result<()> {
        for batch in reader {
            let batch = batch.map_err(|e| Error::corrupt(damaged()).caused_by(e))?;
            let values = values(batch.column(0), &self.name, Some(self.width))?.1;
            if !take(values) {
                break;
            }
        }
        Ok(())
    }

    fn open_parquet(path: &Path, name: Option<&str>) -> Result<Self> {
        let builder = parquet(path)?;
        let fields = builder.schema().fields().clone();
        let names: Vec<&str> = fields.iter().map(|f| f.name().as_str()).collect();

        let vectors =
            |index: &usize| item(fields[*index].data_type()) == Some(&DataType::Float32);
        let lists: Vec<usize> =
            (0..names.len()).filter(|&i| item(fields[i].data_type()).is_some()).collect();

        let candidates: Vec<usize> = match name {
            Some(name) => (0..names.len()).filter(|&i| names[i] == name).collect(),
            // The only column of lists is meant, whatever it holds: the error says what.
            None if lists.len() == 1 => lists,
            None => (0..names.len()).filter(vectors).collect(),
        };

        let [index] = candidates[..] else {
            let names = names.join(", ");
            return Err(Error::usage(match name {
                Some(name) => format!("there is no column {name}; there are: {names}"),
                None => format!(
                    "which column? expected one of f32 vectors, there are {} among: {names}",
                    candidates.len()
                ),
            }));
        };

        let rows = builder.metadata().file_metadata().num_rows();
        let rows = usize::try_from(rows).context(|| format!("{rows} rows"))?;
        let name = names[index].to_owned();

        let width = match fields[index].data_type() {
            DataType::FixedSizeList(_, width) => {
                usize::try_from(*width).context(|| format!("column {name}"))?
            }
            // The first row decides; every other is held to it.
            _ => first_width(builder, index, &name)?,
        };

        if !vectors(&index) || width == 0 {
            let found = fields[index].data_type();
            let floats = [DataType::Float64, DataType::Float16];
            let cast = cast(item(found).is_some_and(|item| floats.contains(item)));
            return Err(Error::corrupt(format!(
                "column {name} holds {found}, expected lists of f32 of one length{cast}"
            )));
        }

        let spot = Spot::Column(index);
        Ok(Self { path: path.to_owned(), rows, width, name, spot })
    }

    fn fetch_column(&self, index: usize, rows: &[usize]) -> Result<Vec<f32>> {
        let builder = parquet(&self.path)?;

        // The rows are sorted and distinct, so one pass over the file finds them all.
        let mut selectors = Vec::new();
        let mut at = 0;
        for &row in rows {
            if row > at {
                selectors.push(RowSelector::skip(row - at));
            }
            selectors.push(RowSelector::select(1));
            at = row + 1;
        }

        let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
        let reader = builder
            .with_projection(mask)
            .with_row_selection(RowSelection::from(selectors))
            .build()
            .context(damaged)?;

        let mut all = Vec::new();
        self.batches(reader, &mut |values| {
            all.extend(values);
            true
        })?;

        if all.len() == rows.len() * self.width {
            return Ok(all);
        }
        Err(Error::corrupt(format!(
            "{} rows are there, expected {}",
            all.len(),
            rows.len()
        )))
    }

    fn open_tensor(path: &Path, name: Option<&str>) -> Result<Self> {
        let (name, info, offset) = tensor_info(path, name, |info| {
            info.shape.len() == 2 && info.dtype == Dtype::F32
        })?;

        let TensorInfo { dtype, shape, .. } = info;
        match shape[..] {
            [rows, width] if dtype == Dtype::F32 && width > 0 => Ok(Self {
                path: path.to_owned(),
                rows,
                width,
                name,
                spot: Spot::Tensor(offset),
            }),
            _ => {
                let cast = cast(matches!(dtype, Dtype::F64 | Dtype::F16 | Dtype::BF16));
                Err(Error::corrupt(format!(
                    "tensor {name} is {dtype:?} {shape:?}, expected F32 [rows, width]{cast}"
                )))
            }
        }
    }

    fn fetch_tensor(&self, offset: u64, rows: &[usize]) -> Result<Vec<f32>> {
        let file = open(&self.path)?;
        let mut all = vec![0.0; rows.len() * self.width];
        for (values, &row) in all.chunks_exact_mut(self.width).zip(rows) {
            self.tensor_rows(&file, offset, row, values)?;
        }
        Ok(all)
    }

    fn tensor_rows(
        &self,
        file: &File,
        offset: u64,
        first: usize,
        values: &mut [f32],
    ) -> Result<()> {
        tensors::read_values(file, offset + (first * self.width * 4) as u64, values)
    }
}

/// What a column's lists hold; `None` if it holds no lists.
fn item(column: &DataType) -> Option<&DataType> {
    match column {
        DataType::FixedSizeList(item, _)
        | DataType::List(item)
        | DataType::LargeList(item) => Some(item.data_type()),
        _ => None,
    }
}

/// The remedy for floats of another width.
fn cast(is_float: bool) -> &'static str {
    if is_float { "; cast it to f32" } else { "" }
}

/// The header entry of a tensor, by name or as the only one that is `wanted`: its name, its
/// entry and the offset of its first byte. The file is as long as its header says.
pub(super) fn tensor_info(
    path: &Path,
    name: Option<&str>,
    wanted: impl Fn(&TensorInfo) -> bool,
) -> Result<(String, TensorInfo, u64)> {
    let (_, tensors, start) = tensors::header(path)?;
    let names = tensors.offset_keys();

    let meant = |key: &&String| match name {
        Some(name) => key.as_str() == name,
        None => tensors.info(key).is_some_and(&wanted),
    };
    let mut candidates: Vec<&String> = names.iter().filter(meant).collect();
    if name.is_none() && candidates.is_empty() && names.len() == 1 {
        // The only tensor is meant, whatever it holds: the error says what.
        candidates = names.iter().collect();
    }

    let ([key], Some(info)) =
        (&candidates[..], candidates.first().and_then(|key| tensors.info(key)))
    else {
        let (found, names) = (candidates.len(), names.join(", "));
        return Err(Error::usage(match name {
            Some(name) => format!("there is no tensor {name}; there are: {names}"),
            None => format!("which tensor? {found} could be meant among: {names}"),
        }));
    };

    let offset = start + info.data_offsets.0 as u64;
    Ok(((*key).clone(), info.clone(), offset))
}

/// The width and the values of a column of vectors.
fn values(
    array: &dyn Array,
    name: &str,
    width: Option<usize>,
) -> Result<(usize, Vec<f32>)> {
    let bad = |what: &str| Error::corrupt(format!("column {name}: {what}"));
    if array.null_count() > 0 {
        return Err(bad("a vector is missing (null)"));
    }

    // A fixed list says its width; other lists have that of their rows, which must agree.
    let (first, items) = match array.data_type() {
        DataType::FixedSizeList(_, length) => (
            usize::try_from(*length).ok(),
            Arc::clone(array.as_fixed_size_list().values()),
        ),
        DataType::List(_) => even(&array.as_list::<i32>().iter().collect::<Vec<_>>())
            .ok_or_else(|| bad("vectors of different widths"))?,
        DataType::LargeList(_) => {
            even(&array.as_list::<i64>().iter().collect::<Vec<_>>())
                .ok_or_else(|| bad("vectors of different widths"))?
        }
        other => return Err(bad(&format!("{other}, expected lists of f32"))),
    };

    if items.null_count() > 0 {
        return Err(bad("a value is missing (null)"));
    }

    let items = items.as_primitive_opt::<Float32Type>().ok_or_else(|| bad("not f32"))?;
    match (width, first) {
        (Some(expected), Some(found)) if expected != found => {
            Err(bad(&format!("a vector of {found} values, expected {expected}")))
        }
        _ => Ok((first.unwrap_or(0), items.values().to_vec())),
    }
}

/// The common length of lists and their values in a row; `None` for unequal lengths.
fn even(
    lists: &[Option<arrow::array::ArrayRef>],
) -> Option<(Option<usize>, arrow::array::ArrayRef)> {
    let lists: Vec<&dyn Array> = lists.iter().flatten().map(AsRef::as_ref).collect();
    let width = lists.first().map(|list| list.len());
    if lists.iter().any(|list| Some(list.len()) != width) {
        return None;
    }

    if lists.is_empty() {
        return Some((None, arrow::array::new_empty_array(&DataType::Float32)));
    }
    Some((width, arrow::compute::concat(&lists).ok()?))
}

fn first_width(builder: Builder, index: usize, name: &str) -> Result<usize> {
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let reader = builder.with_projection(mask).with_limit(1).build().context(damaged)?;
    let mut width = 0;
    for batch in reader {
        let batch = batch.map_err(|e| Error::corrupt(damaged()).caused_by(e))?;
        width = values(batch.column(0), name, None)?.0;
    }
    Ok(width)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).context(|| format!("cannot open {}", path.display()))
}

fn parquet(path: &Path) -> Result<Builder> {
    columnar::open(open(path)?)
}

fn damaged() -> String {
    "the file is damaged".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::table::{Column, Table};
    use crate::io::tensors::{self, Tensor, Tensors};
    use crate::rng;

    fn files(rows: usize, width: usize) -> (tempfile::TempDir, Vec<f32>) {
        let folder = tempfile::tempdir().unwrap();
        let mut data = vec![0.0; rows * width];
        rng::fill_normal(&mut rng::stream(1, "test"), 1.0, &mut data);
        Table::new()
            .with("id", Column::U32(vec![7; rows]))
            .with("x", Column::Vectors { width, data: data.clone() })
            .write(&folder.path().join("x.parquet"))
            .unwrap();
        let mut all = Tensors::new();
        all.insert("a".into(), Tensor::new(vec![3], vec![1.0; 3]).unwrap());
        all.insert("x".into(), Tensor::new(vec![rows, width], data.clone()).unwrap());
        tensors::write(&folder.path().join("x.safetensors"), &all).unwrap();
        (folder, data)
    }

    #[test]
    fn both_formats_give_the_same_rows_whole_in_blocks_and_singly() {
        let (folder, data) = files(20_000, 5);
        for name in ["x.parquet", "x.safetensors"] {
            let file = VectorFile::open(&folder.path().join(name), None).unwrap();
            assert_eq!((file.rows(), file.width()), (20_000, 5));
            assert_eq!(file.read().unwrap(), data);
            let mut all = Vec::new();
            let mut lengths = Vec::new();
            file.stream(3000, &mut |block| {
                lengths.push(block.len() / 5);
                all.extend_from_slice(block);
                Ok(())
            })
            .unwrap();
            assert_eq!(all, data);
            let last = lengths.pop().unwrap();
            assert!(last == 2000 && lengths.iter().all(|l| l.is_multiple_of(3000)));
            let picks = [19_999, 0, 8192, 8191, 0];
            let rows = file.fetch(&picks).unwrap();
            for (row, index) in rows.iter().zip(picks) {
                assert_eq!(row, &data[index * 5..index * 5 + 5]);
            }
            assert!(file.fetch(&[20_000]).is_err());
            let failed = file.stream(1, &mut |_| Err(Error::failed("enough")));
            assert!(format!("{:?}", failed.unwrap_err()).contains("enough"));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let (folder, _) = files(10, 2);
        let open = |file: &str, name| VectorFile::open(&folder.path().join(file), name);
        let told = |file, name| format!("{:?}", open(file, name).unwrap_err());
        assert!(told("x.parquet", Some("y")).contains("no column y; there are: id, x"));
        assert!(told("x.parquet", Some("id")).contains("expected lists of f32"));
        assert!(told("x.safetensors", Some("y")).contains("no tensor y"));
        assert!(told("x.safetensors", Some("a")).contains("expected F32 [rows, width]"));
        assert!(told("x.csv", None).contains(".parquet or .safetensors"));
        assert!(told("none.parquet", None).contains("none.parquet"));
        for name in ["x.parquet", "x.safetensors"] {
            let path = folder.path().join(name);
            let bytes = std::fs::read(&path).unwrap();
            for length in [0, 7, bytes.len() / 2, bytes.len() - 1] {
                std::fs::write(&path, &bytes[..length]).unwrap();
                assert!(open(name, None).is_err(), "{length} bytes of {name}");
            }
        }
    }
}
