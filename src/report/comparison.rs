//! The rows of `comparison.parquet`: every metric of every run over seeds, beside its paired
//! difference from the reference run.

use super::stats::{BySeed, COVERAGE};
use super::study::{MetricKey, Study, over_seeds};
use crate::num::index_u32;
use crate::tables::ComparisonRow;

/// The rows in the order of runs, then point, task, split and metric.
pub(super) fn comparison(study: &Study<'_>) -> Vec<ComparisonRow> {
    let of_run = |run: &String| -> Vec<ComparisonRow> {
        let own = study.metrics().iter().filter(|(key, _)| key.run == run);
        own.filter_map(|(key, values)| row(study, *key, values)).collect()
    };
    study.runs.iter().flat_map(of_run).collect()
}

fn row(study: &Study<'_>, key: MetricKey<'_>, values: &BySeed) -> Option<ComparisonRow> {
    let summary = over_seeds(values)?;

    let base = study.reference().map(|run| MetricKey { run, ..key });
    let difference = base.and_then(|base| study.difference(key, base, COVERAGE));

    // Parquet has a column of numbers here, in which NaN says that there is no
    // interval.
    let (low, high) = difference.and_then(|d| d.interval).unwrap_or((f64::NAN, f64::NAN));

    Some(ComparisonRow {
        run: key.run.to_owned(),
        point: key.point.to_owned(),
        task: key.task.to_owned(),
        split: key.split.to_owned(),
        metric: key.metric.to_owned(),
        mean: summary.mean,
        std: summary.std.unwrap_or(f64::NAN),
        n: index_u32(summary.n),
        difference: difference.map_or(f64::NAN, |d| d.mean),
        difference_low: low,
        difference_high: high,
    })
}
