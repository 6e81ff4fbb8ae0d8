//! Means, spreads and paired intervals: over training seeds, bases and test pictures at once
//! where single pictures are known, else over seeds, and over examples where there is one.
//!
//! The report's claims rest on this file, so it is small and tested against printed tables.
//! Values that are not finite are left out, and the n that remains is returned with every
//! result.

use std::collections::BTreeMap;

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::eval::{Covers, Mixed};

/// Values of one metric, one per seed.
pub type BySeed = BTreeMap<u64, f64>;

/// Coverage of every interval in the report.
pub const COVERAGE: f64 = 0.95;

/// Mean and spread of one metric over seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Number of finite values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their unbiased standard deviation; `None` below two values.
    pub std: Option<f64>,
}

/// A mean difference over the seeds that two runs share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Number of shared seeds with finite values on both sides.
    pub n: usize,
    /// Mean of the differences.
    pub mean: f64,
    /// The interval at [`COVERAGE`]. `None` where a spread cannot be estimated: below two
    /// seeds, or when all differences agree to the last digit without being zero.
    pub interval: Option<(f64, f64)>,
    /// What an interval over seeds, bases and pictures covers; `None` for the others.
    pub covers: Option<Covers>,
}

/// What a difference between two models is estimated from.
#[derive(Debug, Clone, PartialEq)]
pub enum Estimate {
    /// Pictures one by one, at every seed.
    Pictures(Mixed),
    /// The differences of the shared seeds.
    Seeds(Vec<f64>),
    /// The values of one seed, and their difference on paired resamples of the examples.
    Examples((f64, f64), Vec<f64>),
}

impl Estimate {
    /// The difference with an interval of the given coverage; `None` without a finite value.
    pub fn at(&self, coverage: f64) -> Option<Difference> {
        match self {
            Self::Seeds(differences) => one_sample(differences.iter().copied(), coverage),
            Self::Examples(pair, resampled) => {
                over_examples(*pair, resampled.iter().copied(), coverage)
            }
            Self::Pictures(mixed) => Some(over_pictures(mixed, coverage)),
        }
    }

    /// The differences over the seeds that both sides have.
    pub fn over_seeds(a: &BySeed, b: &BySeed) -> Self {
        Self::Seeds(shared(a, b))
    }
}

/// A difference over seeds, bases and pictures.
fn over_pictures(mixed: &Mixed, coverage: f64) -> Difference {
    let (mean, ends) = (mixed.value, mixed.interval(coverage));

    // Where no resample moves there is no spread to tell anything about.
    let spread = ends.high > ends.low || mean == 0.0;
    Difference {
        n: mixed.covers.seeds,
        mean,
        interval: spread.then_some((ends.low, ends.high)),
        covers: Some(mixed.covers),
    }
}

/// What an interval lets us say about the sign of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The whole interval is above zero.
    Above,
    /// The whole interval is below zero.
    Below,
    /// The interval contains zero: the difference is within the noise.
    Covered,
    /// There is no interval.
    Unknown,
}

impl Difference {
    /// Why there is no interval, in as few words as stand below a number.
    pub fn without_interval(&self) -> &'static str {
        if self.n < 2 { "one seed" } else { "the same in every seed" }
    }

    /// What the interval says about the sign.
    pub fn sign(&self) -> Sign {
        match self.interval {
            None => Sign::Unknown,
            Some((low, _)) if low > 0.0 => Sign::Above,
            Some((_, high)) if high < 0.0 => Sign::Below,
            Some(_) => Sign::Covered,
        }
    }
}

/// Mean and spread; `None` without a finite value.
pub fn summary(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
    let values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    if values.is_empty() {
        return None;
    }
    let n = values.len();

    let mean = crate::num::mean(&values);
    let std = (n > 1).then(|| crate::num::std_dev(&values));
    Some(Summary { n, mean, std })
}

/// Paired difference `a - b` over shared seeds, with a t interval of the given coverage.
pub fn paired(a: &BySeed, b: &BySeed, coverage: f64) -> Option<Difference> {
    one_sample(shared(a, b), coverage)
}

/// The differences over shared seeds.
fn shared(a: &BySeed, b: &BySeed) -> Vec<f64> {
    a.iter().filter_map(|(seed, x)| b.get(seed).map(|y| x - y)).collect()
}

/// The difference `a - b` of one seed, with the percentile interval of the given coverage over
/// the differences of paired bootstrap resamples of the examples. The interval covers which
/// examples were drawn, and not the luck of training.
pub fn over_examples(
    (a, b): (f64, f64),
    resamples: impl IntoIterator<Item = f64>,
    coverage: f64,
) -> Option<Difference> {
    let mean = a - b;
    let mut sorted: Vec<f64> = resamples.into_iter().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let tail = 0.5 - coverage / 2.0;
    let ends = (quantile(&sorted, tail), quantile(&sorted, 1.0 - tail));

    // Models that agree on every example tell nothing about how far they may differ.
    let spread = ends.1 > ends.0 || mean == 0.0;
    let interval = ends.0.is_finite().then_some(ends).filter(|_| spread);
    mean.is_finite().then_some(Difference { n: 1, mean, interval, covers: None })
}

/// Linear interpolation between order statistics; NaN without a value.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = fraction * last as f64;
    let below = crate::num::truncate_usize(place).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

