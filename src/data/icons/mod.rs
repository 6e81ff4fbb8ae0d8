//! The icons of all of iconify: as many styles as there are sets, and words for each picture
//! (docs/dataset.md).
//!
//! ```text
//! package ─ read: one set at a time ─► pictures with words ─► no drawing twice ─► splits ─► concepts
//! ```
//!
//! Five kinds of sets are never trained on and serve as natural distribution shifts: sets of
//! other makers, of several colors, of large pixels, of emoji in relief, of detailed symbols.
//! The numbers of sets and icons are pinned: another version of the package shows as an error
//! and not as a silently different data set.

mod captions;
mod concepts;
mod names;
mod read;

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::path::Path;

use self::concepts::Concepts;
use self::read::{Found, PACKAGE, Pictured, Set, Wanted};
use super::captions::names;
use super::collection::{Collection, Layout, Reading, Sample};
use super::packages::{self, Canvas};
use super::pairs::Skipped;
use super::splits::{self, Rules};
use super::spool::Spool;
use crate::config::{DatasetConfig, Source};
use crate::error::{Error, Result};
use crate::rng;

/// Sets and visible icons of the pinned version.
const PINNED: (usize, usize) = (238, 379_412);

/// Pictures of the retrieval task, one per concept.
const NEW: &str = "new";

/// One in so many concepts that enough sets draw has its picture there: some 4,500, of which
/// a fifth show a class.
const ONE_IN: u32 = 2;

/// The sets that are never trained on, by split. A maker's sets are held out together where
/// they share drawings.
const UNSEEN: [(&str, &[&str]); 5] = [
    (
        "vendor",
        &["gravity-ui", "humbleicons", "iconoir", "mage", "majesticons", "proicons"],
    ),
    (
        "color",
        &[
            "flat-color-icons",
            "flat-ui",
            "marketeq",
            "meteocons",
            "streamline-kameleon-color",
            "streamline-stickies-color",
        ],
    ),
    ("pixel", &["dinkie-icons", "memory", "pixel", "pixelarticons", "streamline-pixel"]),
    ("emoji", &["fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"]),
    ("game", &["game-icons"]),
];

/// Why a picture is left out that looks like an earlier one, pixel by pixel.
const SAME: &str = "same drawing as another icon";

/// Reads, draws, splits and names the icons; those that cannot be drawn are named beside them.
pub(super) fn collect(
    config: &DatasetConfig,
    cache: &Path,
    seed: u64,
    (spool, progress): (&mut Spool, &mut dyn FnMut(usize, usize)),
) -> Result<(Collection, Vec<Skipped>)> {
    packages::require(Source::Icons, cache)?;
    let open = || packages::open(Source::Icons, PACKAGE, cache);
    let wanted = Wanted { sets: read::listed(open()?)?, skin_tones: config.skin_tones };

    let mut canvas = Canvas { side: config.image_size, spool };
    let mut told = |done: usize| progress(done, PINNED.1);
    let found = read::read(open()?, &wanted, &mut canvas, &mut told)?;

    let counts = (found.sets.len(), found.read);
    if counts != PINNED {
        return Err(Error::corrupt(format!(
            "the icons are not the pinned ones, the package or its reading changed: \
             {counts:?} sets and icons instead of {PINNED:?}"
        )));
    }
    Ok(assemble(found, seed))
}

/// The collection of what was found.
fn assemble(found: Found, seed: u64) -> (Collection, Vec<Skipped>) {
    let Found { sets, icons, read, left_out, undrawable } = found;
    let unseen = unseen();
    let before = icons.len();
    let icons = distinct(icons, &sets, &unseen);

    let items: Vec<(&str, &str)> = icons
        .iter()
        .map(|icon| (icon.words.concept.as_str(), sets[icon.set].prefix.as_str()))
        .collect();

    // Sets are the styles of the rule: the set that gives a concept up keeps none of it.
    let repeated = before - icons.len();
    let rules =
        Rules { unseen, held_out: BTreeSet::new(), retrieval: NEW, one_in: ONE_IN };
    let splits = splits::assign(&items, &rules);
    let concepts = Concepts::of(&icons, &splits);

    let mut skipped = left_out;
    let given_up = splits.iter().filter(|split| split.is_none()).count();
    for (reason, count) in [(SAME, repeated), (splits::GIVEN_UP, given_up)] {
        if count > 0 {
            skipped.insert(reason.to_owned(), count);
        }
    }

    // Splits stand in the order in which their samples are numbered.
    let subgroups = concepts.subgroups();
    let layout = layout(&sets, concepts.classes);
    let samples = samples(icons, &splits, (&sets, &concepts), seed);

    let mut all = vec![splits::TRAIN.to_owned(), splits::VAL.to_owned()];
    all.extend(layout.tests.iter().cloned());

    let collection = Collection {
        samples,
        concepts: concepts.list,
        groups: vec![concepts::GROUP.to_owned()],
        subgroups,
        splits: all,
        reading: Reading { read, skipped, ..Reading::default() },
        layout,
    };
    (collection, undrawable)
}

