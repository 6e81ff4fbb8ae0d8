//! Named f32 tensors in a safetensors file, with bytes that depend on the content alone.
//!
//! The file carries no free metadata: two or more metadata keys make the format's bytes
//! depend on a hash map's order. Reading refuses what the format's own parser lets through:
//! duplicate names, other element types, sizes that disagree.
//!
//! Models are larger than what a stage does with them: [`TensorFile`] reads tensors when they
//! are asked for, [`write_each`] asks for them when they are to be written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::hostile::check_header;
use crate::error::{Context, Error, Result};

/// The longest header that is read.
const LONGEST_HEADER: u64 = 100_000_000;

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
            Err(Error::failed(format!(
                "a tensor of shape {shape:?} cannot be made of {found} values"
            )))
        }
    }
}

/// A file of f32 tensors whose header has been read.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    /// Shape and offset of the first byte.
    entries: BTreeMap<String, (Vec<usize>, u64)>,
}

impl TensorFile {
    /// Reads the header of a file that holds f32 only.
    pub fn open(path: &Path) -> Result<Self> {
        let place = path.display();
        let (file, metadata, start) =
            header(path).context(|| format!("reading {place}"))?;
        let found: BTreeMap<_, _> = metadata.tensors().into_iter().collect();

        let mut entries = BTreeMap::new();
        for (name, info) in found {
            let TensorInfo { dtype, shape, data_offsets } = info;
            if *dtype != Dtype::F32 {
                return Err(Error::corrupt(format!(
                    "{place}: tensor {name} has type {dtype:?}, expected F32"
                )));
            }
            entries.insert(name, (shape.clone(), start + data_offsets.0 as u64));
        }
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// Names and shapes.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|(name, (shape, _))| (name.as_str(), shape.as_slice()))
    }

    /// A tensor; `None` if there is none of this name.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>> {
        let Some((shape, _)) = self.entries.get(name) else { return Ok(None) };
        // The header agrees with the length of the file, so this much is there.
        let mut data = vec![0.0; shape.iter().product()];
        self.read_into(name, &mut data)?;
        Ok(Some(Tensor { shape: shape.clone(), data }))
    }

    /// Reads a tensor's values into `out`, of the same length.
    pub fn read_into(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let place = || format!("reading tensor {name} of {}", self.path.display());
        let (_, offset) = self
            .entries
            .get(name)
            .filter(|(shape, _)| shape.iter().product::<usize>() == out.len())
            .ok_or_else(|| Error::failed(format!("no tensor of {} values", out.len())))
            .context(place)?;
        read_values(&self.file, *offset, out).context(place)
    }

    /// Reads the values of a tensor from `start` on into `out`.
    pub fn read_part(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let place = || format!("reading tensor {name} of {}", self.path.display());
        let end = start.saturating_add(out.len());
        let (_, offset) = self
            .entries
            .get(name)
            .filter(|(shape, _)| end <= shape.iter().product())
            .ok_or_else(|| Error::failed(format!("no tensor of {end} values or more")))
            .context(place)?;
        read_values(&self.file, *offset + 4 * start as u64, out).context(place)
    }
}

/// The header of a safetensors file that is as long as the header says: the file, its entries,
/// the offset of the first tensor.
pub(super) fn header(path: &Path) -> Result<(File, Metadata, u64)> {
    let reading = || "reading the header".to_owned();
    let mut file = File::open(path).context(|| "opening it".to_owned())?;
    let length = file.metadata().context(reading)?.len();

    let mut size = [0_u8; 8];
    if length >= 8 {
        file.read_exact(&mut size).context(reading)?;
    }

    // The length of the header is what a hostile file may lie about, so memory comes
    // after it.
    let size = u64::from_le_bytes(size);
    if length < 8 || size > (length - 8).min(LONGEST_HEADER) {
        let found = format!("{length} bytes with a header of {size}");
        return Err(Error::corrupt(format!("{found}: not a safetensors file")));
    }

    let mut header = vec![0_u8; usize::try_from(size).context(reading)?];
    file.read_exact(&mut header).context(reading)?;
    check_header(&header)?;

    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| Error::corrupt("not a safetensors file").caused_by(e))?;

    let expected = 8 + size + metadata.data_len() as u64;
    if length != expected {
        return Err(Error::corrupt(format!("{length} bytes, expected {expected}")));
    }
    Ok((file, metadata, 8 + size))
}

