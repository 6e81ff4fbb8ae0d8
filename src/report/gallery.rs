//! What the experts did with single samples: the validation pictures that the analysis looked
//! at, their captions, and the tokens and embeddings of the runs that the report draws.
//!
//! Everything is of the first seed: pictures of one model are shown, not means over several.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::find::Find;
use crate::config::Config;
use crate::error::{Context as _, Result};
use crate::io::table::TableReader;
use crate::tables::{
    self, ConceptRow, EmbeddingRow, LabelRow, PictureRow, RoutedTokenRow, SampleRow,
};

/// Categories that have a color of their own; the others are one category together.
const CATEGORIES: usize = 9;

/// What a category is called that holds all the small ones.
const OTHERS: &str = "others";

/// The samples, and what models made of them.
#[derive(Debug, Clone, Default)]
pub struct Gallery {
    /// In the order of the validation split.
    pub samples: Vec<GallerySample>,
    /// Names of the categories, the most frequent first; one at most where the data set has
    /// no labels to tell samples apart.
    pub categories: Vec<String>,
    /// Patches along a side of a picture.
    pub patches: usize,
    /// `tokens.parquet` of the runs that are drawn.
    pub tokens: BTreeMap<String, Vec<RoutedTokenRow>>,
    /// `embeddings.parquet` of the runs that are drawn.
    pub embeddings: BTreeMap<String, Vec<EmbeddingRow>>,
}

/// A validation sample.
#[derive(Debug, Clone, Default)]
pub struct GallerySample {
    /// Its number.
    pub sample: u32,
    /// Index of its category.
    pub category: usize,
    /// Its first caption.
    pub caption: String,
    /// The bytes of its picture, PNG.
    pub picture: Vec<u8>,
}

/// The labels of a sample, coarse to fine.
struct Labels {
    levels: [u32; 3],
    sample: GallerySample,
}

/// Reads the gallery of the given runs; `patches` stand along a side of a picture.
pub(super) fn load(
    config: &Config,
    runs: &BTreeSet<&String>,
    patches: usize,
    find: &Find<'_>,
) -> Result<Gallery> {
    let mut gallery = Gallery { patches, ..Gallery::default() };
    let Some(seed) = config.seeds.first() else { return Ok(gallery) };
    for &run in runs {
        let folder = find("analyze", &format!("{run}-s{seed}"))?;
        gallery.tokens.insert(run.clone(), tables::read(&folder)?);
        gallery.embeddings.insert(run.clone(), tables::read(&folder)?);
    }

    // The first rows of the split are those that the analysis looked at.
    let folder = find("dataset", "")?;
    let rows = gallery.embeddings.values().flatten();
    let wanted: BTreeSet<u32> = rows.map(|row| row.sample).collect();
    let labels = if wanted.is_empty() {
        Vec::new()
    } else {
        samples(&folder.join(SampleRow::file("val")), &wanted)?
    };
    gallery.categories =
        categories(&folder, &labels)?.apply(labels, &mut gallery.samples);
    Ok(gallery)
}

/// The wanted samples. The table is streamed: it holds a whole split.
fn samples(path: &Path, wanted: &BTreeSet<u32>) -> Result<Vec<Labels>> {
    let context = || format!("reading {}", path.display());
    let mut reader = TableReader::open(path).context(context)?;

    let mut found = Vec::new();
    while let Some(part) = reader.next().context(context)? {
        let rows: Vec<PictureRow> = tables::from_table(part).context(context)?;
        let shown = rows.into_iter().filter(|row| wanted.contains(&row.sample.sample));
        found.extend(shown.map(|row| Labels {
            levels: [row.sample.group, row.sample.subgroup, row.sample.concept],
            sample: GallerySample {
                sample: row.sample.sample,
                category: 0,
                caption: row.sample.captions.into_iter().next().unwrap_or_default(),
                picture: row.image,
            },
        }));
    }
    Ok(found)
}

/// The level of labels that tells samples apart, and its names.
struct Level {
    /// Index into [`Labels::levels`]; `None` where no level tells them apart.
    index: Option<usize>,
    names: Vec<String>,
}

/// The coarsest level with more than one label.
fn categories(folder: &Path, labels: &[Labels]) -> Result<Level> {
    let distinct = |level: usize| {
        labels.iter().map(|row| row.levels[level]).collect::<BTreeSet<u32>>().len()
    };
    let index = (0..3).find(|&level| distinct(level) > 1);

    // Concepts have a table of their own; groups and subgroups share one.
    let names = match index {
        None => Vec::new(),
        Some(2) => {
            let concepts: Vec<ConceptRow> = tables::read(folder)?;
            concepts.into_iter().map(|row| row.label).collect()
        }
        Some(level) => {
            let labels: Vec<LabelRow> = tables::read(folder)?;
            let wanted = [LabelRow::GROUP, LabelRow::SUBGROUP][level];
            let own = labels.into_iter().filter(|row| row.kind == wanted);
            own.map(|row| row.name).collect()
        }
    };
    Ok(Level { index, names })
}

impl Level {
    /// Gives every sample its category; the names of the categories come back, the most
    /// frequent first.
    fn apply(&self, labels: Vec<Labels>, out: &mut Vec<GallerySample>) -> Vec<String> {
        let Some(level) = self.index else {
            out.extend(labels.into_iter().map(|row| row.sample));
            return Vec::new();
        };

        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for row in &labels {
            *counts.entry(row.levels[level]).or_default() += 1;
        }
        let mut order: Vec<(u32, usize)> = counts.into_iter().collect();
        order.sort_by_key(|&(label, count)| (std::cmp::Reverse(count), label));

        // One color is kept for the small categories, if there are too many.
        let crowded = order.len() > CATEGORIES;
        order.truncate(if crowded { CATEGORIES - 1 } else { CATEGORIES });
        let place: BTreeMap<u32, usize> =
            order.iter().enumerate().map(|(index, &(label, _))| (label, index)).collect();
        out.extend(labels.into_iter().map(|row| {
            let category = place.get(&row.levels[level]).copied();
            GallerySample { category: category.unwrap_or(order.len()), ..row.sample }
        }));

        // The color after the last kept one is that of the small ones.
        let name = |&(label, _): &(u32, usize)| {
            let name = self.names.get(crate::num::widen(label)).cloned();
            name.unwrap_or_else(|| format!("label {label}"))
        };
        let others = crowded.then(|| OTHERS.to_owned());
        order.iter().map(name).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_categories_come_first_and_the_small_ones_together() {
        let row = |group: u32| Labels {
            levels: [group, 0, 0],
            sample: GallerySample { sample: group, ..GallerySample::default() },
        };
        // Label g occurs g + 1 times, for 12 labels.
        let labels: Vec<Labels> =
            (0..12_u32).flat_map(|g| (0..=g).map(move |_| row(g))).collect();
        let names = (0..12).map(|g| format!("group {g}")).collect();
        let mut out = Vec::new();
        let level = Level { index: Some(0), names };
        let found = level.apply(labels, &mut out);
        assert_eq!(found.len(), CATEGORIES);
        assert_eq!((found[0].as_str(), found[8].as_str()), ("group 11", "others"));
        let of = |group| out.iter().find(|s| s.sample == group).unwrap().category;
        assert_eq!((of(11), of(4), of(3), of(0)), (0, 7, 8, 8));
    }
}
