//! Percentile bootstrap: how far a metric moves when the examples are drawn anew.
//!
//! A resample draws as many examples as there are, with replacement, from the random stream
//! named after task, split and resample. The name does not contain the model, so two models
//! of one seed are judged on the same resamples and differences between them are paired.

use crate::error::{Error, Result};
use crate::num;
use crate::par;
use crate::rng::{self, RngExt};

/// Coverage of an interval, where nothing else is asked for.
const COVERAGE: f64 = 0.95;

/// The ends of a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// The resampling of one evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Bootstrap {
    seed: u64,
    resamples: usize,
}

impl Bootstrap {
    /// `resamples` of each statistic, from run `seed`.
    pub fn new(seed: u64, resamples: usize) -> Result<Self> {
        if resamples == 0 {
            return Err(Error::usage(
                "evaluate.bootstrap is 0, expected at least 1 resample",
            ));
        }
        Ok(Self { seed, resamples })
    }

    /// Evaluates `statistics` on every resample; returns, for each of the `count` statistics,
    /// its value in each resample. `name` is task and split. All statistics of a resample see
    /// the same draws, made by the [`Draws`] handed to them.
    pub fn resample(
        &self,
        name: &str,
        count: usize,
        statistics: impl Fn(&mut Draws) -> Vec<f64> + Sync + Send,
    ) -> Vec<Vec<f64>> {
        let rows = par::map(self.resamples, |resample| {
            let name = format!("eval/bootstrap/{name}/{resample}");
            statistics(&mut Draws(rng::stream(self.seed, &name)))
        });

        // One column per statistic, because each gets an interval of its own.
        (0..count).map(|index| rows.iter().map(|row| row[index]).collect()).collect()
    }
}

/// The random source of one resample's examples.
#[derive(Debug)]
pub struct Draws(rng::Stream);

impl Draws {
    /// Draws n of n examples with replacement.
    pub fn examples(&mut self, n: usize) -> Vec<usize> {
        let n = num::index_u32(n);
        (0..n).map(|_| num::widen(self.0.random_range(0..n))).collect()
    }

    /// Weights of a mean over the population that `draws` observations come from; they sum to
    /// one. Over the draws of these weights, the weighted sum of n observations has Student's
    /// distribution of n - 1 degrees around their mean, in units of its standard error s/√n.
    /// It is linear in the observations, so models under the same weights stay paired. A single
    /// observation says nothing of its spread, and has the weight 1.
    pub fn weights(&mut self, draws: usize) -> Vec<f64> {
        let n = draws as f64;
        if draws < 2 {
            return vec![1.0; draws];
        }
        let normal: Vec<f64> = (0..draws).map(|_| rng::normal_f64(&mut self.0)).collect();
        let squares = (1..draws).map(|_| rng::normal_f64(&mut self.0).powi(2));
        let spread = (squares.sum::<f64>() / (n - 1.0)).sqrt();

        // Centred, the normals turn deviations from m into a normal of variance s² (n - 1).
        let mean = num::mean(&normal);
        let scale = 1.0 / (spread * (n * (n - 1.0)).sqrt());
        normal.iter().map(|z| 1.0 / n + scale * (z - mean)).collect()
    }

    /// A draw of Student's t: a normal over the root of a mean of `degrees` squared normals.
    pub fn student(&mut self, degrees: usize) -> f64 {
        let normal = rng::normal_f64(&mut self.0);
        let squares = (0..degrees).map(|_| rng::normal_f64(&mut self.0).powi(2));
        normal / (squares.sum::<f64>() / degrees as f64).sqrt()
    }
}

impl Interval {
    /// The 95 % percentile interval of resampled values.
    pub fn of(values: &[f64]) -> Self {
        Self::with_coverage(values, COVERAGE)
    }

    /// The percentile interval of another coverage.
    pub fn with_coverage(values: &[f64], coverage: f64) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let tail = (1.0 - coverage) / 2.0;
        Self { low: quantile(&sorted, tail), high: quantile(&sorted, 1.0 - tail) }
    }
}

/// Linear interpolation between order statistics (NumPy's default).
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = fraction * last as f64;
    let below = num::truncate_usize(place).min(last);
    let above = (below + 1).min(last);

    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_between_order_statistics() {
        let values: Vec<f64> = (0..101).rev().map(f64::from).collect();
        let found = Interval::of(&values);
        assert!((found.low - 2.5).abs() < 1e-9 && (found.high - 97.5).abs() < 1e-9);
        let one = Interval::of(&[0.3]);
        assert_eq!((one.low, one.high), (0.3, 0.3));
    }

    #[test]
    fn the_interval_of_a_fraction_has_its_binomial_width() {
        let (n, hits) = (2000_usize, 500_usize);
        let bootstrap = Bootstrap::new(1, 1000).unwrap();
        let fraction = |draws: &mut Draws| {
            let drawn = draws.examples(n);
            vec![drawn.iter().filter(|&&i| i < hits).count() as f64 / n as f64]
        };
        let values = bootstrap.resample("test", 1, fraction).remove(0);
        assert!((num::mean(&values) - 0.25).abs() < 0.002);
        let expected = (0.25 * 0.75 / n as f64).sqrt();
        let found = num::std_dev(&values);
        assert!((found / expected - 1.0).abs() < 0.1, "{found} {expected}");
        let interval = Interval::of(&values);
        let width = (interval.high - interval.low) / (2.0 * 1.96 * expected);
        assert!((width - 1.0).abs() < 0.12, "{width}");
    }

    /// Of Student's t with 2 degrees, 95 % lie within 4.303.
    #[test]
    fn draws_of_student_have_its_tails() {
        let mut draws = Draws(rng::stream(3, "student"));
        let n = 20_000;
        let inside = (0..n).filter(|_| draws.student(2).abs() < 4.302_65).count();
        assert!((inside as f64 / f64::from(n) - 0.95).abs() < 0.005, "{inside}");
    }

    /// The mean of three draws of a normal lies within the interval of its weights as often as
    /// it says, and weights are those of a mean.
    #[test]
    fn weights_cover_the_mean_of_the_population_that_few_draws_come_from() {
        let mut inside = 0;
        for study in 0..400 {
            let mut stream = rng::stream(study, "study");
            let seen: Vec<f64> = (0..3).map(|_| rng::normal_f64(&mut stream)).collect();
            let means = Bootstrap::new(study, 400).unwrap().resample("w", 1, |draws| {
                let weights = draws.weights(3);
                assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                vec![weights.iter().zip(&seen).map(|(w, x)| w * x).sum()]
            });
            let Interval { low, high } = Interval::of(&means[0]);
            inside += u32::from(low <= 0.0 && 0.0 <= high);
        }
        // 95 % of 400 are 380, give or take 4.4; resampling with replacement finds 240 to 300.
        assert!((364..=396).contains(&inside), "{inside}");
        assert_eq!(Draws(rng::stream(1, "one")).weights(1), [1.0]);
    }

    #[test]
    fn streams_differ_by_name_and_repeat() {
        let bootstrap = Bootstrap::new(1, 3).unwrap();
        let first = |draws: &mut Draws| vec![draws.examples(1000)[0] as f64];
        let draw = |name: &str| bootstrap.resample(name, 1, first);
        assert_eq!(draw("concept/v2"), draw("concept/v2"));
        assert_ne!(draw("concept/v2"), draw("concept/3d"));
        assert!(Bootstrap::new(1, 0).is_err());
    }
}
