//! Batches that are drawn from one group of rows each: hard negatives (Zhang et al., CLIP-MoE,
//! EMNLP 2025).
//!
//! Within a group batches are dealt by the rule of [`Concepts`], so that no concept meets
//! itself, and the batches of all groups are shuffled. What is left of a group is left out of
//! the epoch; which rows these are is drawn anew in each epoch. A group with fewer concepts
//! than a batch has rows gives none at all, and [`Grouped::left_out`] names it: a caller
//! decides whether that may be.
//!
//! [`refined`] makes the groups: rows that share all labels given so far.

use std::collections::{BTreeMap, BTreeSet};

use super::{Concepts, Epochs, Sampler, stream};
use crate::error::{Error, Result};
use crate::num::index_u32;
use crate::rng::SliceRandom;

/// A group that gives at least one batch.
#[derive(Debug)]
struct Group {
    /// Its rows.
    rows: Vec<usize>,
    /// How they are dealt, by position in `rows`.
    deal: Concepts,
}

/// Batches of one group each.
#[derive(Debug)]
pub struct Grouped {
    seed: u64,
    batch: usize,
    groups: Vec<Group>,
    left_out: BTreeMap<u32, usize>,
    epochs: Epochs,
}

impl Grouped {
    /// The sampler of rows with these groups and concepts; refused if no group has concepts
    /// enough for a batch.
    pub fn new(
        groups: &[u32],
        concepts: &[u32],
        batch: usize,
        seed: u64,
    ) -> Result<Self> {
        if groups.len() != concepts.len() {
            let (found, expected) = (groups.len(), concepts.len());
            return Err(Error::failed(format!(
                "groups: found {found} rows, expected {expected}, one per concept given"
            )));
        }
        let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (row, group) in groups.iter().enumerate() {
            members.entry(*group).or_default().push(row);
        }
        let own = |rows: &[usize]| -> Vec<u32> {
            rows.iter().map(|&row| concepts[row]).collect()
        };
        let distinct =
            |rows: &[usize]| own(rows).into_iter().collect::<BTreeSet<_>>().len();
        let largest = members.values().map(|rows| distinct(rows)).max().unwrap_or(0);
        if batch == 0 || batch > largest {
            return Err(Error::usage(format!(
                "batch: found {batch}, expected 1 to {largest}, the number of concepts in the \
                 largest of {} groups, because a batch is drawn from one group and holds a \
                 concept at most once",
                members.len()
            )));
        }

        let (mut kept, mut left_out) = (Vec::new(), BTreeMap::new());
        for (group, rows) in members {
            if distinct(&rows) < batch {
                left_out.insert(group, rows.len());
            } else {
                let deal = Concepts::new(&own(&rows), batch, seed)?;
                kept.push(Group { rows, deal });
            }
        }
        let steps = kept.iter().map(|group| group.deal.steps_per_epoch()).sum();
        let epochs = Epochs::new(batch, steps);
        Ok(Self { seed, batch, groups: kept, left_out, epochs })
    }

    /// The groups too small for a batch, with their numbers of rows.
    pub fn left_out(&self) -> &BTreeMap<u32, usize> {
        &self.left_out
    }

    fn deal(&self, epoch: usize) -> Vec<usize> {
        let mut stream = stream(self.seed, epoch);
        let mut batches = Vec::new();

        for Group { rows, deal } in &self.groups {
            let dealt = deal.deal(&mut stream);
            let dealt: Vec<usize> = dealt.into_iter().map(|place| rows[place]).collect();
            batches.extend(dealt.chunks_exact(self.batch).map(<[usize]>::to_vec));
        }

        batches.shuffle(&mut stream);
        batches.concat()
    }
}

impl Sampler for Grouped {
    fn batch(&self, step: usize) -> Vec<usize> {
        self.epochs.batch(step, |epoch| self.deal(epoch))
    }

    fn steps_per_epoch(&self) -> usize {
        self.epochs.steps
    }
}

