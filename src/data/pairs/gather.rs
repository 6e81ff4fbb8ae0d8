//! From a stream of pairs to a collection: decode, tolerate what is bad, split, repeat by
//! weight.
//!
//! Nothing here depends on arrival order but the order of samples: splits and fractions of
//! weights follow from hashes of the pairs' names.

use super::{Fault, Pair, Skipped, Tally, Tolerance};
use crate::config::DatasetConfig;
use crate::data::collection::{Collection, Concept, Layout, Reading, Sample};
use crate::data::splits::{TRAIN, VAL, hash};
use crate::data::spool::{Spool, Stored};
use crate::error::{Error, Result};
use crate::image;
use crate::par;

/// Split of the pictures that are neither trained nor chosen with.
const TEST: &str = "test";
/// Pairs decoded at a time.
const CHUNK: usize = 256;
/// One training pair in this many goes to a split that a source lacks.
const ONE_IN: u32 = 10;
/// Steps of a fraction of a weight.
const FRACTIONS: u32 = 1 << 20;

/// Reads every pair of the configured source.
pub(in crate::data) fn collect(
    config: &DatasetConfig,
    spool: &mut Spool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Collection, Vec<Skipped>)> {
    let name = config.source.name();
    let Some(stream) = super::open(config)? else {
        return Err(Error::failed(format!("source: {name} does not read pairs")));
    };

    let mut gathered = Gathered {
        side: config.image_size,
        tolerance: Tolerance::new(config.corrupt_share, "dataset.corrupt_share"),
        waiting: Vec::new(),
        entries: Vec::new(),
        spool,
    };

    // Pictures are decoded a chunk at a time: in parallel, and with memory for one chunk.
    stream.each(&mut |found| {
        match found {
            super::Found::Bad(bad) => gathered.tolerance.reject(bad)?,
            super::Found::Pair(pair) => gathered.waiting.push(pair),
        }

        if gathered.waiting.len() == CHUNK {
            gathered.decode()?;
            let done = gathered.entries.len();
            progress(done, stream.total().unwrap_or(done));
        }
        Ok(())
    })?;
    gathered.decode()?;

    let tally = gathered.tolerance.finish()?;
    let reading = Reading {
        read: tally.read,
        skipped: tally.by_fault(),
        left_out: stream.left_out(),
    };
    let Tally { skipped, .. } = tally;

    // Pictures to choose and to test with are drawn before training pictures are repeated, so
    // that no copy of one is trained on.
    let entries = weighted(completed(gathered.entries));
    if !entries.iter().any(|entry| entry.split == TRAIN) {
        let files = stream.files();
        let first = files.first().map(|(_, path)| path.display().to_string());
        let (count, place) = (entries.len(), first.unwrap_or_default());
        return Err(Error::usage(format!(
            "none of the {count} pictures that {place} and the files beside it name is in \
             the split train"
        )));
    }
    Ok((Collection { reading, ..assemble(entries, name) }, skipped))
}

/// One file in ten is a test picture and one in ten validates.
pub(super) fn default_split(key: &str) -> String {
    match hash(&format!("split:{key}"), 10) {
        0 => TEST,
        1 => VAL,
        _ => TRAIN,
    }
    .to_owned()
}

/// A decoded pair.
#[derive(Debug, Clone)]
struct Entry {
    key: String,
    split: String,
    png: Stored,
    captions: Vec<String>,
    concept: String,
    weight: f64,
}

/// Pairs on their way into a collection.
struct Gathered<'a> {
    side: usize,
    tolerance: Tolerance,
    waiting: Vec<Pair>,
    entries: Vec<Entry>,
    spool: &'a mut Spool,
}

