//! Emoji as twelve icon sets draw them: real pictures with real names (docs/dataset.md).
//!
//! Eight styles train; four are never trained on and serve as natural distribution shifts.
//! The counts of mapped icons are pinned: a new version of a package shows as an error and
//! not as a silently different data set.

mod captions;
mod concepts;
mod mapping;

use std::collections::BTreeMap;
use std::path::Path;

use self::concepts::Concepts;
use self::mapping::{CHARTED, Names, Row};
use super::captions::names;
use super::collection::{Collection, Layout, Reading, Sample};
use super::packages::{self, Canvas, IconSet};
use super::splits::{self, Rules};
use super::spool::{Spool, Stored};
use crate::config::{DatasetConfig, Source};
use crate::error::{Context, Error, Result};
use crate::rng;

/// A style: the icon set, its split if it is never trained on, and the pinned numbers of
/// icons that are recognized, without and with skin tones.
struct Style {
    set: &'static str,
    split: Option<&'static str>,
    plain: usize,
    all: usize,
}

const fn style(
    set: &'static str,
    split: Option<&'static str>,
    plain: usize,
    all: usize,
) -> Style {
    Style { set, split, plain, all }
}

/// The styles in the order of their samples.
const STYLES: [Style; 12] = [
    style("emojione", None, 1371, 1791),
    style("emojione-monotone", None, 1365, 1365),
    style("emojione-v1", None, 1170, 1170),
    style("fxemoji", None, 535, 535),
    style("noto", None, 1652, 3442),
    style("openmoji", None, 1914, 3704),
    style("streamline-emojis", None, 779, 779),
    style("twemoji", None, 1914, 3709),
    style("fluent-emoji-flat", Some("v2"), 1594, 3139),
    style("fluent-emoji", Some("3d"), 1590, 3120),
    style("fluent-emoji-high-contrast", Some("sketch"), 1594, 1594),
    style("noto-v1", Some("blob"), 1232, 2117),
];

/// Concepts and held-out concepts of emojibase-data 17.
const CONCEPTS: (usize, usize) = (1914, 71);

/// Splits in the order of their files.
const SPLITS: [&str; 8] = [
    splits::TRAIN,
    splits::VAL,
    splits::PAIR,
    splits::HELD_OUT,
    "v2",
    "3d",
    "sketch",
    "blob",
];

const ATTRIBUTION: [&str; 9] = [
    "Noto Emoji by Google, Apache-2.0 (sets noto, noto-v1)",
    "Firefox OS Emoji by Mozilla, Apache-2.0 (set fxemoji)",
    "Fluent Emoji by Microsoft, MIT (sets fluent-emoji, -flat, -high-contrast)",
    "Emoji One by Emoji One, CC BY 4.0 (sets emojione, emojione-monotone)",
    "Emoji One (v1) by Emoji One, CC BY-SA 4.0 (set emojione-v1)",
    "Twitter Emoji by Twitter, CC BY 4.0 (set twemoji)",
    "Streamline Emojis by Streamline, CC BY 4.0 (set streamline-emojis)",
    "OpenMoji by OpenMoji, CC BY-SA 4.0 (set openmoji)",
    "emojibase-data by Miles Johnson, MIT (labels, tags, groups)",
];

/// Reads, recognizes, splits and renders the emoji.
pub(super) fn collect(
    config: &DatasetConfig,
    cache: &Path,
    seed: u64,
    (spool, progress): (&mut Spool, &mut dyn FnMut(usize, usize)),
) -> Result<Collection> {
    packages::require(Source::Emoji, cache)?;
    let labels = unpack(
        "emojibase-data",
        cache,
        &["package/en/data.json", "package/meta/groups.json"],
    )?;

    let concepts = Concepts::parse(
        &labels["package/en/data.json"],
        &labels["package/meta/groups.json"],
    )?;

    let held_out = concepts.list.iter().filter(|c| c.held_out).count();
    let mut changed = Changed::default();
    changed.compare("concepts", (concepts.list.len(), held_out), CONCEPTS);

    let mut sets = BTreeMap::new();
    for style in &STYLES {
        sets.insert(style.set, open(style.set, cache)?);
    }

    let charted: Vec<_> =
        CHARTED.iter().map(|&set| (set, sets[set].1.clone(), &sets[set].0)).collect();
    let names = Names::new(&concepts, &charted);

    let mut rows: Vec<(&Style, Row)> = Vec::new();
    for style in &STYLES {
        let (icons, chars) = &sets[style.set];
        let mut found = names.rows(&concepts, style.set, icons, chars);

        // Counts are compared before the configuration leaves skin tones out: the pins
        // know both.
        let plain = found.iter().filter(|row| !row.tone).count();
        changed.compare(style.set, (plain, found.len()), (style.plain, style.all));
        found.retain(|row| config.skin_tones || !row.tone);
        rows.extend(found.into_iter().map(|row| (style, row)));
    }

    changed.refuse()?;
    let pngs = render(config, &sets, &rows, (spool, progress))?;

    let read = rows.len();
    let drawn: Vec<_> =
        rows.into_iter().zip(pngs).filter_map(|(row, png)| Some((row, png?))).collect();

    let (blank, n_drawn) = (read - drawn.len(), drawn.len());

    let mut collection = split(concepts, drawn, seed);
    let given_up = n_drawn - collection.samples.len();
    let skipped = [("empty drawing", blank), (splits::GIVEN_UP, given_up)];
    collection.reading = Reading {
        read,
        skipped: skipped
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(reason, n)| (reason.to_owned(), n))
            .collect(),
        ..Reading::default()
    };
    Ok(collection)
}

