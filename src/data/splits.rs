//! Which picture belongs to which split, decided by hashes of names alone.
//!
//! Unseen styles and held-out concepts are whole splits. From the rest, a fraction of the
//! concepts with enough styles give up one style for the retrieval pairs, and half of the
//! others give up one for validation: a split so made has one picture per concept, and
//! its
//! concepts are known from other styles. Nothing depends on the order of the pictures or on
//! a seed, so that results of all runs speak of the same pictures.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

/// Training pictures.
pub(super) const TRAIN: &str = "train";
/// Pictures for choosing hyperparameters.
pub(super) const VAL: &str = "val";
/// Pictures of the retrieval task, one per concept, of the sources with styles of emoji.
pub(super) const PAIR: &str = "pair";
/// Pictures of concepts that are never trained on, in all styles.
pub(super) const HELD_OUT: &str = "heldout";

/// Why a picture is left out that [`assign`] gives no split.
pub(super) const GIVEN_UP: &str = "further picture of a style that its concept gave up";

/// A concept gives up a style only if at least this many remain to choose from.
const MIN_STYLES: usize = 4;

/// What the hashes cannot know.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// Split of every style that is never trained on.
    pub unseen: BTreeMap<&'a str, &'static str>,
    /// Keys of the concepts that are never trained on.
    pub held_out: BTreeSet<&'a str>,
    /// The split of the retrieval task.
    pub retrieval: &'static str,
    /// One in so many concepts gives up a style for it.
    pub one_in: u32,
}

/// The split of every (concept key, style) pair; `None` where a picture is left out: the
/// second and later pictures of a style that a concept gave up.
pub(super) fn assign(
    items: &[(&str, &str)],
    rules: &Rules<'_>,
) -> Vec<Option<&'static str>> {
    let mut styles: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for &(concept, style) in items {
        if !rules.held_out.contains(concept) && !rules.unseen.contains_key(style) {
            styles.entry(concept).or_default().insert(style);
        }
    }

    let mut given: BTreeMap<(&str, &str), &'static str> = BTreeMap::new();
    for (concept, styles) in &styles {
        if let Some((style, split)) = gives_up(concept, styles, rules) {
            given.insert((concept, style), split);
        }
    }

    // The first picture of a style that was given up is the one of its split; others are
    // left out.
    let mut taken = BTreeSet::new();
    items
        .iter()
        .map(|&(concept, style)| {
            if rules.held_out.contains(concept) {
                Some(HELD_OUT)
            } else if let Some(&split) = rules.unseen.get(style) {
                Some(split)
            } else if let Some(&split) = given.get(&(concept, style)) {
                taken.insert((concept, style)).then_some(split)
            } else {
                Some(TRAIN)
            }
        })
        .collect()
}

/// The style that a concept gives up, and for which split.
fn gives_up<'a>(
    concept: &str,
    styles: &BTreeSet<&'a str>,
    rules: &Rules<'_>,
) -> Option<(&'a str, &'static str)> {
    if styles.len() < MIN_STYLES {
        return None;
    }

    let (split, salt) = if hash(&format!("pair:{concept}"), rules.one_in) == 0 {
        (rules.retrieval, "ps")
    } else if hash(&format!("val:{concept}"), 2) == 0 {
        (VAL, "vs")
    } else {
        return None;
    };

    // Ranks are hashes, so the choice depends on no order; ties go to the first name.
    let rank = |style: &&&str| hash(&format!("{salt}:{concept}|{style}"), 1 << 30);
    styles.iter().min_by_key(rank).map(|&style| (style, split))
}

/// The first 8 hexadecimal digits of SHA-256, modulo `modulus`.
pub(super) fn hash(text: &str, modulus: u32) -> u32 {
    let digest = Sha256::digest(text.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % modulus
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(keys: &[String]) -> Vec<(&str, &str)> {
        let styles = ["a", "b", "c", "d", "e", "odd"];
        keys.iter().flat_map(|key| styles.map(|style| (key.as_str(), style))).collect()
    }

    #[test]
    fn hash_is_the_first_eight_digits_of_sha256() {
        // sha256("abc") = ba7816bf...
        assert_eq!(hash("abc", u32::MAX), 0xba78_16bf);
        assert_eq!(hash("abc", 1000), 0xba78_16bf % 1000);
    }

    #[test]
    fn splits_are_disjoint_in_the_way_each_promises() {
        let keys: Vec<String> = (0..200).map(|i| format!("{i:x}")).collect();
        let items = items(&keys);
        let rules = Rules {
            unseen: BTreeMap::from([("odd", "shift")]),
            held_out: keys[..10].iter().map(String::as_str).collect(),
            retrieval: PAIR,
            one_in: 3,
        };
        let splits = assign(&items, &rules);
        let of = |split: &str| -> Vec<(&str, &str)> {
            let pairs = items.iter().zip(&splits);
            pairs.filter(|(_, s)| **s == Some(split)).map(|(&item, _)| item).collect()
        };
        let concepts = |split| of(split).iter().map(|i| i.0).collect::<BTreeSet<_>>();
        assert!(
            of(TRAIN).iter().all(|(c, s)| !rules.held_out.contains(c) && *s != "odd")
        );
        assert_eq!(of(HELD_OUT).len(), 60);
        assert_eq!(of("shift").len(), 190);
        for one in [PAIR, VAL] {
            assert_eq!(concepts(one).len(), of(one).len(), "one picture a concept");
            assert!(of(one).len() > 40);
            assert!(concepts(one).is_subset(&concepts(TRAIN)));
        }
        assert!(concepts(PAIR).is_disjoint(&concepts(VAL)));
    }

    #[test]
    fn the_order_of_pictures_does_not_matter() {
        let keys: Vec<String> = (0..50).map(|i| i.to_string()).collect();
        let mut items = items(&keys);
        let rules = Rules {
            unseen: BTreeMap::new(),
            held_out: BTreeSet::new(),
            retrieval: PAIR,
            one_in: 3,
        };
        let forwards = assign(&items, &rules);
        items.reverse();
        let mut backwards = assign(&items, &rules);
        backwards.reverse();
        assert_eq!(forwards, backwards);
    }
}
