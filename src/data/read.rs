//! Reading a data set back: labels and captions as rows, pictures as planes.
//!
//! Planes are kept in memory where they fit; of larger splits every picture is read from its
//! place in the Parquet file and decoded each time it is asked for. Either way any picture can
//! be had at any time, so that batches can be a function of seed and step.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::collection::Meta;
use crate::error::{Context, Error, Result};
use crate::image::{self, Normalise, PixelBuffer};
use crate::io::columnar;
use crate::io::table::TableReader;
use crate::num;
use crate::par;
use crate::tables::{self, ConceptRow, LabelRow, PictureRow, SampleRow};
use crate::text::Tokenizer;

/// Most bytes of decoded pictures that a split keeps in memory: 7,000 pictures of side 224.
const IN_MEMORY: usize = 1 << 30;

/// An opened data set: everything but the pictures.
#[derive(Debug, Clone)]
pub struct Dataset {
    folder: PathBuf,
    /// The content of `dataset.json`.
    pub meta: Meta,
    /// Concepts by index.
    pub concepts: Vec<ConceptRow>,
    /// Names of the groups by index.
    pub groups: Vec<String>,
    /// Names of the subgroups by index.
    pub subgroups: Vec<String>,
    /// The tokenizer trained on the captions.
    pub tokenizer: Tokenizer,
}

impl Dataset {
    /// Opens the folder that [`super::build`] filled.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("dataset.json");
        let place = path.display();
        let text = std::fs::read(&path).context(|| format!("reading {place}"))?;
        let meta: Meta = serde_json::from_slice(&text).map_err(|e| {
            Error::corrupt(format!("{place} is no data set")).caused_by(e)
        })?;

        let tokenizer = Tokenizer::open(&folder.join("tokenizer.json"))?;

        // Token ids index the embedding of a model, so the two files must belong together.
        if tokenizer.vocabulary() != meta.vocabulary {
            return Err(Error::corrupt(format!(
                "{place}: vocabulary {}, but tokenizer.json has {} entries",
                meta.vocabulary,
                tokenizer.vocabulary()
            )));
        }

        let labels: Vec<LabelRow> = tables::read(folder)?;

        Ok(Self {
            folder: folder.to_owned(),
            meta,
            concepts: tables::read(folder)?,
            groups: names(&labels, LabelRow::GROUP),
            subgroups: names(&labels, LabelRow::SUBGROUP),
            tokenizer,
        })
    }

    /// Mean and standard deviation of the training pictures.
    pub fn normalise(&self) -> Normalise {
        Normalise { mean: self.meta.mean, std: self.meta.std }
    }

    /// Opens a split. Memory: its rows, and 3 side² bytes per picture, up to a gigabyte.
    pub fn split(&self, name: &str) -> Result<Split> {
        self.split_within(name, IN_MEMORY)
    }

    /// [`Dataset::split`] with at most `most` bytes of pictures in memory.
    fn split_within(&self, name: &str, most: usize) -> Result<Split> {
        let Some(count) = self.meta.splits.get(name) else {
            let known: Vec<_> = self.meta.splits.keys().map(String::as_str).collect();
            return Err(Error::usage(format!(
                "no split {name} in {}; there are: {}",
                self.folder.display(),
                known.join(", ")
            )));
        };

        let path = self.folder.join(SampleRow::file(name));
        let side = self.meta.image_size;
        let place = || format!("reading {}", path.display());

        // Either all pictures of a split are kept in memory or none is.
        let fits = count.saturating_mul(3 * side * side) <= most;
        let (rows, pictures) = if fits {
            let (rows, planes) = read_pictures(&path, side)?;
            (rows, Pictures::Planes(planes))
        } else {
            let rows = read_samples(&path)?;
            let lengths: Vec<u32> = rows.iter().map(|row| row.bytes).collect();
            let file = File::open(&path).context(place)?;
            let starts =
                columnar::places(&file, PictureRow::IMAGE, &lengths).context(place)?;
            let spans = starts.into_iter().zip(lengths).collect();
            (rows, Pictures::File { file, path: path.clone(), spans })
        };

        // Whoever uses a row finds its concept by index, without a check.
        let known = self.concepts.len();
        if let Some(row) = rows.iter().find(|row| num::widen(row.concept) >= known) {
            return Err(Error::corrupt(format!(
                "{}: sample {} shows concept {}, expected a number below {known}",
                path.display(),
                row.sample,
                row.concept
            )));
        }
        Ok(Split { rows, side, pictures, normalise: self.normalise() })
    }
}