/// The split of every set that is never trained on.
fn unseen() -> BTreeMap<&'static str, &'static str> {
    let each = |&(split, sets): &(&'static str, &'static [&'static str])| {
        sets.iter().map(move |&set| (set, split))
    };
    UNSEEN.iter().flat_map(each).collect()
}

/// Every drawing once, sets that are trained on first: a picture that is also trained on would
/// be no test of an unseen set. Its other names are kept.
fn distinct(
    mut icons: Vec<Pictured>,
    sets: &[Set],
    unseen: &BTreeMap<&str, &str>,
) -> Vec<Pictured> {
    icons.sort_by(|a, b| {
        let place = |icon: &Pictured| {
            let prefix = sets[icon.set].prefix.as_str();
            (unseen.contains_key(prefix), prefix.to_owned())
        };
        place(a).cmp(&place(b)).then_with(|| a.name.cmp(&b.name))
    });

    // Of equal drawings the first keeps its place, and learns the names of the others.
    let mut first: BTreeMap<u128, usize> = BTreeMap::new();
    let mut kept: Vec<Pictured> = Vec::new();
    for icon in icons {
        match first.entry(icon.drawing.pixels) {
            btree_map::Entry::Occupied(earlier) => {
                kept[*earlier.get()].also(&icon.words);
            }
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(kept.len());
                kept.push(icon);
            }
        }
    }
    kept
}

/// Icons with a split as samples, with their captions.
fn samples(
    icons: Vec<Pictured>,
    splits: &[Option<&'static str>],
    (sets, concepts): (&[Set], &Concepts),
    seed: u64,
) -> Vec<Sample> {
    let sample = |(icon, split): (Pictured, Option<&'static str>)| {
        let split = split?;
        let concept = concepts.find(&icon.words.concept)?;
        let Set { prefix, info } = &sets[icon.set];

        // Captions depend on the name alone, and not on which icons came before.
        let name = format!("dataset/captions/{prefix}/{}", icon.name);
        let mut stream = rng::stream(seed, &name);
        let kind = captions::kind(info);
        Some(Sample {
            split: split.to_owned(),
            png: icon.drawing.png,
            captions: captions::captions(&icon.words, &icon.further, kind, &mut stream),
            names: names(&concepts.list[concept]),
            concept,
            style: prefix.clone(),
        })
    };
    icons.into_iter().zip(splits.iter().copied()).filter_map(sample).collect()
}

fn layout(sets: &[Set], classes: usize) -> Layout {
    let shifts: Vec<String> =
        UNSEEN.iter().map(|(split, _)| (*split).to_owned()).collect();
    let mut tests = vec![NEW.to_owned()];
    tests.extend(shifts.iter().cloned());
    Layout {
        source: "icons".to_owned(),
        tests,
        shifts,
        retrieval: NEW.to_owned(),
        held_out: None,
        classes: Some(classes),
        templates: captions::TEMPLATES.map(str::to_owned).to_vec(),
        attribution: attribution(sets),
    }
}

/// One line per license: every set with its makers, as most licenses ask for.
fn attribution(sets: &[Set]) -> Vec<String> {
    // Sets come in the order of the package and are listed in that of their names.
    let mut by_license: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for Set { prefix, info } in sets {
        let license = info.license.spdx.as_ref().unwrap_or(&info.license.title);
        let set = format!("{} by {} ({prefix})", info.name, info.author.name);
        by_license.entry(license).or_default().push(set);
    }
    by_license
        .into_iter()
        .map(|(license, mut sets)| {
            sets.sort();
            format!("{license}: {}", sets.join(", "))
        })
        .collect()
}

#[cfg(test)]
mod tests;
