//! AdamW over one flat buffer, clipping and the EMA.
//!
//! Which values train and which decay comes as ranges: whoever knows the roles of the tensors
//! hands them over.

use std::ops::Range;

use super::ops::adamw::{self, Coefficients};
use crate::config::OptimConfig;
use crate::engine::Trainable;
use crate::num::round_f32;
use crate::par;

/// Values of a chunk that one thread updates.
const CHUNK: usize = 1 << 14;

/// The optimizer's state: two moments per value and the number of steps taken. Moments of
/// frozen values stay zero, in memory that is never touched.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// First moments.
    pub first: Vec<f32>,
    /// Second moments.
    pub second: Vec<f32>,
    /// Steps taken.
    pub steps: usize,
    ranges: Vec<(Range<usize>, Trainable)>,
}

impl AdamW {
    /// A fresh state for the values of `ranges`, which cover the buffer in order.
    pub fn new(ranges: Vec<(Range<usize>, Trainable)>) -> Self {
        let len = ranges.last().map_or(0, |(range, _)| range.end);
        let chunks = ranges.into_iter().flat_map(|(range, trainable)| {
            let starts = range.clone().step_by(CHUNK);
            starts.map(move |s| (s..(s + CHUNK).min(range.end), trainable))
        });
        let ranges = chunks.collect();
        Self { first: vec![0.0; len], second: vec![0.0; len], steps: 0, ranges }
    }

    /// One step: clips the gradient to the global norm and updates `values` in place. The
    /// norm before clipping comes back.
    pub fn step(
        &mut self,
        values: &mut [f32],
        gradients: &[f32],
        learning_rate: f64,
        config: &OptimConfig,
    ) -> f64 {
        let norm = global_norm(gradients);
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

        // Each chunk of values, with what belongs to it in every other buffer.
        let decay = round_f32(config.weight_decay);
        let mut work = Vec::with_capacity(self.ranges.len());
        let (mut v, mut m, mut s) =
            (values, self.first.as_mut_slice(), self.second.as_mut_slice());
        for (range, trainable) in &self.ranges {
            let (own_v, own_m, own_s);
            (own_v, v) = v.split_at_mut(range.len());
            (own_m, m) = m.split_at_mut(range.len());
            (own_s, s) = s.split_at_mut(range.len());

            // Frozen values are skipped after the cut, which must cover the buffer.
            let Trainable::Train { decay: decays } = trainable else { continue };
            let decay = if *decays { decay } else { 0.0 };
            work.push((own_v, &gradients[range.clone()], own_m, own_s, decay));
        }

        par::for_each_chunk(&mut work, 8, |_, chunks| {
            for (v, g, m, s, decay) in chunks {
                adamw::update(&step, *decay, (v, g), (m, s));
            }
        });
        norm
    }
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
        let chunks = ranges.into_iter().flat_map(|range| {
            let starts = range.clone().step_by(CHUNK);
            starts.map(move |start| start..(start + CHUNK).min(range.end))
        });
        Self { chunks: chunks.collect(), decay: round_f32(decay) }
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

/// The Euclidean norm of a flat gradient: f64 sums of fixed chunks, added in order.
pub fn global_norm(gradients: &[f32]) -> f64 {
    let chunks = gradients.len().div_ceil(CHUNK);
    let squares = par::map(chunks, |chunk| {
        let end = ((chunk + 1) * CHUNK).min(gradients.len());
        gradients[chunk * CHUNK..end].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>()
    });
    squares.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

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
