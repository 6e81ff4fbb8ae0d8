//! The concepts: every emoji that Unicode recommends, without its skin tones.
//!
//! A concept's key is its code points in hexadecimal, lower case, joined by `-`, without the
//! variation selector FE0F and the five skin tones. Names differ between vendors and years;
//! code points do not.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use serde::Deserialize;

use super::super::collection::Concept;
use super::super::splits::hash;
use crate::error::{Context, Error, Result};

/// Group "component" of emojibase: skin tones and hair, no emoji of their own.
const COMPONENT: u32 = 2;
/// Groups whose concepts are never held out: flags and symbols cannot be told from a name.
const FIXED_GROUPS: [&str; 2] = ["symbols", "flags"];

const TONES: [&str; 5] = ["1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"];
const SELECTOR: &str = "fe0f";
const JOINER: &str = "200d";
/// Man, woman, person, female sign, male sign: what members of a family differ in.
const PEOPLE: [&str; 5] = ["1f468", "1f469", "1f9d1", "2640", "2642"];

/// An entry of emojibase's `data.json`; entries without group are regional indicators.
#[derive(Deserialize)]
struct Entry {
    label: String,
    hexcode: String,
    #[serde(default)]
    tags: Vec<String>,
    order: Option<u32>,
    group: Option<u32>,
    subgroup: Option<u32>,
}

/// Names of groups and subgroups by emojibase's numbers.
#[derive(Deserialize)]
struct Groups {
    groups: BTreeMap<u32, String>,
    subgroups: BTreeMap<u32, String>,
}

/// All concepts in Unicode's order.
pub(super) struct Concepts {
    pub list: Vec<Concept>,
    pub groups: Vec<String>,
    pub subgroups: Vec<String>,
    index: BTreeMap<String, usize>,
}

impl Concepts {
    /// Reads `en/data.json` and `meta/groups.json` of emojibase-data.
    pub(super) fn parse(data: &[u8], groups: &[u8]) -> Result<Self> {
        let mut entries: Vec<Entry> = serde_json::from_slice(data)
            .context(|| "reading data.json of emojibase-data".to_owned())?;

        let names: Groups = serde_json::from_slice(groups)
            .context(|| "reading groups.json of emojibase-data".to_owned())?;

        entries
            .retain(|e| e.group.is_some_and(|g| g != COMPONENT) && e.subgroup.is_some());
        entries.sort_by_key(|e| e.order);

        // Numbers of groups have gaps where no entry is left; concepts count without
        // gaps.
        let used = |of: fn(&Entry) -> Option<u32>| -> Vec<u32> {
            entries.iter().filter_map(of).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let (group_ids, subgroup_ids) = (used(|e| e.group), used(|e| e.subgroup));

        let mut concepts = Self {
            list: Vec::new(),
            groups: labels(&group_ids, &names.groups)?,
            subgroups: labels(&subgroup_ids, &names.subgroups)?,
            index: BTreeMap::new(),
        };

        for entry in entries {
            let key = base(&entry.hexcode);
            let (Some(group), Some(subgroup)) = (entry.group, entry.subgroup) else {
                continue;
            };

            let group = group_ids.partition_point(|&id| id < group);
            let subgroup = subgroup_ids.partition_point(|&id| id < subgroup);
            let held_out = is_held_out(&key, &concepts.groups[group]);
            let label = entry.label.to_lowercase();

            let concept = Concept {
                key: key.clone(),
                label,
                tags: entry.tags,
                group,
                subgroup,
                held_out,
            };

            // Entries that differ in nothing but a selector or a tone are one concept,
            // the first of them.
            if let btree_map::Entry::Vacant(vacant) = concepts.index.entry(key) {
                vacant.insert(concepts.list.len());
                concepts.list.push(concept);
            }
        }

        Ok(concepts)
    }

    /// The concept of a sequence of code points, with or without skin tones.
    pub(super) fn find(&self, sequence: &str) -> Option<usize> {
        self.index.get(&base(sequence)).copied()
    }
}

fn labels(ids: &[u32], names: &BTreeMap<u32, String>) -> Result<Vec<String>> {
    let name = |id: &u32| {
        names.get(id).map(|name| name.replace('-', " ")).ok_or_else(|| {
            Error::corrupt(format!("emojibase-data names no group or subgroup {id}"))
        })
    };
    ids.iter().map(name).collect()
}

/// The sequence in lower case without variation selectors and skin tones.
pub(super) fn base(sequence: &str) -> String {
    let sequence = sequence.to_lowercase();
    let kept = sequence.split('-').filter(|p| *p != SELECTOR && !TONES.contains(p));
    kept.collect::<Vec<_>>().join("-")
}

/// Whether the sequence names a skin tone.
pub(super) fn has_tone(sequence: &str) -> bool {
    sequence.to_lowercase().split('-').any(|part| TONES.contains(&part))
}

/// Whole families are held out, so that "woman farmer" does not give "man farmer" away.
fn is_held_out(key: &str, group: &str) -> bool {
    let kept = key.split('-').filter(|p| *p != JOINER && !PEOPLE.contains(p));
    let family = kept.collect::<Vec<_>>().join("-");
    !FIXED_GROUPS.contains(&group)
        && !family.is_empty()
        && hash(&format!("concept:{family}"), 16) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tones_and_selectors_do_not_make_a_concept() {
        assert_eq!(base("1F44B-1F3FD"), "1f44b");
        assert_eq!(base("2764-FE0F-200D-1F525"), "2764-200d-1f525");
        assert!(has_tone("1f44b-1F3FD") && !has_tone("1f44b"));
    }

    #[test]
    fn members_of_a_family_share_their_fate() {
        for job in ["1f33e", "1f373", "1f393", "1f680", "2695", "1f9af"] {
            let fates = ["1f468", "1f469", "1f9d1"]
                .map(|who| is_held_out(&format!("{who}-200d-{job}"), "people body"));
            assert!(fates.iter().all(|&fate| fate == fates[0]), "{job}");
        }
        assert!(!is_held_out("1f468", "people body"), "a person alone is no family");
    }
}
