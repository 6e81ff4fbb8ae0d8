//! Batches in which no concept meets itself.
//!
//! ```text
//! rows of concept a, b, c, ..      each shuffled, concepts shuffled
//! a1 a2 a3 b1 c1 c2 d1 ..          dealt to K batches like cards:
//! batch 1: a1 b1 ..   batch 2: a2 c1 ..   batch 3: a3 c2 ..
//! ```
//!
//! A concept with at most K rows cannot meet itself in a batch, so that the contrastive loss
//! has no false negatives; a row is dealt at most once an epoch. K B rows are dealt; which
//! ones are left out is drawn anew in each epoch.

use std::collections::BTreeMap;

use super::{Epochs, Sampler, stream};
use crate::error::{Error, Result};
use crate::rng::SliceRandom;

/// Batches of B rows of B concepts.
#[derive(Debug)]
pub struct Concepts {
    seed: u64,
    batch: usize,
    /// Rows of every concept.
    rows: Vec<Vec<usize>>,
    epochs: Epochs,
}

impl Concepts {
    /// The sampler of rows with these concepts; a batch larger than their number is refused.
    pub fn new(concepts: &[u32], batch: usize, seed: u64) -> Result<Self> {
        let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (row, concept) in concepts.iter().enumerate() {
            rows.entry(*concept).or_default().push(row);
        }

        let rows: Vec<Vec<usize>> = rows.into_values().collect();
        if batch == 0 || batch > rows.len() {
            return Err(Error::usage(format!(
                "a batch holds a concept at most once: batch {batch} of {} concepts",
                rows.len()
            )));
        }
        let epochs = Epochs::new(batch, steps_per_epoch(&rows, batch));
        Ok(Self { seed, batch, rows, epochs })
    }

    fn deal(&self, epoch: usize) -> Vec<usize> {
        let (steps, size) = (self.epochs.steps, self.batch);
        let mut stream = stream(self.seed, epoch);

        let mut hands = self.rows.clone();
        hands.shuffle(&mut stream);

        // A concept deals at most one card per batch; the others of its rows wait for
        // another epoch.
        let mut cards = Vec::new();
        for hand in &mut hands {
            hand.shuffle(&mut stream);
            cards.extend_from_slice(&hand[..hand.len().min(steps)]);
        }

        // Cards beyond K B are left out at random, without disturbing the order of the rest.
        let mut kept: Vec<usize> = (0..cards.len()).collect();
        kept.shuffle(&mut stream);
        kept.truncate(steps * size);
        kept.sort_unstable();

        let mut places: Vec<usize> = (0..steps).collect();
        places.shuffle(&mut stream);
        let mut order = vec![0; steps * size];
        for (i, card) in kept.into_iter().enumerate() {
            order[places[i % steps] * size + i / steps] = cards[card];
        }
        order
    }
}

impl Sampler for Concepts {
    fn batch(&self, step: usize) -> Vec<usize> {
        self.epochs.batch(step, |epoch| self.deal(epoch))
    }

    fn steps_per_epoch(&self) -> usize {
        self.epochs.steps
    }
}

/// The largest K such that K full batches can be dealt with no concept twice in one.
fn steps_per_epoch(concepts: &[Vec<usize>], batch: usize) -> usize {
    let total: usize = concepts.iter().map(Vec::len).sum();
    let fits =
        |k: usize| concepts.iter().map(|c| c.len().min(k)).sum::<usize>() >= k * batch;
    (1..=total / batch).rev().find(|&k| fits(k)).unwrap_or(1)
}
