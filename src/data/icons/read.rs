//! The package as it streams by: one icon set in memory at a time, its pictures on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::ControlFlow;

use super::super::packages::{self, Canvas, Drawing, Icon, IconSet, Information};
use super::super::pairs::{Fault, Skipped};
use super::names::{Names, Words};
use crate::error::{Context, Error, Result};

/// The package of all icon sets.
pub(super) const PACKAGE: &str = "@iconify/json";

/// The list of the sets.
const COLLECTION: &str = "package/collections.json";

/// Where the sets lie in the package.
const FOLDER: &str = "package/json/";

/// Why an icon is left out.
const NO_WORDS: &str = "name without words";
const SKIN_TONE: &str = "skin tone";
const EMPTY: &str = "empty drawing";
const UNDRAWABLE: &str = "drawing that cannot be rendered";

/// What marks a skin tone in names; a digit follows the second.
const TONES: [&str; 2] = ["skin-tone", "-tone"];

/// What ends the names of skin tones in emoji sets that do not call them so.
const SHADES: [&str; 5] = ["-medium-light", "-medium-dark", "-light", "-medium", "-dark"];

/// An icon set without its drawings.
#[derive(Debug)]
pub(super) struct Set {
    /// Its name in the package.
    pub prefix: String,
    /// Who made it.
    pub info: Information,
}

/// A picture and what its set says about it.
#[derive(Debug)]
pub(super) struct Pictured {
    /// Index of its set.
    pub set: usize,
    /// Its name in the set.
    pub name: String,
    /// What the name says.
    pub words: Words,
    /// What further names of the same drawing say.
    pub further: Vec<String>,
    /// The picture.
    pub drawing: Drawing,
}

impl Pictured {
    /// Notes a further name of the same drawing, if it says something else.
    pub(super) fn also(&mut self, words: &Words) {
        let said = words.concept == self.words.concept;
        if !said && !self.further.contains(&words.label) {
            self.further.push(words.label.clone());
        }
    }
}

/// What the package holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The sets in the order of the package.
    pub sets: Vec<Set>,
    /// The pictures, set after set in the order of names.
    pub icons: Vec<Pictured>,
    /// Icons that were looked at.
    pub read: usize,
    /// Icons that were left out, by reason.
    pub left_out: BTreeMap<String, usize>,
    /// Icons that could not be drawn.
    pub undrawable: Vec<Skipped>,
}

impl Found {
    fn leave_out(&mut self, reason: &str) {
        *self.left_out.entry(reason.to_owned()).or_insert(0) += 1;
    }
}

/// The names of the sets in iconify's collection; the package has others that were taken out of
/// it. The list stands behind the sets in the package, so that this is a pass of its own.
pub(super) fn listed(package: impl Read) -> Result<BTreeSet<String>> {
    let mut files = packages::extract(package, &[COLLECTION], PACKAGE)?;
    let list = files.remove(COLLECTION).unwrap_or_default();
    let list: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&list).context(|| format!("reading {COLLECTION}"))?;
    Ok(list.into_iter().map(|(prefix, _)| prefix).collect())
}

/// How a package is read.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The sets.
    pub sets: BTreeSet<String>,
    /// Whether icons with skin tones are kept.
    pub skin_tones: bool,
}

/// Reads and draws every wanted set of the package; `told` hears how many icons are done.
///
/// Memory: the largest set, and some 300 bytes for every icon.
pub(super) fn read(
    package: impl Read,
    wanted: &Wanted,
    canvas: &mut Canvas<'_>,
    told: &mut dyn FnMut(usize),
) -> Result<Found> {
    let mut found = Found::default();
    packages::each(
        package,
        PACKAGE,
        |path| prefix(path).is_some(),
        &mut |path, json| {
            let next = Ok(ControlFlow::Continue(()));
            let Some(prefix) = prefix(path).filter(|&set| wanted.sets.contains(set))
            else {
                return next;
            };
            let icons = IconSet::parse(&json, prefix)?;

            // The text of a set is as long as what was read of it.
            drop(json);

            let info = icons.info.clone().ok_or_else(|| {
            Error::corrupt(format!(
                "package {PACKAGE}: the set {prefix} has no `info`, expected its makers and its \
                 license"
            ))
        })?;
            found.sets.push(Set { prefix: prefix.to_owned(), info });
            found.draw_set(&icons, wanted.skin_tones, canvas, told)?;
            next
        },
    )?;
    Ok(found)
}

