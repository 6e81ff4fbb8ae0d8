//! Writing a collection: Parquet files, the tokenizer, `dataset.json`.

use std::collections::BTreeMap;
use std::path::Path;

use super::collection::{Collection, Meta, Reading, Sample};
use super::pairs::Skipped;
use super::splits;
use crate::config::DatasetConfig;
use crate::error::{Context, Error, Result};
use crate::image::{self, Normalise};
use crate::io::table::{Column, Table, TableWriter};
use crate::num;
use crate::par;
use crate::text::{self, Tokenizer};

/// Samples per table part, bounding the memory of a write.
const PART: usize = 1024;

/// What was built, for the log and the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Pictures of every split.
    pub splits: BTreeMap<String, usize>,
    /// Pictures of every style.
    pub styles: BTreeMap<String, usize>,
    /// Number of concepts.
    pub concepts: usize,
    /// Entries of the tokenizer.
    pub vocabulary: usize,
    /// What became of the source's pictures.
    pub reading: Reading,
    /// Pairs of the source that could not be used.
    pub skipped: Vec<Skipped>,
}

/// Writes every file of the data set into `out`.
pub(super) fn write(
    collection: &Collection,
    config: &DatasetConfig,
    out: &Path,
) -> Result<Summary> {
    let of = |split: &str| -> Vec<&Sample> {
        collection.samples.iter().filter(|s| s.split == split).collect()
    };
    let training = of(splits::TRAIN);
    if training.is_empty() {
        return Err(Error::usage("the data set has no training pictures"));
    }

    // Samples are numbered through all splits.
    let mut first = 0;
    let mut counts = BTreeMap::new();
    for split in &collection.splits {
        let samples = of(split);
        let path = out.join(format!("samples-{split}.parquet"));
        write_samples(&path, &samples, first, collection)?;
        first += samples.len();
        counts.insert(split.clone(), samples.len());
    }

    write_concepts(&out.join("concepts.parquet"), collection)?;
    write_labels(&out.join("labels.parquet"), collection)?;

    // Only what is trained on may shape the tokenizer and the normalization.
    let captions: Vec<String> =
        training.iter().flat_map(|sample| sample.captions.iter().cloned()).collect();
    let json = text::train(&captions, config.vocabulary)?;
    write_text(&out.join("tokenizer.json"), &json)?;
    let vocabulary = Tokenizer::parse(json.as_bytes())?.vocabulary();
    let (mean, std) = moments(&training)?;
    let meta = Meta {
        layout: collection.layout.clone(),
        image_size: config.image_size,
        context: config.context,
        vocabulary,
        mean,
        std,
        splits: counts.clone(),
        reading: collection.reading.clone(),
    };
    let json = serde_json::to_string_pretty(&meta)
        .context(|| "describing the data set".to_owned())?;
    write_text(&out.join("dataset.json"), &(json + "\n"))?;

    let mut styles = BTreeMap::new();
    for sample in &collection.samples {
        *styles.entry(sample.style.clone()).or_insert(0) += 1;
    }
    let concepts = collection.concepts.len();
    Ok(Summary {
        splits: counts,
        styles,
        concepts,
        vocabulary,
        reading: collection.reading.clone(),
        skipped: Vec::new(),
    })
}

/// Replaces the trained tokenizer and the measured moments of a written data set by those of
/// a model that is already there.
pub fn adopt(out: &Path, tokenizer: &Tokenizer, normalise: Normalise) -> Result<()> {
    let path = out.join("dataset.json");
    let place = path.display();
    let text = std::fs::read_to_string(&path).context(|| format!("reading {place}"))?;
    let meta: Meta = serde_json::from_str(&text)
        .map_err(|e| Error::corrupt(format!("{place} is damaged")).caused_by(e))?;
    let Normalise { mean, std } = normalise;
    let meta = Meta { vocabulary: tokenizer.vocabulary(), mean, std, ..meta };
    let json = serde_json::to_string_pretty(&meta)
        .context(|| "describing the data set".to_owned())?;
    write_text(&path, &(json + "\n"))?;
    write_text(&out.join("tokenizer.json"), &tokenizer.json()?)
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).context(|| format!("writing {}", path.display()))
}