impl Gathered<'_> {
    /// Decodes what waits, side by side; what cannot be decoded is a bad pair.
    fn decode(&mut self) -> Result<()> {
        let (waiting, side) = (std::mem::take(&mut self.waiting), self.side);
        let one = |pair: &Pair| -> Result<Vec<u8>> {
            image::encode_png(&image::square_over_white(&pair.image, &pair.key, side)?)
        };

        // A picture that cannot be decoded is a bad pair, and not the end of the reading.
        let made = par::map(waiting.len(), |i| one(&waiting[i]));

        for (pair, png) in waiting.into_iter().zip(made) {
            match png {
                Ok(png) => {
                    self.tolerance.accept();
                    self.entries.push(entry(pair, self.spool.store(&png)?));
                }
                Err(error) => {
                    let (fault, reason) = (Fault::TornPicture, error.chain());
                    self.tolerance.reject(Skipped { key: pair.key, fault, reason })?;
                }
            }
        }
        Ok(())
    }
}

fn entry(pair: Pair, png: Stored) -> Entry {
    let (concept, split) = (concept_of(&pair), split_of(&pair));
    let Pair { key, captions, weight, .. } = pair;
    Entry { key, split, png, captions, concept, weight }
}

/// What a picture shows: its class, or what is said about it first.
pub(super) fn concept_of(pair: &Pair) -> String {
    let text = pair.class.as_ref().or(pair.captions.first());
    text.map(|text| text.to_lowercase()).unwrap_or_default()
}

/// The split of a pair by our name for it.
pub(super) fn split_of(pair: &Pair) -> String {
    match pair.split.as_deref() {
        None => default_split(&pair.key),
        // Karpathy's `restval` is trained on; the others are other words for ours.
        Some("training" | "restval") => TRAIN.to_owned(),
        Some("validation" | "valid" | "dev") => VAL.to_owned(),
        Some(split) => split.to_owned(),
    }
}

/// The splits that a source does not have, and that get training pairs instead: one to choose
/// with, and one to test on, which is never the one to choose with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lacking {
    val: bool,
    test: bool,
}

impl Lacking {
    /// What a source with these splits lacks.
    pub(super) fn of<'s>(splits: impl IntoIterator<Item = &'s str>) -> Self {
        let mut lacking = Self { val: true, test: true };
        for split in splits {
            lacking.val &= split != VAL;
            lacking.test &= !is_test(split);
        }
        lacking
    }

    /// The split of a training pair: one in ten goes to each split that is lacking.
    pub(super) fn split(self, lot: Lot) -> &'static str {
        match lot {
            Lot { validates: true, .. } if self.val => VAL,
            Lot { tests: true, .. } if self.test => TEST,
            Lot { .. } => TRAIN,
        }
    }
}

/// What a training pair is drawn for by its name, where its source lacks a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lot {
    validates: bool,
    tests: bool,
}

impl Lot {
    /// The lot of the pair with that name.
    pub(super) fn of(key: &str) -> Self {
        let is_drawn = |split: &str| hash(&format!("{split}:{key}"), ONE_IN) == 0;
        Self { validates: is_drawn(VAL), tests: is_drawn(TEST) }
    }
}

/// Whether pictures of that split are neither trained nor chosen with.
pub(super) fn is_test(split: &str) -> bool {
    split != TRAIN && split != VAL
}

/// Gives the splits that a source lacks one training pair in ten each.
fn completed(mut entries: Vec<Entry>) -> Vec<Entry> {
    let lacking = Lacking::of(entries.iter().map(|entry| entry.split.as_str()));
    let split = |entry: &Entry| lacking.split(Lot::of(&entry.key));

    let trains = |entry: &Entry| entry.split == TRAIN;
    if entries.iter().any(|entry| trains(entry) && split(entry) == TRAIN) {
        for entry in entries.iter_mut().filter(|entry| trains(entry)) {
            entry.split = split(entry).to_owned();
        }
    }
    entries
}

/// Repeats training pairs by their weights: 2 is twice, 0.25 is one in four.
fn weighted(entries: Vec<Entry>) -> Vec<Entry> {
    let copies = |entry: &Entry| {
        if entry.split != TRAIN {
            return 1;
        }

        // The fraction of a weight is the chance of one copy more, drawn by the pair's
        // name.
        let draw = f64::from(hash(&format!("weight:{}", entry.key), FRACTIONS));
        let more = draw < entry.weight.fract() * f64::from(FRACTIONS);
        crate::num::truncate_usize(entry.weight) + usize::from(more)
    };

    let repeat = |entry: Entry| {
        let count = copies(&entry);
        std::iter::repeat_n(entry, count)
    };
    entries.into_iter().flat_map(repeat).collect()
}

