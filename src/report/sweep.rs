//! The rows of `sweep.parquet`: what each value of each factor of section `sweep` gives on the
//! validation split, beside the default of the same seeds and the same order of data.

use std::collections::BTreeSet;

use super::comparison::last_tenth;
use super::inputs::{ReportInputs, SweepInputs};
use super::stats::{BySeed, COVERAGE, paired, summary};
use crate::num::index_u32;
use crate::tables::SweepRow;

/// The metric of the training loss over its last tenth: batches are the same for all values.
pub(super) const TRAINING_LOSS: &str = "training/contrastive_loss";

/// One row per factor, value and metric, in the order of the configuration.
pub(super) fn rows(inputs: &ReportInputs) -> Vec<SweepRow> {
    let mut rows = Vec::new();
    for value in &inputs.sweep {
        let siblings = inputs.sweep.iter().filter(|other| other.factor == value.factor);
        let default = siblings.clone().find(|other| other.is_default);

        // A metric that one value lacks cannot be compared, but shows.
        let metrics: BTreeSet<&str> = siblings.flat_map(metrics).collect();
        for metric in metrics {
            let own = by_seed(value, metric);

            // The default has nothing to be compared with but itself.
            let theirs = default.filter(|other| !std::ptr::eq(*other, value));
            let theirs = theirs.map(|other| by_seed(other, metric));
            let difference = theirs.and_then(|theirs| paired(&own, &theirs, COVERAGE));
            let interval = difference.and_then(|found| found.interval);
            let (low, high) = interval.unwrap_or((f64::NAN, f64::NAN));

            let Some(own) = summary(own.into_values()) else { continue };
            rows.push(SweepRow {
                factor: value.factor.clone(),
                run: value.run.clone(),
                value: value.value.clone(),
                is_default: value.is_default,
                metric: metric.to_owned(),
                mean: own.mean,
                n: index_u32(own.n),
                difference: difference.map_or(f64::NAN, |found| found.mean),
                difference_low: low,
                difference_high: high,
            });
        }
    }
    rows
}

/// The metrics that a value was measured by.
fn metrics(value: &SweepInputs) -> impl Iterator<Item = &str> {
    let trained = value.seeds.values();
    let validated = trained.clone().flat_map(|own| &own.validation);
    let logged = trained.filter(|own| !own.log.is_empty()).map(|_| TRAINING_LOSS);
    validated.map(|row| row.metric.as_str()).chain(logged)
}

/// A metric after the last step, by seed.
fn by_seed(value: &SweepInputs, metric: &str) -> BySeed {
    let of_seed = |(&seed, own): (&u64, &super::Swept)| {
        if metric == TRAINING_LOSS {
            return (!own.log.is_empty()).then(|| (seed, last_tenth(&own.log)));
        }
        let rows = own.validation.iter().filter(|row| row.metric == metric);
        rows.max_by_key(|row| row.step).map(|row| (seed, row.value))
    };
    value.seeds.iter().filter_map(of_seed).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample::{inputs, swept};
    use super::*;

    #[test]
    fn values_are_compared_with_the_default_of_the_same_seeds_after_the_last_step() {
        let mut study = inputs(&[]);
        study.sweep = swept();
        let found = rows(&study);
        let of = |value: &str, metric: &str| -> SweepRow {
            let row = found.iter().find(|r| r.value == value && r.metric == metric);
            row.unwrap().clone()
        };
        let better = of("subspaces.paper.tau=0.999", "contrastive/loss");
        assert_eq!((better.n, better.is_default), (3, false));
        assert!((better.mean - 1.9).abs() < 1e-9, "{better:?}");
        assert!((better.difference + 0.1).abs() < 1e-9, "{better:?}");
        assert!(better.difference_high < 0.0, "{better:?}");

        // The default is not compared with itself.
        let default = of("subspaces.paper.tau=0.99", "contrastive/loss");
        assert!(default.is_default && default.difference.is_nan());
        let trained = of("subspaces.paper.tau=0.999", TRAINING_LOSS);
        assert!((trained.difference + 0.05).abs() < 1e-9, "{trained:?}");
    }
}
