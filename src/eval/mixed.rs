//! Intervals of a paired difference that cover training luck and test pictures at once.
//!
//! Two runs are compared over seeds and on pictures. Their difference moves for two reasons:
//! another seed (or dense base) would have trained other models, and another draw of pictures
//! would have judged them. All seeds are judged on the same pictures, so the two are crossed:
//! an interval over seeds alone does not know the luck of the pictures, and one over pictures
//! alone does not know that of the training.
//!
//! Each resample draws pictures with replacement within each stratum, the same for all
//! replicates, and then a mean over the population of replicates: with k of them, their mean
//! plus t_{k-1} · s/√k, t drawn from Student's distribution. That is the posterior of a normal
//! mean under the usual flat prior, and what a plain resampling of three seeds lacks: it would
//! miss a third of their variance and all of t's tails. Where there are several bases, they
//! are the replicates, and each counts with the mean over its seeds.
//!
//! A test draws made-up studies and counts how often the interval holds the truth.

use std::collections::BTreeMap;

use super::{Bootstrap, Draws, Interval};
use crate::num;

/// The difference of two runs at one seed, picture by picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicate {
    /// Seed of the dense model that both runs started from.
    pub base: u64,
    /// One list per stratum, as a split is; pictures in the same order in every replicate.
    pub strata: Vec<Vec<f64>>,
}

/// What an interval covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covers {
    /// Dense bases; the luck of theirs is covered where there are two or more.
    pub bases: usize,
    /// Seeds; the luck of training is covered where there are two or more.
    pub seeds: usize,
    /// Pictures.
    pub pictures: usize,
}

/// A mean difference, from which intervals of any coverage are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed {
    /// The weighted mean difference over pictures and replicates.
    pub value: f64,
    /// What its intervals cover.
    pub covers: Covers,
    /// The mean difference in every resample.
    resampled: Vec<f64>,
}

impl Mixed {
    /// The interval of a coverage.
    pub fn interval(&self, coverage: f64) -> Interval {
        Interval::with_coverage(&self.resampled, coverage)
    }
}

impl std::fmt::Display for Covers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bases, seeds, pictures } = self;
        match (bases, seeds) {
            (_, 0 | 1) => write!(f, "{pictures} test pictures, not training luck"),
            (1, _) => write!(
                f,
                "{pictures} test pictures and the training luck of {seeds} seeds, not that \
                 of the one dense base"
            ),
            _ => write!(
                f,
                "{pictures} test pictures and the training luck of {seeds} seeds on {bases} \
                 dense bases"
            ),
        }
    }
}

/// The difference and its resamples; `weights` are those of the strata, and sum to 1. `None`
/// without replicates or pictures, or where replicates differ in shape.
pub fn mixed(
    replicates: &[Replicate],
    weights: &[f64],
    (bootstrap, name): (Bootstrap, &str),
) -> Option<Mixed> {
    let sizes: Vec<usize> = replicates.first()?.strata.iter().map(Vec::len).collect();
    let fits = |r: &Replicate| r.strata.iter().map(Vec::len).eq(sizes.iter().copied());
    if !replicates.iter().all(fits) || sizes.contains(&0) || sizes.len() != weights.len()
    {
        return None;
    }

    let all: Vec<Vec<usize>> = sizes.iter().map(|&n| (0..n).collect()).collect();
    let observed = units(replicates, weights, &all);

    // The pictures of a resample are the same for all replicates: that is what crosses them.
    let mut resampled = bootstrap.resample(name, 1, |draws| {
        let drawn: Vec<Vec<usize>> = sizes.iter().map(|&n| draws.examples(n)).collect();
        vec![population_mean(&units(replicates, weights, &drawn), draws)]
    });
    let bases: std::collections::BTreeSet<u64> =
        replicates.iter().map(|r| r.base).collect();
    Some(Mixed {
        value: num::mean(&observed),
        resampled: resampled.remove(0),
        covers: Covers {
            bases: bases.len(),
            seeds: replicates.len(),
            pictures: sizes.iter().sum(),
        },
    })
}

/// The mean difference of each independent replicate on the drawn pictures: of each base
/// where there are several, else of each seed.
fn units(replicates: &[Replicate], weights: &[f64], drawn: &[Vec<usize>]) -> Vec<f64> {
    let on_drawn = |replicate: &Replicate| -> f64 {
        let strata = replicate.strata.iter().zip(drawn).zip(weights);
        strata
            .map(|((values, drawn), weight)| {
                let total: f64 = drawn.iter().map(|&picture| values[picture]).sum();
                weight * total / drawn.len() as f64
            })
            .sum()
    };

    // Seeds of one base share its luck, so several bases are what is independent.
    let mut by_base: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for replicate in replicates {
        by_base.entry(replicate.base).or_default().push(on_drawn(replicate));
    }

    if by_base.len() > 1 {
        return by_base.values().map(|seeds| num::mean(seeds)).collect();
    }
    by_base.into_values().flatten().collect()
}