/// Entries as a collection.
fn assemble(entries: Vec<Entry>, source: &str) -> Collection {
    // Concepts are numbered in the order of their keys, whatever the order of the pictures.
    let mut keys: Vec<String> = entries.iter().map(|e| e.concept.clone()).collect();
    keys.sort();
    keys.dedup();

    let mut tests: Vec<String> = entries.iter().map(|e| e.split.clone()).collect();
    tests.sort();
    tests.dedup();
    tests.retain(|split| is_test(split));

    let concepts = keys.iter().map(|key| Concept {
        key: key.clone(),
        label: key.clone(),
        tags: Vec::new(),
        group: 0,
        subgroup: 0,
        held_out: false,
    });

    let samples = entries.into_iter().map(|entry| Sample {
        split: entry.split,
        png: entry.png,
        names: entry.captions.clone(),
        captions: entry.captions,
        concept: keys.partition_point(|key| *key < entry.concept),
        style: source.to_owned(),
    });

    let mut splits = vec![TRAIN.to_owned(), VAL.to_owned()];
    splits.extend(tests.iter().cloned());

    Collection {
        samples: samples.collect(),
        concepts: concepts.collect(),
        groups: vec!["all".to_owned()],
        subgroups: vec!["all".to_owned()],
        splits,
        reading: Reading::default(),
        layout: Layout {
            source: source.to_owned(),
            retrieval: tests.first().cloned().unwrap_or_else(|| VAL.to_owned()),
            shifts: tests.clone(),
            tests,
            held_out: None,
            classes: None,
            templates: ["{}", "a photo of {}", "a picture of {}"]
                .map(str::to_owned)
                .to_vec(),
            attribution: vec!["the user's own pictures".to_owned()],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(n: usize, split: &str, weight: f64) -> Vec<Entry> {
        let folder = tempfile::tempdir().unwrap();
        let png = Spool::beside(folder.path()).unwrap().store(b"").unwrap();
        let one = |i: usize| Entry {
            key: format!("{split}{i}"),
            split: split.to_owned(),
            png: png.clone(),
            captions: vec!["a".to_owned()],
            concept: "a".to_owned(),
            weight,
        };
        (0..n).map(one).collect()
    }

    #[test]
    fn a_weight_repeats_training_pairs_and_no_others() {
        let of = |weight: f64| weighted(entries(4000, TRAIN, weight)).len();
        assert_eq!((of(0.0), of(1.0), of(3.0)), (0, 4000, 12000));
        for (weight, expected) in [(0.25, 1000), (2.5, 10000)] {
            assert!(of(weight).abs_diff(expected) < 150, "{weight}: {}", of(weight));
        }
        assert_eq!(weighted(entries(50, "test", 0.0)).len(), 50);
    }

    #[test]
    fn a_split_that_a_source_lacks_gets_a_tenth_of_its_training() {
        let counts = |all: Vec<Entry>| {
            let found = completed(all);
            [TRAIN, VAL, TEST].map(|s| found.iter().filter(|e| e.split == s).count())
        };
        let of = |val: usize, test: usize| {
            let all = [
                entries(2000, TRAIN, 1.0),
                entries(val, VAL, 1.0),
                entries(test, TEST, 1.0),
            ];
            counts(all.concat())
        };

        let [_, val, test] = of(0, 100);
        assert!(val.abs_diff(200) < 50 && test == 100);
        let [_, val, test] = of(100, 0);
        assert!(val == 100 && test.abs_diff(200) < 50);
        let [train, val, test] = of(0, 0);
        assert!(
            val.abs_diff(200) < 50
                && test.abs_diff(180) < 50
                && train + val + test == 2000
        );
        assert_eq!(of(1, 1), [2000, 1, 1]);
    }
}