/// The set that a file of the package holds.
fn prefix(path: &str) -> Option<&str> {
    path.strip_prefix(FOLDER)?.strip_suffix(".json")
}

impl Found {
    /// Draws the icons of the latest set.
    fn draw_set(
        &mut self,
        icons: &IconSet,
        skin_tones: bool,
        canvas: &mut Canvas<'_>,
        told: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let before = self.read;
        let names = Names::of(icons);

        let mut rows: Vec<(&str, &Icon, Words)> = Vec::new();
        for (name, icon) in icons.icons.iter().filter(|(_, icon)| !icon.hidden) {
            self.read += 1;
            match names.read(name) {
                _ if !skin_tones && has_tone(name, icons) => self.leave_out(SKIN_TONE),
                None => self.leave_out(NO_WORDS),
                Some(words) => rows.push((name, icon, words)),
            }
        }

        // Only what has a name to learn from is drawn: drawing takes most of the time.
        let svg = |(_, icon, _): &(&str, &Icon, Words)| icons.svg(icon);
        let drawn = packages::draw(&rows, &svg, canvas, &mut |done| told(before + done))?;

        let aliases = aliases(icons);
        for ((name, _, words), drawing) in rows.into_iter().zip(drawn) {
            match drawing {
                Ok(Some(drawing)) => {
                    let set = self.sets.len() - 1;
                    let (name, further) = (name.to_owned(), Vec::new());
                    let mut icon = Pictured { set, name, words, further, drawing };
                    let own = aliases.get(icon.name.as_str()).into_iter().flatten();
                    own.filter_map(|alias| names.read(alias)).for_each(|w| icon.also(&w));
                    self.icons.push(icon);
                }
                Ok(None) => self.leave_out(EMPTY),
                Err(error) => {
                    self.leave_out(UNDRAWABLE);
                    let set = self.sets.last().map_or("", |set| set.prefix.as_str());
                    let (key, reason) = (format!("{set}:{name}"), error.chain());
                    self.undrawable.push(Skipped {
                        key,
                        fault: Fault::TornPicture,
                        reason,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Further names of each drawing, unturned ones only: `arrow-left` may be an `arrow-right`
/// that is flipped.
fn aliases(icons: &IconSet) -> BTreeMap<&str, Vec<&str>> {
    let mut aliases: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let same = icons.aliases.iter().filter(|(_, alias)| alias.is_same_drawing());
    for (name, alias) in same {
        aliases.entry(&alias.parent).or_default().push(name);
    }
    aliases
}

/// Whether a name is that of an emoji with a skin tone.
fn has_tone(name: &str, icons: &IconSet) -> bool {
    let [whole, numbered] = TONES;
    let mut after = name.split(numbered).skip(1);
    let called = name.contains(whole)
        || after.any(|rest| rest.starts_with(|digit| ('1'..='5').contains(&digit)));

    // A shade alone is a tone only where the set has the emoji without it and in another
    // shade: `police-car-light` is no police car.
    let is_emoji = icons.info.as_ref().is_some_and(Information::is_of_emoji);
    let shaded = |bare: &str| {
        let other = format!("{bare}{}", SHADES[0]);
        icons.icons.contains_key(bare) && icons.icons.contains_key(&other)
    };
    let bare = SHADES.iter().find_map(|shade| name.strip_suffix(shade));
    called || (is_emoji && bare.is_some_and(shaded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skin_tones_are_told_from_other_tones() {
        let set = |name: &str| {
            let json = format!(
                r#"{{"icons": {{"mage": {{"body": ""}}, "mage-medium-light": {{"body": ""}},
                    "car": {{"body": ""}}}}, "info": {{"name": "{name}",
                    "author": {{"name": "x"}}, "license": {{"title": "MIT"}}}}}}"#
            );
            IconSet::parse(json.as_bytes(), "x").unwrap()
        };
        let (emoji, other) = (set("Fluent Emoji"), set("Solar"));
        for name in ["hand-dark-skin-tone", "boy-tone3", "people-tone1-tone2"] {
            assert!(has_tone(name, &other), "{name}");
        }
        for name in ["dial-tone", "stone-1", "tone-2", "new-moon-dark", "car-light"] {
            assert!(!has_tone(name, &emoji), "{name}");
        }
        assert!(has_tone("mage-medium-dark", &emoji));
        assert!(!has_tone("mage-dark", &other), "a style of other sets");
    }
}
