//! From a vendor's icon name to the emoji's code points.
//!
//! Five sets say which code points an icon stands for; the union of their tables is the
//! dictionary for the others, which only have names. Names are tried from the surest reading
//! to the least sure: the table of renames, the names of the five sets, the labels of
//! Unicode, the old names that some sets keep as aliases, and, for three careless vendors,
//! the same without dashes. A wrong reading costs more than a lost picture.

use std::collections::BTreeMap;

use super::super::packages::IconSet;
use super::concepts::{Concepts, has_tone};

/// Sets whose `chars.json` is a table from code points to icon names, in order of trust.
pub(super) const CHARTED: [&str; 5] =
    ["noto", "twemoji", "openmoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"];
/// Sets whose aliases are old names of other icons.
const ALIASED: [&str; 3] = ["noto", "twemoji", "openmoji"];
/// Sets that write names without dashes, or nearly so.
const CARELESS: [&str; 3] = ["fxemoji", "streamline-emojis", "emojione-v1"];

/// Names that changed or are misspelt, and their present name.
const RENAMES: &str = include_str!("renames.tsv");
/// Target of a name that must not be read.
const UNREADABLE: &str = "-";

/// An icon that was recognized.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The vendor's name.
    pub name: String,
    /// Index of the concept.
    pub concept: usize,
    /// Whether it shows a skin tone.
    pub tone: bool,
}

type Table = BTreeMap<String, String>;

/// Readings of icon names.
pub(super) struct Names {
    renames: BTreeMap<&'static str, &'static str>,
    direct: Table,
    labels: Table,
    foreign: Table,
    dashless: Table,
}

impl Names {
    /// Gathers the dictionary from the charted sets: set name, `chars.json`, aliases.
    pub(super) fn new(concepts: &Concepts, charted: &[(&str, Table, &IconSet)]) -> Self {
        let mut direct = Table::new();

        // Sets come in the order of trust, so the first reading of a name stays.
        for (_, chars, _) in charted {
            for (sequence, name) in chars {
                if concepts.find(sequence).is_some() {
                    direct.entry(name.clone()).or_insert_with(|| sequence.clone());
                }
            }
        }

        let mut labels = Table::new();
        for concept in &concepts.list {
            labels.insert(slug(&concept.label), concept.key.clone());
        }

        let mut foreign = Table::new();
        for (set, _, icons) in charted.iter().filter(|(set, ..)| ALIASED.contains(set)) {
            debug_assert!(CHARTED.contains(set), "aliases come from charted sets");
            for (old, alias) in
                icons.aliases.iter().filter(|(_, alias)| alias.is_same_drawing())
            {
                if let Some(sequence) = direct.get(&alias.parent) {
                    foreign.entry(old.clone()).or_insert_with(|| sequence.clone());
                }
            }
        }

        // The surest reading comes first, and a later one never replaces it.
        let mut dashless = Table::new();
        for (name, sequence) in direct.iter().chain(&labels).chain(&foreign) {
            dashless.entry(name.replace('-', "")).or_insert_with(|| sequence.clone());
        }

        let renames = RENAMES.lines().filter_map(|line| line.split_once('\t')).collect();
        Self { renames, direct, labels, foreign, dashless }
    }

    /// Every visible icon of a set that stands for a concept, in the order of names.
    pub(super) fn rows(
        &self,
        concepts: &Concepts,
        set: &str,
        icons: &IconSet,
        chars: &Table,
    ) -> Vec<Row> {
        let mut charted: BTreeMap<&str, &str> = BTreeMap::new();
        for (sequence, name) in chars {
            if concepts.find(sequence).is_some() {
                charted.entry(name).or_insert(sequence);
            }
        }

        let mut aliases: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, alias) in
            icons.aliases.iter().filter(|(_, alias)| alias.is_same_drawing())
        {
            aliases.entry(&alias.parent).or_default().push(name);
        }

