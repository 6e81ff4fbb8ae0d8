//! What the icons show, over all sets: concepts, and which of them are classes.

use std::collections::BTreeMap;

use super::super::collection::Concept;
use super::super::splits::TRAIN;
use super::read::Pictured;

/// Training pictures of a class. Most concepts are the name of one product in one set, of which
/// nothing can be learned that carries over to another drawing.
const CLASS: usize = 20;

/// Most tags of a concept.
const TAGS: usize = 3;

/// The one group: categories belong to sets, and not to what they draw.
pub(super) const GROUP: &str = "icons";

/// The label of what is no class.
pub(super) const OTHER: &str = "other";

/// The concepts, classes first, each part in the order of keys.
#[derive(Debug)]
pub(super) struct Concepts {
    pub list: Vec<Concept>,
    /// The number of classes.
    pub classes: usize,
    index: BTreeMap<String, usize>,
}

/// What the pictures of a concept say about it.
#[derive(Debug, Default)]
struct Votes<'a> {
    training: usize,
    labels: BTreeMap<&'a str, usize>,
    tags: BTreeMap<&'a str, usize>,
}

impl Concepts {
    /// The concepts of the icons that have a split.
    pub(super) fn of(icons: &[Pictured], splits: &[Option<&'static str>]) -> Self {
        let mut votes: BTreeMap<&str, Votes<'_>> = BTreeMap::new();
        for (icon, split) in icons.iter().zip(splits) {
            let Some(split) = split else { continue };
            let own = votes.entry(&icon.words.concept).or_default();
            *own.labels.entry(&icon.words.label).or_insert(0) += 1;

            // What test pictures are also called stays unknown.
            if *split == TRAIN {
                own.training += 1;
                for name in &icon.further {
                    *own.tags.entry(name).or_insert(0) += 1;
                }
            }
        }

        let (classes, others): (Vec<_>, Vec<_>) =
            votes.into_iter().partition(|(_, own)| own.training >= CLASS);
        let count = classes.len();

        // The first concepts are the classes: a number says which ones.
        let mut concepts =
            Self { list: Vec::new(), classes: count, index: BTreeMap::new() };
        for (place, (key, own)) in classes.into_iter().chain(others).enumerate() {
            concepts.index.insert(key.to_owned(), place);
            concepts.list.push(Concept {
                key: key.to_owned(),
                label: most_frequent(&own.labels, 1).concat(),
                tags: most_frequent(&own.tags, TAGS),
                group: 0,
                subgroup: place.min(count),
                held_out: own.training == 0,
            });
        }
        concepts
    }

    /// The number of the concept that `key` names.
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.index.get(key).copied()
    }

    /// The labels of the classes, and one for all else.
    pub(super) fn subgroups(&self) -> Vec<String> {
        let classes = self.list[..self.classes].iter().map(|c| c.label.clone());
        let other = (self.list.len() > self.classes).then(|| OTHER.to_owned());
        classes.chain(other).collect()
    }
}

/// The most frequent names, the first in the alphabet of equals.
fn most_frequent(votes: &BTreeMap<&str, usize>, count: usize) -> Vec<String> {
    let mut names: Vec<(&str, usize)> = votes.iter().map(|(&n, &v)| (n, v)).collect();
    names.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    names.into_iter().take(count).map(|(name, _)| name.to_owned()).collect()
}
