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
use crate::image::{self, Normalise};
use crate::io::columnar;
use crate::io::table::{Table, TableReader};
use crate::num;
use crate::par;
use crate::text::Tokenizer;

/// Most bytes of decoded pictures that a split keeps in memory: 7,000 pictures of side 224.
const IN_MEMORY: usize = 1 << 30;

/// The column of the pictures.
const IMAGE: &str = "image";

/// A row of `concepts.parquet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConceptRow {
    /// Code points or another stable name.
    pub key: String,
    /// What it is called.
    pub label: String,
    /// Words that go with it.
    pub tags: Vec<String>,
    /// Index of its group.
    pub group: u32,
    /// Index of its subgroup.
    pub subgroup: u32,
    /// Whether it is never trained on.
    pub held_out: bool,
}

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
        if tokenizer.vocabulary() != meta.vocabulary {
            return Err(Error::corrupt(format!(
                "{place}: vocabulary {}, but tokenizer.json has {} entries",
                meta.vocabulary,
                tokenizer.vocabulary()
            )));
        }
        let labels = Table::read(&folder.join("labels.parquet"))?;
        Ok(Self {
            folder: folder.to_owned(),
            meta,
            concepts: read_concepts(&folder.join("concepts.parquet"))?,
            groups: read_labels(&labels, "group")?,
            subgroups: read_labels(&labels, "subgroup")?,
            tokenizer,
        })
    }

    /// Mean and standard deviation of the training pictures.
    pub fn normalise(&self) -> Normalise {
        Normalise { mean: self.meta.mean, std: self.meta.std }
    }

    /// Opens a split. Memory: its rows, and 3 side² bytes a picture up to a gigabyte.
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
        let path = self.folder.join(format!("samples-{name}.parquet"));
        let side = self.meta.image_size;
        let keeps = count.saturating_mul(3 * side * side) <= most;
        let mut reader = TableReader::open_without(&path, (!keeps).then_some(IMAGE))?;
        let (mut rows, mut lengths, mut planes) = (Vec::new(), Vec::new(), Vec::new());
        let place = || format!("reading {}", path.display());
        while let Some(part) = reader.next()? {
            let first = rows.len();
            rows.extend(read_rows(&part).context(place)?);
            if keeps {
                let images = part.bytes(IMAGE).context(place)?;
                let decoded = par::try_map(images.len(), |i| {
                    decode(&images[i], side, &path, first + i)
                })?;
                planes.extend(decoded.into_iter().flatten());
            } else {
                lengths.extend_from_slice(part.u32s("bytes").context(place)?);
            }
        }
        if let Some(row) =
            rows.iter().find(|r| num::widen(r.concept) >= self.concepts.len())
        {
            return Err(Error::corrupt(format!(
                "{}: sample {} shows concept {} of {}",
                path.display(),
                row.sample,
                row.concept,
                self.concepts.len()
            )));
        }
        let pictures = if keeps {
            Pictures::Planes(planes)
        } else {
            let file = File::open(&path).context(place)?;
            let starts = columnar::places(&file, IMAGE, &lengths).context(place)?;
            let places = starts.into_iter().zip(lengths).collect();
            Pictures::File { file, path, places }
        };
        Ok(Split { rows, side, pictures, normalise: self.normalise() })
    }
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

fn read_concepts(path: &Path) -> Result<Vec<ConceptRow>> {
    let place = || format!("reading {}", path.display());
    let table = Table::read(path)?;
    let (keys, labels) = (table.texts("key"), table.texts("label"));
    let (keys, labels) = (keys.context(place)?, labels.context(place)?);
    let tags = table.text_lists("tags").context(place)?;
    let groups = table.u32s("group").context(place)?;
    let subgroups = table.u32s("subgroup").context(place)?;
    let held_out = table.bools("held_out").context(place)?;
    let row = |i: usize| ConceptRow {
        key: keys[i].clone(),
        label: labels[i].clone(),
        tags: tags[i].clone(),
        group: groups[i],
        subgroup: subgroups[i],
        held_out: held_out[i],
    };
    Ok((0..table.rows()).map(row).collect())
}

fn read_labels(table: &Table, kind: &str) -> Result<Vec<String>> {
    let place = || "reading labels.parquet".to_owned();
    let kinds = table.texts("kind").context(place)?;
    let names = table.texts("name").context(place)?;
    let of_kind = kinds.iter().zip(names).filter(|(k, _)| *k == kind);
    Ok(of_kind.map(|(_, name)| name.clone()).collect())
}

fn read_rows(table: &Table) -> Result<Vec<SampleRow>> {
    let (samples, concepts) = (table.u32s("sample")?, table.u32s("concept")?);
    let (groups, subgroups) = (table.u32s("group")?, table.u32s("subgroup")?);
    let (captions, names) = (table.text_lists("captions")?, table.text_lists("names")?);
    let styles = table.texts("style")?;
    let row = |i: usize| SampleRow {
        sample: samples[i],
        captions: captions[i].clone(),
        names: names[i].clone(),
        concept: concepts[i],
        style: styles[i].clone(),
        group: groups[i],
        subgroup: subgroups[i],
    };
    Ok((0..table.rows()).map(row).collect())
}

/// A row of `samples-<split>.parquet` without its picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRow {
    /// Number of the sample, unique over all splits.
    pub sample: u32,
    /// Captions to train on.
    pub captions: Vec<String>,
    /// Captions of the retrieval task.
    pub names: Vec<String>,
    /// Index of the concept.
    pub concept: u32,
    /// Who drew it.
    pub style: String,
    /// Index of the group.
    pub group: u32,
    /// Index of the subgroup.
    pub subgroup: u32,
}

/// The samples of a split with their pictures.
#[derive(Debug)]
pub struct Split {
    /// One row a sample.
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
    File { file: File, path: PathBuf, places: Vec<(u64, u32)> },
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
            Pictures::File { file, path, places } => {
                let (start, length) = places[index];
                let mut image = vec![0; num::widen(length)];
                file.read_exact_at(&mut image, start)
                    .context(|| format!("reading {}", path.display()))?;
                decode(&image, self.side, path, index).map(Cow::from)
            }
        }
    }

    /// Writes the pictures of the rows `indices`, normalised, to `out` [n, 3, S, S].
    ///
    /// # Panics
    /// If `out` has another length than n · 3 · S · S, or an index is out of range.
    pub fn pixels(&self, indices: &[usize], out: &mut [f32]) -> Result<()> {
        let size = 3 * self.side * self.side;
        assert_eq!(out.len(), indices.len() * size, "pixels: the length of `out`");
        par::try_for_each_chunk(out, size, |i, picture| {
            self.normalise.apply(&self.planes(indices[i])?, picture);
            Ok(())
        })
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