/// Cuts each group by a label: rows share a new group if they shared the old one and have the
/// same label. New groups are numbered from 0 in the order of (old group, label).
pub fn refined(groups: &[u32], labels: &[u32]) -> Vec<u32> {
    let pairs: Vec<(u32, u32)> =
        groups.iter().copied().zip(labels.iter().copied()).collect();
    let known: BTreeSet<(u32, u32)> = pairs.iter().copied().collect();
    let numbers: BTreeMap<(u32, u32), u32> =
        known.into_iter().enumerate().map(|(i, pair)| (pair, index_u32(i))).collect();
    pairs.iter().map(|pair| numbers[pair]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_too_small_for_a_batch_are_named() {
        let labels = [[7; 9].as_slice(), &[3; 2], &[5; 4]].concat();
        let concepts: Vec<u32> = (0..15).collect();
        let sampler = Grouped::new(&labels, &concepts, 4, 1).unwrap();
        assert_eq!(sampler.left_out(), &BTreeMap::from([(3, 2)]));
        assert_eq!(sampler.steps_per_epoch(), 3);
        for batch in [0, 10] {
            let error = Grouped::new(&labels, &concepts, batch, 1).unwrap_err();
            assert!(error.to_string().contains("1 to 9"), "{error}");
        }
        let error = Grouped::new(&labels, &concepts[1..], 4, 1).unwrap_err();
        assert!(error.to_string().contains("found 15 rows, expected 14"), "{error}");
    }

    #[test]
    fn rows_of_few_concepts_are_left_out_however_many_they_are() {
        let labels = [[0; 12].as_slice(), &[1; 5]].concat();
        let concepts: Vec<u32> =
            (0..17).map(|row| if row < 12 { 8 } else { row }).collect();
        let sampler = Grouped::new(&labels, &concepts, 3, 1).unwrap();
        assert_eq!(sampler.left_out(), &BTreeMap::from([(0, 12)]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The slow, obvious rule: two rows share a group if every label of every round agrees.
        #[test]
        fn rows_share_a_group_if_all_labels_agree(
            rounds in prop::collection::vec(prop::collection::vec(0_u32..4, 30), 1..4),
        ) {
            let mut groups = vec![0; 30];
            for labels in &rounds {
                groups = refined(&groups, labels);
            }
            for one in 0..30 {
                for other in 0..30 {
                    let agree = rounds.iter().all(|labels| labels[one] == labels[other]);
                    prop_assert_eq!(agree, groups[one] == groups[other]);
                }
            }
            let numbers: BTreeSet<u32> = groups.iter().copied().collect();
            prop_assert_eq!(numbers.last().map(|&last| crate::num::widen(last) + 1), Some(numbers.len()));
        }

        /// Every batch is full, of one group, of distinct concepts, and no row comes twice in
        /// an epoch; every row of a group that is not left out is dealt sooner or later.
        #[test]
        fn batches_are_of_one_group_and_distinct_concepts(
            labels in prop::collection::vec((0_u32..3, 0_u32..12), 60..140),
            batch in 2_usize..5,
            seed in 0_u64..1000,
        ) {
            let (groups, concepts): (Vec<u32>, Vec<u32>) = labels.into_iter().unzip();
            let sampler = Grouped::new(&groups, &concepts, batch, seed).unwrap();
            let steps = sampler.steps_per_epoch();
            let mut ever = BTreeSet::new();
            for epoch in 0..30 {
                let mut seen = BTreeSet::new();
                for step in epoch * steps..(epoch + 1) * steps {
                    let rows = sampler.batch(step);
                    prop_assert_eq!(rows.len(), batch);
                    prop_assert!(rows.iter().all(|&row| groups[row] == groups[rows[0]]));
                    let own: BTreeSet<u32> = rows.iter().map(|&row| concepts[row]).collect();
                    prop_assert_eq!(own.len(), batch);
                    prop_assert!(rows.iter().all(|&row| seen.insert(row)));
                }
                ever.extend(seen);
            }
            let dealt = groups.iter().filter(|group| !sampler.left_out().contains_key(group));
            prop_assert!(ever.len() * 20 >= dealt.count() * 19, "{} dealt", ever.len());
        }
    }
}
