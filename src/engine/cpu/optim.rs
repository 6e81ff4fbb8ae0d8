//! AdamW over one flat buffer, clipping and the EMA.
//!
//! Which values train and which decay comes as ranges: whoever knows the roles of the tensors
//! hands them over. The buffer is dealt to the ranks in chunks; a rank keeps the moments of its
//! own chunks and updates their values, which then go out to all.

use std::ops::Range;

use super::ops::adamw::{self, Coefficients};
use crate::config::OptimConfig;
use crate::engine::{SavedState, StateBuffer, Trainable};
use crate::error::Result;
use crate::num::round_f32;
use crate::par;
use crate::ranks::{Ranks, Shards};

/// Values of a chunk that one thread updates, at most.
const CHUNK: usize = 1 << 14;

/// The optimizer's state: two moments per value and the number of steps taken. Frozen values
/// have none.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// First moments of the own values, chunk after chunk.
    pub first: Vec<f32>,
    /// Second moments, as the first ones.
    pub second: Vec<f32>,
    /// Steps taken.
    pub steps: usize,
    /// All that trains, cut within tensors: the same for any number of ranks.
    chunks: Vec<Chunk>,
    shards: Shards,
}

/// Values that train and of which all or none decay.
#[derive(Debug, Clone, PartialEq)]
struct Chunk {
    range: Range<usize>,
    decay: bool,
}

impl AdamW {
    /// A fresh state for the values of `ranges`, which cover the buffer in order.
    pub fn new(ranges: Vec<(Range<usize>, Trainable)>, ranks: &dyn Ranks) -> Self {
        let trained =
            ranges.into_iter().filter_map(|(range, trainable)| match trainable {
                Trainable::Train { decay } => Some((range, decay)),
                Trainable::Frozen => None,
            });
        let chunks = trained.flat_map(|(range, decay)| {
            cut(range).map(move |range| Chunk { range, decay })
        });
        let chunks: Vec<Chunk> = chunks.collect();

        let places: Vec<Range<usize>> =
            chunks.iter().map(|chunk| chunk.range.clone()).collect();
        let shards = Shards::new(&places, ranks);
        let len = shards.len();
        Self { first: vec![0.0; len], second: vec![0.0; len], steps: 0, chunks, shards }
    }

    /// Takes over the steps and the own moments of a run that was kept.
    pub fn restore(&mut self, state: &dyn SavedState) -> Result<()> {
        let Self { first, second, shards, .. } = self;
        shards.read(first, |at, out| state.read(StateBuffer::First, at, out))?;
        shards.read(second, |at, out| state.read(StateBuffer::Second, at, out))?;
        self.steps = state.steps();
        Ok(())
    }

    /// Who owns which values.
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// One step: clips the gradient to the global norm and updates `values` in place, those
    /// of all ranks. The norm before clipping comes back. The own part of `gradients` is that
    /// of the whole batch.
    pub fn step(
        &mut self,
        ranks: &dyn Ranks,
        (values, gradients): (&mut [f32], &[f32]),
        learning_rate: f64,
        config: &OptimConfig,
    ) -> Result<f64> {
        let norm = self.norm(ranks, gradients)?;
        let scale = if norm > config.clip_norm { config.clip_norm / norm } else { 1.0 };

        // Corrections are computed in f64: in the first steps, 1 - βᵗ is a small difference of
        // numbers near 1.
        self.steps += 1;
        let count = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let step = Coefficients {
            learning_rate: round_f32(learning_rate),
            beta1: round_f32(config.beta1),
            beta2: round_f32(config.beta2),
            epsilon: round_f32(config.epsilon),
            correction1: round_f32(1.0 - config.beta1.powi(count)),
            correction2: round_f32(1.0 - config.beta2.powi(count)),
            gradient_scale: round_f32(scale),
        };

        self.update(&step, round_f32(config.weight_decay), (&mut *values, gradients));
        self.shards.share(ranks, values)?;
        Ok(norm)
    }

    /// Updates the own values and moments.
    fn update(
        &mut self,
        step: &Coefficients,
        decay: f32,
        (values, gradients): (&mut [f32], &[f32]),
    ) {
        // Each chunk of values, with what belongs to it in every other buffer.
        let own = &self.chunks[self.shards.own()];
        let mut work = Vec::with_capacity(own.len());
        let (mut rest, mut at) = (values, 0);
        let (mut m, mut s) = (self.first.as_mut_slice(), self.second.as_mut_slice());
        for Chunk { range, decay: decays } in own {
            let (head, tail) = rest.split_at_mut(range.end - at);
            let own_v = &mut head[range.start - at..];
            (rest, at) = (tail, range.end);

            let (own_m, own_s);
            (own_m, m) = m.split_at_mut(range.len());
            (own_s, s) = s.split_at_mut(range.len());
            let decay = if *decays { decay } else { 0.0 };
            work.push((own_v, &gradients[range.clone()], own_m, own_s, decay));
        }

        par::for_each_chunk(&mut work, 8, |_, chunks| {
            for (v, g, m, s, decay) in chunks {
                adamw::update(step, *decay, (v, g), (m, s));
            }
        });
    }