/// Reads little-endian f32 from a place in a file.
pub(super) fn read_values(file: &File, offset: u64, out: &mut [f32]) -> Result<()> {
    let bytes = bytemuck::cast_slice_mut(out);
    file.read_exact_at(bytes, offset).context(|| "its values are damaged".to_owned())?;
    if cfg!(target_endian = "big") {
        for value in out {
            *value = f32::from_bits(value.to_bits().swap_bytes());
        }
    }
    Ok(())
}

/// Reads every tensor of a file that holds f32 only.
pub fn read(path: &Path) -> Result<Tensors> {
    let file = TensorFile::open(path)?;
    let mut tensors = Tensors::new();
    for name in file.entries.keys() {
        tensors.extend(file.read(name)?.map(|tensor| (name.clone(), tensor)));
    }
    Ok(tensors)
}

/// Writes the tensors.
pub fn write(path: &Path, tensors: &Tensors) -> Result<()> {
    let shapes = tensors.iter().map(|(name, t)| (name.clone(), t.shape.clone()));
    write_each(path, shapes.collect(), |name, put| put(&tensors[name].data))
}

/// Takes the next values of a tensor.
pub type Put<'a> = dyn FnMut(&[f32]) -> Result<()> + 'a;

/// Writes tensors of these shapes, asking for one after the other, by name: `fill` puts its
/// values, in one piece or several.
pub fn write_each(
    path: &Path,
    shapes: BTreeMap<String, Vec<usize>>,
    mut fill: impl FnMut(&str, &mut Put<'_>) -> Result<()>,
) -> Result<()> {
    let place = || format!("writing {}", path.display());

    // The whole header is known before the first value is, so the file is written in one
    // pass.
    let mut end = 0;
    let mut entries = Vec::with_capacity(shapes.len());
    for (name, shape) in shapes {
        let begin = end;
        end += shape.iter().product::<usize>() * 4;
        let data_offsets = (begin, end);
        entries.push((name, TensorInfo { dtype: Dtype::F32, shape, data_offsets }));
    }

    let names: Vec<(String, usize)> = entries
        .iter()
        .map(|(name, TensorInfo { data_offsets: (begin, end), .. })| {
            (name.clone(), (end - begin) / 4)
        })
        .collect();

    let metadata = Metadata::new(None, entries).context(place)?;

    // The format wants values to begin at a multiple of eight bytes.
    let mut header = serde_json::to_vec(&metadata).context(place)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::new(File::create(path).context(place)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).context(place)?;
    file.write_all(&header).context(place)?;

    for (name, expected) in names {
        // What is written must fill the place that the header gave to it.
        let mut found = 0;
        fill(&name, &mut |values: &[f32]| {
            found += values.len();
            if cfg!(target_endian = "little") {
                return file.write_all(bytemuck::cast_slice(values)).context(place);
            }
            let mut bytes = values.iter().map(|v| v.to_le_bytes());
            bytes.try_for_each(|bytes| file.write_all(&bytes)).context(place)
        })?;

        if found != expected {
            return Err(Error::failed(format!(
                "{}: tensor {name}: {found} values, expected {expected}",
                place()
            )));
        }
    }

    file.flush().context(place)
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
    fn the_bytes_are_those_of_the_format_s_own_library() {
        struct Theirs<'a>(&'a Tensor);
        impl safetensors::View for Theirs<'_> {
            fn dtype(&self) -> Dtype {
                Dtype::F32
            }
            fn shape(&self) -> &[usize] {
                &self.0.shape
            }
            fn data(&self) -> std::borrow::Cow<'_, [u8]> {
                self.0.data.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            fn data_len(&self) -> usize {
                self.0.data.len() * 4
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let some = some();
        write(&path, &some).unwrap();
        let views = some.iter().map(|(name, tensor)| (name, Theirs(tensor)));
        let theirs = safetensors::serialize(views, None).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), theirs);
    }

    #[test]
    fn a_tensor_of_another_length_than_promised_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let shapes = BTreeMap::from([("a".to_owned(), vec![2, 2])]);
        let wrote = write_each(&path, shapes, |_, put| put(&[1.0; 2]).and(put(&[1.0])));
        let error = wrote.unwrap_err().to_string();
        assert!(error.contains("tensor a: 3 values, expected 4"), "{error}");
        write(&path, &some()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.read("b").unwrap(), some().remove("b"));
        assert_eq!(file.read("c").unwrap(), None);
        assert!(file.read_into("b", &mut [0.0; 5]).is_err());
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