/// Counts that differ from the pinned ones.
#[derive(Default)]
struct Changed(Vec<String>);

impl Changed {
    fn compare(&mut self, what: &str, found: (usize, usize), pinned: (usize, usize)) {
        if found != pinned {
            self.0.push(format!("{what} {found:?} instead of {pinned:?}"));
        }
    }

    fn refuse(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "the emoji are not the pinned ones, a package or its reading changed: {}",
            self.0.join("; ")
        )))
    }
}

fn unpack(name: &str, cache: &Path, files: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
    packages::extract(packages::open(Source::Emoji, name, cache)?, files, name)
}

/// An icon set and its table from code points to names, empty for most.
fn open(set: &str, cache: &Path) -> Result<(IconSet, BTreeMap<String, String>)> {
    let (icons, chars) = ("package/icons.json", "package/chars.json");
    let files = unpack(&format!("@iconify-json/{set}"), cache, &[icons, chars])?;
    let chars = serde_json::from_slice(&files[chars])
        .context(|| format!("reading chars.json of {set}"))?;
    Ok((IconSet::parse(&files[icons], set)?, chars))
}

/// Renders every row to PNG in parallel, in order; `None` for an empty drawing.
fn render(
    config: &DatasetConfig,
    sets: &BTreeMap<&str, (IconSet, BTreeMap<String, String>)>,
    rows: &[(&Style, Row)],
    (spool, progress): (&mut Spool, &mut dyn FnMut(usize, usize)),
) -> Result<Vec<Option<Stored>>> {
    let svg = |(style, row): &(&Style, Row)| {
        let (icons, _) = &sets[style.set];
        icons.svg(&icons.icons[&row.name])
    };
    let mut canvas = Canvas { side: config.image_size, spool };
    let drawn =
        packages::draw(rows, &svg, &mut canvas, &mut |done| progress(done, rows.len()))?;

    // Every drawing of the pinned sets can be drawn: one that cannot is an error here.
    let pngs = rows.iter().zip(drawn).map(|((style, row), drawing)| {
        let place = || format!("rendering {}:{}", style.set, row.name);
        Ok(drawing.context(place)?.map(|drawing| drawing.png))
    });
    pngs.collect()
}

/// Assigns splits and writes captions.
fn split(
    concepts: Concepts,
    drawn: Vec<((&Style, Row), Stored)>,
    seed: u64,
) -> Collection {
    let list = concepts.list;
    let items: Vec<(&str, &str)> = drawn
        .iter()
        .map(|((style, row), _)| (list[row.concept].key.as_str(), style.set))
        .collect();

    let rules = Rules {
        unseen: STYLES.iter().filter_map(|s| Some((s.set, s.split?))).collect(),
        held_out: list.iter().filter(|c| c.held_out).map(|c| c.key.as_str()).collect(),
        retrieval: splits::PAIR,
        one_in: 3,
    };

    let assigned = splits::assign(&items, &rules);

    let mut samples = Vec::with_capacity(drawn.len());
    for (((style, row), png), split) in drawn.into_iter().zip(assigned) {
        let Some(split) = split else { continue };
        let concept = &list[row.concept];
        let name = format!("dataset/captions/{}/{}", style.set, row.name);
        let subgroup = &concepts.subgroups[concept.subgroup];
        let mut stream = rng::stream(seed, &name);
        samples.push(Sample {
            split: split.to_owned(),
            png,
            captions: captions::captions(concept, subgroup, &row.name, &mut stream),
            names: names(concept),
            concept: row.concept,
            style: style.set.to_owned(),
        });
    }
    Collection {
        samples,
        concepts: list,
        groups: concepts.groups,
        subgroups: concepts.subgroups,
        splits: SPLITS.map(str::to_owned).to_vec(),
        reading: Reading::default(),
        layout: layout(),
    }
}

fn layout() -> Layout {
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    Layout {
        source: "emoji".to_owned(),
        tests: owned(&[splits::PAIR, "v2", "3d", "sketch", "blob"]),
        shifts: owned(&["v2", "3d", "sketch", "blob"]),
        retrieval: splits::PAIR.to_owned(),
        held_out: Some(splits::HELD_OUT.to_owned()),
        classes: None,
        templates: owned(&captions::TEMPLATES),
        attribution: owned(&ATTRIBUTION),
    }
}
