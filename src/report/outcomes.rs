//! Differences picture by picture: from `outcomes.parquet` of two runs to an interval that
//! covers training luck and test pictures ([`crate::eval::mixed()`]).

use std::collections::BTreeMap;

use super::inputs::RunInputs;
use super::stats::COVERAGE;
use super::study::{FINAL, MetricKey, Study};
use crate::eval::{Bootstrap, Mixed, Replicate, mixed};

/// Values of a metric by split and picture.
type Pictures<'a> = BTreeMap<&'a str, BTreeMap<u32, f64>>;

/// The difference of `key.run` from the run `theirs` after training, over the seeds and
/// pictures that both have; `None` for a metric that is no mean over pictures.
pub(super) fn difference(
    study: &Study<'_>,
    key: MetricKey<'_>,
    theirs: &str,
) -> Option<Mixed> {
    if key.point != FINAL || key.run == theirs {
        return None;
    }

    let mut replicates = Vec::new();
    for ours in study.of(key.run) {
        let Some(other) = study.of(theirs).find(|other| other.seed == ours.seed) else {
            continue;
        };
        let strata = paired(&pictures(study, ours, key), &pictures(study, other, key))?;
        replicates.push(Replicate { base: study.config().base_of(ours.seed), strata });
    }

    // Strata are splits: pictures are drawn anew within each.
    let sizes: Vec<usize> = replicates.first()?.strata.iter().map(Vec::len).collect();
    let total: usize = sizes.iter().sum();
    let weight = |size: usize| {
        // The score over shifts is the mean of its splits, whatever their sizes.
        if key.task == "summary" {
            1.0 / sizes.len() as f64
        } else {
            size as f64 / total as f64
        }
    };
    let weights: Vec<f64> = sizes.iter().map(|&size| weight(size)).collect();
    let bootstrap = Bootstrap::new(0, study.config().evaluate.bootstrap).ok()?;
    let name = format!("{}/{}/{}", key.task, key.split, key.metric);
    mixed(&replicates, &weights, (bootstrap, &name), COVERAGE)
}

/// The pictures that a metric is a mean over.
fn pictures<'a>(
    study: &Study<'_>,
    run: &'a RunInputs,
    key: MetricKey<'_>,
) -> Pictures<'a> {
    let shifts = &study.inputs.dataset.shifts;
    let (task, metric) = match (key.task, key.metric) {
        ("summary", "shift") => ("concept", "acc1"),
        own => own,
    };

    let mut found = Pictures::new();
    for row in &run.outcomes {
        // Probes and fine-tuning are judged on all shift splits together.
        let of_split = if key.split == "shift" {
            shifts.contains(&row.split)
        } else {
            row.split == key.split
        };

        let wanted = of_split && row.task == task && row.metric == metric;
        if wanted && row.point == FINAL {
            found.entry(&row.split).or_default().insert(row.sample, row.value);
        }
    }
    found
}

/// Differences in the order of splits and samples; `None` where there are none, or where the
/// two sides do not have the same pictures.
fn paired(ours: &Pictures<'_>, theirs: &Pictures<'_>) -> Option<Vec<Vec<f64>>> {
    if ours.is_empty() || !ours.keys().eq(theirs.keys()) {
        return None;
    }
    let strata = ours.values().zip(theirs.values());
    strata
        .map(|(ours, theirs)| {
            let same = ours.keys().eq(theirs.keys());
            let pairs = ours.values().zip(theirs.values());
            same.then(|| pairs.map(|(a, b)| a - b).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side<'a>(rows: &[(&'a str, u32, f64)]) -> Pictures<'a> {
        let mut all = Pictures::new();
        for &(split, sample, value) in rows {
            all.entry(split).or_default().insert(sample, value);
        }
        all
    }

    #[test]
    fn pictures_are_paired_by_split_and_sample() {
        let ours = side(&[("v2", 7, 1.0), ("v2", 3, 0.0), ("3d", 9, 1.0)]);
        let theirs = side(&[("3d", 9, 0.0), ("v2", 3, 1.0), ("v2", 7, 1.0)]);
        assert_eq!(paired(&ours, &theirs), Some(vec![vec![1.0], vec![-1.0, 0.0]]));
        let other = side(&[("3d", 8, 0.0), ("v2", 3, 1.0), ("v2", 7, 1.0)]);
        assert_eq!(paired(&ours, &other), None);
        assert_eq!(paired(&side(&[]), &side(&[])), None);
    }
}