/// Mean of the values with a t interval of the given coverage.
pub fn one_sample(
    values: impl IntoIterator<Item = f64>,
    coverage: f64,
) -> Option<Difference> {
    let Summary { n, mean, std } = summary(values)?;

    // Values that agree to the last digit tell nothing about their spread, and an interval
    // of no width would claim too much.
    let interval = std.filter(|&std| std > 0.0 || mean == 0.0).map(|std| {
        let half = t_quantile(0.5 + coverage / 2.0, n - 1) * std / (n as f64).sqrt();
        (mean - half, mean + half)
    });
    Some(Difference { n, mean, interval, covers: None })
}

/// Quantile of Student's t for a probability in (0.5, 1); infinite below one degree of
/// freedom.
pub fn t_quantile(probability: f64, degrees: usize) -> f64 {
    // statrs refuses zero degrees of freedom, where no finite interval exists.
    let t = StudentsT::new(0.0, 1.0, degrees as f64);
    t.map_or(f64::INFINITY, |t| t.inverse_cdf(probability))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(values: &[f64]) -> BySeed {
        values.iter().enumerate().map(|(i, &v)| (i as u64, v)).collect()
    }

    #[test]
    fn t_quantiles_match_the_printed_tables() {
        // Two-sided 95 % and 99 % critical values.
        let table = [
            (1, 0.975, 12.706_204_736),
            (2, 0.975, 4.302_652_730),
            (3, 0.975, 3.182_446_305),
            (4, 0.975, 2.776_445_105),
            (9, 0.975, 2.262_157_163),
            (30, 0.975, 2.042_272_456),
            (1000, 0.975, 1.962_339_081),
            (2, 0.995, 9.924_843_201),
            (10, 0.995, 3.169_272_673),
        ];
        for (degrees, probability, expected) in table {
            let found = t_quantile(probability, degrees);
            assert!((found - expected).abs() < 1e-8 * expected, "{degrees}: {found}");
        }
    }

    #[test]
    fn a_paired_interval_matches_a_computation_by_hand() {
        // Differences 1, 2, 3: mean 2, std 1, half width 4.30265 / sqrt 3.
        let found = paired(&seeds(&[2.0, 4.0, 6.0]), &seeds(&[1.0, 2.0, 3.0]), COVERAGE);
        let found = found.unwrap();
        let (low, high) = found.interval.unwrap();
        assert_eq!((found.n, found.sign()), (3, Sign::Covered));
        assert!((found.mean - 2.0).abs() < 1e-12);
        assert!((high - 4.484_137_713).abs() < 1e-8, "{high}");
        assert!((low + 0.484_137_713).abs() < 1e-8, "{low}");
    }

    #[test]
    fn one_seed_is_judged_by_paired_resamples() {
        let resamples = (0..=100).map(|i| f64::from(i) / 100.0);
        let found = over_examples((0.8, 0.3), resamples, COVERAGE).unwrap();
        let (low, high) = found.interval.unwrap();
        assert!((low - 0.025).abs() < 1e-12 && (high - 0.975).abs() < 1e-12);
        assert_eq!((found.n, found.sign()), (1, Sign::Above));
        assert!((found.mean - 0.5).abs() < 1e-12);
        let none = over_examples((0.8, 0.3), [], COVERAGE).unwrap();
        assert_eq!((none.interval, none.sign()), (None, Sign::Unknown));
        let same = over_examples((0.8, 0.3), [0.5; 9], COVERAGE).unwrap();
        assert_eq!(same.sign(), Sign::Unknown);
        assert!(over_examples((f64::NAN, 0.3), [0.5; 9], COVERAGE).is_none());
    }

    #[test]
    fn only_shared_finite_seeds_count() {
        let a = BySeed::from([(1, 1.0), (2, f64::NAN), (3, 3.0), (9, 7.0)]);
        let b = BySeed::from([(1, 0.5), (2, 1.0), (3, 2.0)]);
        let found = paired(&a, &b, COVERAGE).unwrap();
        assert_eq!(found.n, 2);
        assert!((found.mean - 0.75).abs() < 1e-12);
        assert!(paired(&a, &BySeed::new(), COVERAGE).is_none());
        assert!(summary([f64::NAN, f64::INFINITY]).is_none());
    }

    #[test]
    fn no_interval_where_the_spread_cannot_be_estimated() {
        let one = one_sample([0.3], COVERAGE).unwrap();
        assert_eq!((one.interval, one.sign()), (None, Sign::Unknown));
        let tied = one_sample([0.25, 0.25, 0.25], COVERAGE).unwrap();
        assert_eq!(tied.sign(), Sign::Unknown);
        let same = one_sample([0.0, 0.0], COVERAGE).unwrap();
        assert_eq!(same.sign(), Sign::Covered);
    }

    #[test]
    fn intervals_cover_the_truth_as_often_as_they_say() {
        // Sums of twelve uniforms are nearly normal; 4,000 draws of n = 3.
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let mut normal = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
        let covered = (0..4000)
            .filter(|_| {
                let draw = [normal(), normal(), normal()];
                one_sample(draw, COVERAGE).unwrap().sign() == Sign::Covered
            })
            .count();
        assert!((3740..3860).contains(&covered), "{covered} of 4000");
    }
}
