//! Batches that are drawn from one group of rows each: hard negatives (Zhang et al., CLIP-MoE,
//! EMNLP 2025).
//!
//! Each group is shuffled and cut into full batches, and the batches of all groups are
//! shuffled. What is left of a group is less than a batch and left out of the epoch; which
//! rows these are is drawn anew in each epoch. A group smaller than a batch gives none at
//! all, and [`Grouped::left_out`] names it: a caller decides whether that may be.

use std::collections::BTreeMap;

use super::{Epochs, Sampler, stream};
use crate::error::{Error, Result};
use crate::rng::SliceRandom;

/// Batches of one group each.
#[derive(Debug)]
pub struct Grouped {
    seed: u64,
    batch: usize,
    /// Rows of every group that gives at least one batch.
    groups: Vec<Vec<usize>>,
    left_out: BTreeMap<u32, usize>,
    epochs: Epochs,
}

impl Grouped {
    /// The sampler of rows with these groups; refused if no group fills a batch.
    pub fn new(groups: &[u32], batch: usize, seed: u64) -> Result<Self> {
        let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (row, group) in groups.iter().enumerate() {
            rows.entry(*group).or_default().push(row);
        }
        let largest = rows.values().map(Vec::len).max().unwrap_or(0);
        if batch == 0 || batch > largest {
            return Err(Error::usage(format!(
                "batch: found {batch}, expected 1 to {largest}, the size of the largest of \
                 {} groups, because a batch is drawn from one group",
                rows.len()
            )));
        }

        let small = rows.iter().filter(|(_, own)| own.len() < batch);
        let left_out = small.map(|(group, own)| (*group, own.len())).collect();
        let groups: Vec<Vec<usize>> =
            rows.into_values().filter(|own| own.len() >= batch).collect();
        let steps = groups.iter().map(|own| own.len() / batch).sum();
        Ok(Self { seed, batch, groups, left_out, epochs: Epochs::new(batch, steps) })
    }

    /// The groups too small for a batch, with their numbers of rows.
    pub fn left_out(&self) -> &BTreeMap<u32, usize> {
        &self.left_out
    }

    fn deal(&self, epoch: usize) -> Vec<usize> {
        let mut stream = stream(self.seed, epoch);
        let mut batches = Vec::new();

        for group in &self.groups {
            let mut own = group.clone();
            own.shuffle(&mut stream);
            batches.extend(own.chunks_exact(self.batch).map(<[usize]>::to_vec));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_too_small_for_a_batch_are_named() {
        let labels = [[7; 9].as_slice(), &[3; 2], &[5; 4]].concat();
        let sampler = Grouped::new(&labels, 4, 1).unwrap();
        assert_eq!(sampler.left_out(), &BTreeMap::from([(3, 2)]));
        assert_eq!(sampler.steps_per_epoch(), 3);
        for batch in [0, 10] {
            let error = Grouped::new(&labels, batch, 1).unwrap_err().to_string();
            assert!(error.contains("1 to 9"), "{error}");
        }
    }
}