fn write_samples(
    path: &Path,
    samples: &[&Sample],
    first: usize,
    collection: &Collection,
) -> Result<()> {
    let mut writer = TableWriter::create(path)?;
    let parts = samples.chunks(PART).chain(samples.is_empty().then_some(samples));
    for (index, part) in parts.enumerate() {
        let images: Vec<Vec<u8>> =
            part.iter().map(|s| s.png.read()).collect::<Result<_>>()?;
        let lengths = images.iter().map(|png| num::index_u32(png.len())).collect();
        let ids = (0..part.len()).map(|i| num::index_u32(first + index * PART + i));
        let concept = |s: &&&Sample| &collection.concepts[s.concept];
        let indices = |of: &dyn Fn(&&&Sample) -> usize| {
            Column::U32(part.iter().map(|s| num::index_u32(of(&s))).collect())
        };
        let table = Table::new()
            .with("sample", Column::U32(ids.collect()))
            .with("image", Column::Bytes(images))
            .with("bytes", Column::U32(lengths))
            .with(
                "captions",
                Column::TextList(part.iter().map(|s| s.captions.clone()).collect()),
            )
            .with(
                "names",
                Column::TextList(part.iter().map(|s| s.names.clone()).collect()),
            )
            .with("concept", indices(&|s| s.concept))
            .with("style", Column::Text(part.iter().map(|s| s.style.clone()).collect()))
            .with("group", indices(&|s| concept(s).group))
            .with("subgroup", indices(&|s| concept(s).subgroup));
        writer.push(&table)?;
    }
    writer.finish()
}

fn write_concepts(path: &Path, collection: &Collection) -> Result<()> {
    let concepts = &collection.concepts;
    let indices = |of: &dyn Fn(usize) -> usize| {
        Column::U32((0..concepts.len()).map(|i| num::index_u32(of(i))).collect())
    };
    Table::new()
        .with("concept", indices(&|i| i))
        .with("key", Column::Text(concepts.iter().map(|c| c.key.clone()).collect()))
        .with("label", Column::Text(concepts.iter().map(|c| c.label.clone()).collect()))
        .with("tags", Column::TextList(concepts.iter().map(|c| c.tags.clone()).collect()))
        .with("group", indices(&|i| concepts[i].group))
        .with("subgroup", indices(&|i| concepts[i].subgroup))
        .with("held_out", Column::Bool(concepts.iter().map(|c| c.held_out).collect()))
        .write(path)
}

fn write_labels(path: &Path, collection: &Collection) -> Result<()> {
    let kinds = [("group", &collection.groups), ("subgroup", &collection.subgroups)];
    let (mut kind, mut index, mut name) = (Vec::new(), Vec::new(), Vec::new());
    for (of, names) in kinds {
        for (i, label) in names.iter().enumerate() {
            kind.push(of.to_owned());
            index.push(num::index_u32(i));
            name.push(label.clone());
        }
    }
    Table::new()
        .with("kind", Column::Text(kind))
        .with("index", Column::U32(index))
        .with("name", Column::Text(name))
        .write(path)
}

/// Mean and standard deviation of the channels on the scale 0..1.
///
/// Sums are integers: they do not depend on the order of adding.
fn moments(samples: &[&Sample]) -> Result<([f32; 3], [f32; 3])> {
    let sums = par::try_map(samples.len(), |i| -> Result<[[u64; 2]; 3]> {
        let picture = image::decode(&samples[i].png.read()?, "of the data set")?;
        let mut sums = [[0_u64; 2]; 3];
        for pixel in picture.rgb.chunks_exact(3) {
            for (sum, &level) in sums.iter_mut().zip(pixel) {
                sum[0] += u64::from(level);
                sum[1] += u64::from(level) * u64::from(level);
            }
        }
        Ok(sums)
    })?;
    let pixels: u64 = samples
        .first()
        .map(|s| image::decode(&s.png.read()?, "of the data set"))
        .transpose()?
        .map_or(1, |p| (p.width * p.height * samples.len()) as u64);
    let (mut mean, mut std) = ([0.0; 3], [0.0; 3]);
    for c in 0..3 {
        let first: u64 = sums.iter().map(|s| s[c][0]).sum();
        let second: u64 = sums.iter().map(|s| s[c][1]).sum();
        let centre = first as f64 / pixels as f64;
        let variance = second as f64 / pixels as f64 - centre * centre;
        mean[c] = num::round_f32(centre / 255.0);
        // A data set of one flat colour must not divide by zero.
        std[c] = num::round_f32((variance.max(1.0)).sqrt() / 255.0);
    }
    Ok((mean, std))
}