    /// The Euclidean norm of a gradient: f64 sums of the chunks, added in their order.
    fn norm(&self, ranks: &dyn Ranks, gradients: &[f32]) -> Result<f64> {
        let own = &self.chunks[self.shards.own()];
        let squares = par::map(own.len(), |index| {
            let own = &gradients[own[index].range.clone()];
            own.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>()
        });
        let all = self.shards.gather(ranks, &squares)?;
        Ok(all.iter().sum::<f64>().sqrt())
    }
}

/// Cuts a range into chunks.
fn cut(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(CHUNK).map(move |start| start..(start + CHUNK).min(end))
}

/// An exponential moving average of some ranges of a flat buffer.
#[derive(Debug, Clone)]
pub struct Average {
    chunks: Vec<Range<usize>>,
    decay: f32,
}

impl Average {
    /// Follows `ranges`, which ascend and do not overlap.
    pub fn new(ranges: impl IntoIterator<Item = Range<usize>>, decay: f64) -> Self {
        let chunks = ranges.into_iter().flat_map(cut).collect();
        Self { chunks, decay: round_f32(decay) }
    }

    /// An average that starts at `values`: zeros where nothing is followed, memory that is
    /// never touched.
    pub fn start(&self, values: &[f32]) -> Vec<f32> {
        let mut average = vec![0.0; values.len()];
        for chunk in &self.chunks {
            average[chunk.clone()].copy_from_slice(&values[chunk.clone()]);
        }
        average
    }

    /// Moves `average` towards `values` by 1 - decay.
    pub fn step(&self, average: &mut [f32], values: &[f32]) {
        let (mut rest, mut at) = (average, 0);
        let mut work = Vec::with_capacity(self.chunks.len());
        for chunk in &self.chunks {
            let (own, others) = rest.split_at_mut(chunk.end - at);
            work.push((&mut own[chunk.start - at..], &values[chunk.clone()]));
            (rest, at) = (others, chunk.end);
        }

        par::for_each_chunk(&mut work, 8, |_, chunks| {
            for (average, values) in chunks {
                adamw::average(average, values, self.decay);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::Alone;

    #[test]
    fn the_norm_is_that_of_all_trained_values_and_frozen_ones_stay() {
        let len = 2 * CHUNK + 100;
        let decay = Trainable::Train { decay: true };
        let ranges = vec![(0..50, decay), (50..60, Trainable::Frozen), (60..len, decay)];
        let mut optimizer = AdamW::new(ranges, &Alone);
        assert_eq!(optimizer.first.len(), len - 10);
        let config = crate::config::load_default(&crate::config::Overrides::default());
        let config = config.unwrap().train.optim;
        let (mut values, gradients) = (vec![1.0; len], vec![2.0; len]);
        let both = (values.as_mut_slice(), gradients.as_slice());
        let norm = optimizer.step(&Alone, both, 1e-3, &config).unwrap();
        assert!((norm - 2.0 * ((len - 10) as f64).sqrt()).abs() < 1e-9 * norm);
        for (index, value) in values.iter().enumerate() {
            let frozen = (50..60).contains(&index);
            assert_eq!(value.to_bits() == 1.0_f32.to_bits(), frozen, "{index}");
        }
    }

    #[test]
    fn an_average_follows_its_ranges_and_leaves_the_rest() {
        let ranges = [3..5, 7..7 + 3 * CHUNK + 11];
        let average = Average::new(ranges.clone(), 0.75);
        let len = 4 * CHUNK;
        let values: Vec<f32> = (0..len).map(|i| (i % 97) as f32).collect();
        let mut moved = average.start(&vec![1.0; len]);
        average.step(&mut moved, &values);
        average.step(&mut moved, &values);
        for (i, (moved, value)) in moved.iter().zip(&values).enumerate() {
            let follows = ranges.iter().any(|range| range.contains(&i));
            let expected = value + 0.75 * 0.75 * (1.0 - value);
            assert!((moved - if follows { expected } else { 0.0 }).abs() < 1e-4, "{i}");
        }
    }
}
