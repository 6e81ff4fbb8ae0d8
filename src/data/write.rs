//! Writing a collection: Parquet files, the tokenizer, `dataset.json`.

use std::collections::BTreeMap;
use std::path::Path;

use super::collection::{Collection, Concept, Meta, Reading, Sample};
use super::pairs::Skipped;
use super::splits;
use crate::config::DatasetConfig;
use crate::error::{Context, Error, Result};
use crate::image::{self, Normalise};
use crate::io::table::TableWriter;
use crate::num;
use crate::par;
use crate::tables::{self, ConceptRow, LabelRow, PictureRow, Row as _, SampleRow};
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
        let path = out.join(SampleRow::file(split));
        write_samples(&path, &samples, first, collection)?;
        first += samples.len();
        counts.insert(split.clone(), samples.len());
    }

    tables::write(&out.join(ConceptRow::FILE), concept_rows(collection))?;
    tables::write(&out.join(LabelRow::FILE), label_rows(collection))?;

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

/// Writes the samples of a split, the first of which has number `first`.
fn write_samples(
    path: &Path,
    samples: &[&Sample],
    first: usize,
    collection: &Collection,
) -> Result<()> {
    let mut writer = TableWriter::create(path)?;

    // A split without samples has a file, too: its columns without rows.
    let parts = samples.chunks(PART).chain(samples.is_empty().then_some(samples));
    for (index, part) in parts.enumerate() {
        let numbered = (first + index * PART..).zip(part);
        let rows =
            numbered.map(|(number, sample)| picture_row(sample, number, collection));
        writer.push(&tables::to_table(rows.collect::<Result<Vec<_>>>()?)?)?;
    }
    writer.finish()
}

fn picture_row(
    sample: &Sample,
    number: usize,
    collection: &Collection,
) -> Result<PictureRow> {
    let image = sample.png.read()?;
    let concept = &collection.concepts[sample.concept];
    let sample = SampleRow {
        sample: num::index_u32(number),
        bytes: num::index_u32(image.len()),
        captions: sample.captions.clone(),
        names: sample.names.clone(),
        concept: num::index_u32(sample.concept),
        style: sample.style.clone(),
        group: num::index_u32(concept.group),
        subgroup: num::index_u32(concept.subgroup),
    };
    Ok(PictureRow { sample, image })
}

fn concept_rows(collection: &Collection) -> Vec<ConceptRow> {
    let row = |(index, concept): (usize, &Concept)| ConceptRow {
        concept: num::index_u32(index),
        key: concept.key.clone(),
        label: concept.label.clone(),
        tags: concept.tags.clone(),
        group: num::index_u32(concept.group),
        subgroup: num::index_u32(concept.subgroup),
        held_out: concept.held_out,
    };
    collection.concepts.iter().enumerate().map(row).collect()
}

/// The groups, then the subgroups, each numbered from 0.
fn label_rows(collection: &Collection) -> Vec<LabelRow> {
    let kinds = [
        (LabelRow::GROUP, &collection.groups),
        (LabelRow::SUBGROUP, &collection.subgroups),
    ];
    let rows = kinds.into_iter().flat_map(|(kind, names)| {
        names.iter().enumerate().map(|(index, name)| LabelRow {
            kind: kind.to_owned(),
            index: num::index_u32(index),
            name: name.clone(),
        })
    });
    rows.collect()
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

    // All pictures of a data set have one size, so one of them gives the number of
    // pixels.
    let pixels: u64 = samples
        .first()
        .map(|s| image::decode(&s.png.read()?, "of the data set"))
        .transpose()?
        .map_or(1, |p| (p.width * p.height * samples.len()) as u64);

    let (mut mean, mut std) = ([0.0; 3], [0.0; 3]);
    for c in 0..3 {
        let first: u64 = sums.iter().map(|s| s[c][0]).sum();
        let second: u64 = sums.iter().map(|s| s[c][1]).sum();

        let center = first as f64 / pixels as f64;
        let variance = second as f64 / pixels as f64 - center * center;
        mean[c] = num::round_f32(center / 255.0);
        // A data set of one flat color must not divide by zero.
        std[c] = num::round_f32((variance.max(1.0)).sqrt() / 255.0);
    }
    Ok((mean, std))
}