/// The rows of a split without their pictures, which are not even read.
fn read_samples(path: &Path) -> Result<Vec<SampleRow>> {
    let mut reader = TableReader::open_without(path, Some(PictureRow::IMAGE))?;
    let mut rows = Vec::new();
    while let Some(part) = reader.next()? {
        let part = tables::from_table::<SampleRow>(part);
        rows.extend(part.context(|| format!("reading {}", path.display()))?);
    }
    Ok(rows)
}

/// The rows of a split, and all its pictures decoded, one after the other.
fn read_pictures(path: &Path, side: usize) -> Result<(Vec<SampleRow>, Vec<u8>)> {
    let mut reader = TableReader::open(path)?;
    let (mut rows, mut planes) = (Vec::new(), Vec::new());
    while let Some(part) = reader.next()? {
        let part = tables::from_table::<PictureRow>(part);
        let part = part.context(|| format!("reading {}", path.display()))?;

        let first = rows.len();
        let decoded =
            par::try_map(part.len(), |i| decode(&part[i].image, side, path, first + i))?;
        planes.extend(decoded.into_iter().flatten());
        rows.extend(part.into_iter().map(|row| row.sample));
    }
    Ok((rows, planes))
}

/// Picture `index` of a file as bytes [3, side, side].
fn decode(image: &[u8], side: usize, path: &Path, index: usize) -> Result<Vec<u8>> {
    let name = format!("{index} of {}", path.display());
    let picture = image::decode(image, &name)?;
    if (picture.width, picture.height) != (side, side) {
        return Err(Error::corrupt(format!(
            "picture {name} is {} x {}, expected {side} x {side}",
            picture.width, picture.height
        )));
    }

    let mut planes = Vec::with_capacity(3 * side * side);
    picture.push_planes(&mut planes);
    Ok(planes)
}

/// The names of one kind, in the order of their numbers.
fn names(labels: &[LabelRow], kind: &str) -> Vec<String> {
    let of_kind = labels.iter().filter(|label| label.kind == kind);
    of_kind.map(|label| label.name.clone()).collect()
}

/// The samples of a split with their pictures.
#[derive(Debug)]
pub struct Split {
    /// One row per sample.
    pub rows: Vec<SampleRow>,
    side: usize,
    pictures: Pictures,
    normalise: Normalise,
}

/// Where the pictures of a split are.
#[derive(Debug)]
enum Pictures {
    /// Decoded, one after the other.
    Planes(Vec<u8>),
    /// Encoded, in a file: where each starts, and its length.
    File { file: File, path: PathBuf, spans: Vec<(u64, u32)> },
}

impl Split {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Side S of the pictures.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Mean and standard deviation that the pictures are normalised with.
    pub fn normalise(&self) -> Normalise {
        self.normalise
    }

    /// The picture of row `index` as bytes [3, S, S].
    ///
    /// # Errors
    /// A file that was damaged after it was opened.
    pub fn planes(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let size = 3 * self.side * self.side;
        match &self.pictures {
            Pictures::Planes(all) => {
                Ok(Cow::from(&all[index * size..(index + 1) * size]))
            }
            Pictures::File { file, path, spans } => {
                let (start, length) = spans[index];
                let mut image = vec![0; num::widen(length)];
                file.read_exact_at(&mut image, start)
                    .context(|| format!("reading {}", path.display()))?;
                decode(&image, self.side, path, index).map(Cow::from)
            }
        }
    }

    /// The pictures of the rows `indices` [n, 3, S, S], as levels.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn pixels(&self, indices: &[usize]) -> Result<PixelBuffer> {
        let size = 3 * self.side * self.side;
        let mut levels = vec![0; indices.len() * size];
        par::try_for_each_chunk(&mut levels, size, |i, picture| {
            picture.copy_from_slice(&self.planes(indices[i])?);
            Ok::<_, Error>(())
        })?;
        Ok(PixelBuffer::Levels(levels, self.normalise))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::shapes;

    #[test]
    fn pictures_on_disk_are_those_in_memory() {
        let (folder, dataset) = shapes();
        for name in ["train", "val", "pair"] {
            let kept = dataset.split(name).unwrap();
            let read = dataset.split_within(name, 0).unwrap();
            assert!(matches!(kept.pictures, Pictures::Planes(_)));
            assert!(matches!(read.pictures, Pictures::File { .. }));
            assert_eq!(kept.rows, read.rows);
            for index in (0..kept.len()).rev() {
                assert_eq!(kept.planes(index).unwrap(), read.planes(index).unwrap());
            }
        }
        let path = folder.path().join("samples-val.parquet");
        let split = dataset.split_within("val", 0).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..200]).unwrap();
        let error = format!("{:?}", split.planes(split.len() - 1).unwrap_err());
        assert!(error.contains("samples-val.parquet"), "{error}");
    }
}