        let mut rows = Vec::new();
        for (name, _) in icons.icons.iter().filter(|(_, icon)| !icon.hidden) {
            // A chart is the vendor's own word; only sets without one are read by name.
            let sequence = if chars.is_empty() {
                let own = aliases.get(name.as_str()).map_or(&[][..], Vec::as_slice);
                self.read(name, own, set)
            } else {
                charted.get(name.as_str()).copied()
            };

            let Some(sequence) = sequence else { continue };
            if let Some(concept) = concepts.find(sequence) {
                rows.push(Row { name: name.clone(), concept, tone: has_tone(sequence) });
            }
        }
        rows
    }

    /// The code points that a name stands for.
    fn read(&self, name: &str, aliases: &[&str], set: &str) -> Option<&str> {
        let own = forms(name);

        if self.renames.get(name) == Some(&UNREADABLE) {
            return None;
        }

        // A name that was changed leads to the present one.
        let target = own.iter().find_map(|form| self.renames.get(form.as_str()));
        if let Some(&target) = target.filter(|target| **target != UNREADABLE) {
            return self
                .direct
                .get(target)
                .or(self.labels.get(target))
                .map(String::as_str);
        }

        // The aliases of a set are further names of the same icon.
        let mut all = own.clone();
        all.extend(aliases.iter().flat_map(|alias| forms(alias)));

        let found = find(&self.direct, &all)
            .or_else(|| find(&self.labels, &all))
            .or_else(|| find(&self.foreign, &own));
        if found.is_some() || !CARELESS.contains(&set) {
            return found;
        }

        // The last resort for careless vendors: no dashes at all, or flags without their
        // prefix.
        let bare: Vec<String> = own.iter().map(|form| form.replace('-', "")).collect();
        let flags: Vec<String> = own.iter().map(|form| format!("flag-{form}")).collect();
        find(&self.dashless, &bare).or_else(|| find(&self.direct, &flags))
    }
}

fn find<'a>(table: &'a Table, forms: &[String]) -> Option<&'a str> {
    forms.iter().find_map(|form| table.get(form)).map(String::as_str)
}

/// The readings of a name: as it is, with the modern spelling of flags, without a number at
/// the end.
fn forms(name: &str) -> Vec<String> {
    let mut forms = vec![name.to_owned()];
    let country = name.strip_prefix("flag-for-flag-").or(name.strip_prefix("flag-for-"));
    forms.extend(country.map(|country| format!("flag-{country}")));

    for i in 0..forms.len() {
        if let Some((stem, number)) = forms[i].rsplit_once('-') {
            let digits = number.strip_prefix("tone").unwrap_or(number);
            if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
                forms.push(stem.to_owned());
            }
        }
    }
    forms
}

/// A label as vendors spell it in names: `Côte d’Ivoire` becomes `cote-divoire`.
fn slug(label: &str) -> String {
    let mut out = String::new();
    for letter in label.to_lowercase().chars() {
        match letter {
            'a'..='z' | '0'..='9' => out.push(letter),
            'é' => out.push('e'),
            'ã' | 'å' => out.push('a'),
            'ç' => out.push('c'),
            'ô' => out.push('o'),
            'í' => out.push('i'),
            'ñ' => out.push('n'),
            '&' => out.push_str("and"),
            '\'' | '’' | '“' | '”' => {}
            _ if out.ends_with('-') || out.is_empty() => {}
            _ => out.push('-'),
        }
    }
    out.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_their_modern_form() {
        assert_eq!(forms("flag-for-flag-malta"), ["flag-for-flag-malta", "flag-malta"]);
        assert_eq!(forms("boy-tone3"), ["boy-tone3", "boy"]);
        assert_eq!(forms("pizza-2"), ["pizza-2", "pizza"]);
        assert_eq!(forms("a-b"), ["a-b"]);
    }

    #[test]
    fn labels_become_names() {
        assert_eq!(slug("flag: Côte d’Ivoire"), "flag-cote-divoire");
        assert_eq!(slug("man: blond hair"), "man-blond-hair");
        assert_eq!(slug("“acceptable” button"), "acceptable-button");
    }

    #[test]
    fn every_line_of_the_renames_is_a_pair() {
        for line in RENAMES.lines() {
            assert_eq!(line.split('\t').count(), 2, "{line}");
        }
    }
}
