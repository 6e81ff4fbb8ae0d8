//! Batches of rows in random order, whatever they show.

use super::{Epochs, Sampler, stream};
use crate::error::{Error, Result};
use crate::rng::SliceRandom;

/// Plain shuffling; the last rows of an epoch that fill no batch are left out.
#[derive(Debug)]
pub struct Shuffled {
    seed: u64,
    rows: usize,
    epochs: Epochs,
}

impl Shuffled {
    /// The sampler of `rows` rows; a batch larger than that is refused.
    pub fn new(rows: usize, batch: usize, seed: u64) -> Result<Self> {
        if batch == 0 || batch > rows {
            return Err(Error::usage(format!(
                "batch: found {batch}, expected 1 to {rows}, the number of samples"
            )));
        }
        Ok(Self { seed, rows, epochs: Epochs::new(batch, rows / batch) })
    }
}

impl Sampler for Shuffled {
    fn batch(&self, step: usize) -> Vec<usize> {
        self.epochs.batch(step, |epoch| {
            let mut order: Vec<usize> = (0..self.rows).collect();
            order.shuffle(&mut stream(self.seed, epoch));
            order
        })
    }

    fn steps_per_epoch(&self) -> usize {
        self.epochs.steps
    }
}