/// A draw of the mean of the population that the units come from.
fn population_mean(units: &[f64], draws: &mut Draws) -> f64 {
    let mean = num::mean(units);
    if units.len() < 2 {
        return mean;
    }
    let error = num::std_dev(units) / (units.len() as f64).sqrt();
    mean + error * draws.student(units.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{self, normal_f64};

    /// Standard deviations of the parts of a difference.
    #[derive(Clone, Copy)]
    struct World {
        base: f64,
        seed: f64,
        picture: f64,
        rest: f64,
    }

    const TRUTH: f64 = 0.01;

    /// A study of some seeds on each of some bases over two strata of 40 and 60 pictures.
    fn study(world: World, [bases, seeds]: [u64; 2], number: usize) -> Vec<Replicate> {
        let mut stream = rng::stream(number as u64, "mixed/world");
        let mut normal = |std: f64| std * normal_f64(&mut stream);
        let pictures: Vec<f64> = (0..100).map(|_| normal(world.picture)).collect();
        let mut all = Vec::new();
        for base in 0..bases {
            let of_base = normal(world.base);
            for _ in 0..seeds {
                let of_seed = TRUTH + of_base + normal(world.seed);
                let values: Vec<f64> =
                    pictures.iter().map(|p| of_seed + p + normal(world.rest)).collect();
                let strata = vec![values[..40].to_vec(), values[40..].to_vec()];
                all.push(Replicate { base, strata });
            }
        }
        all
    }

    /// How often 300 studies find the truth: by the mixed interval, and by t over seeds alone.
    fn coverage(world: World, shape: [u64; 2]) -> (f64, f64) {
        let (mut mixed_hits, mut t_hits) = (0, 0);
        for number in 0..300 {
            let replicates = study(world, shape, number);
            let bootstrap = Bootstrap::new(number as u64, 200).unwrap();
            let weights = [0.4, 0.6];
            let found = mixed(&replicates, &weights, (bootstrap, "test")).unwrap();
            let Interval { low, high } = found.interval(0.95);
            mixed_hits += u32::from((low..=high).contains(&TRUTH));

            let all: [Vec<usize>; 2] = [(0..40).collect(), (0..60).collect()];
            let own = units(&replicates, &weights, &all);
            let half = 4.303 * num::std_dev(&own) / 3.0_f64.sqrt();
            t_hits += u32::from((num::mean(&own) - TRUTH).abs() <= half);
        }
        (f64::from(mixed_hits) / 300.0, f64::from(t_hits) / 300.0)
    }

    /// 95 % of 300 studies are 285 ± 3.8; an interval may be too wide, but not too narrow.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let world = |base, seed, picture, rest| World { base, seed, picture, rest };
        for (name, world, shape) in [
            ("pictures decide", world(0.0, 0.0, 0.3, 0.1), [1, 3]),
            ("seeds decide", world(0.0, 0.05, 0.02, 0.1), [1, 3]),
            ("both count", world(0.0, 0.03, 0.3, 0.3), [1, 3]),
            ("bases decide", world(0.05, 0.01, 0.1, 0.1), [3, 2]),
        ] {
            let (found, _) = coverage(world, shape);
            assert!(found >= 0.915, "{name}: {found}");
        }
    }

    /// The reason for all this: an interval over three seeds does not know the pictures.
    #[test]
    fn an_interval_over_seeds_alone_misses_the_luck_of_the_pictures() {
        let world = World { base: 0.0, seed: 0.0, picture: 0.3, rest: 0.05 };
        let (found, over_seeds) = coverage(world, [1, 3]);
        assert!(over_seeds < 0.7, "{over_seeds}");
        assert!(found > over_seeds + 0.2, "{found} {over_seeds}");
    }

    #[test]
    fn one_seed_gives_an_interval_of_pictures_and_says_so() {
        let replicate = Replicate { base: 1, strata: vec![vec![0.0, 1.0, 0.0, 1.0]] };
        let bootstrap = Bootstrap::new(1, 500).unwrap();
        let found = mixed(&[replicate], &[1.0], (bootstrap, "one")).unwrap();
        assert!((found.value - 0.5).abs() < 1e-12);
        let Interval { low, high } = found.interval(0.95);
        assert_eq!((low, high), (0.0, 1.0));
        let narrow = found.interval(0.5);
        assert!(low < narrow.low && narrow.high < high, "{narrow:?}");
        assert_eq!(found.covers.to_string(), "4 test pictures, not training luck");
    }

    #[test]
    fn shapes_that_disagree_give_nothing() {
        let of = |values: &[f64]| Replicate { base: 1, strata: vec![values.to_vec()] };
        let bootstrap = Bootstrap::new(1, 5).unwrap();
        let asked = |all: &[Replicate]| mixed(all, &[1.0], (bootstrap, "no"));
        assert!(asked(&[]).is_none());
        assert!(asked(&[of(&[])]).is_none());
        assert!(asked(&[of(&[0.1]), of(&[0.1, 0.2])]).is_none());
    }
}
