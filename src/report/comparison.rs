//! The rows of `comparison.parquet`: every metric of every run over seeds, beside its paired
//! difference from the reference run.

use super::outcomes;
use super::stats::{BySeed, COVERAGE, Difference, paired};
use super::study::{FINAL, MetricKey, Study, over_seeds};
use crate::eval::Mixed;
use crate::num::index_u32;
use crate::tables::{ComparisonRow, LogRow};

/// The rows in the order of runs, then point, task, split and metric.
pub(super) fn comparison(study: &Study<'_>) -> Vec<ComparisonRow> {
    let of_run = |run: &String| -> Vec<ComparisonRow> {
        let own = study.metrics().iter().filter(|(key, _)| key.run == run);
        own.filter_map(|(key, values)| row(study, *key, values)).collect()
    };
    let mut rows: Vec<ComparisonRow> = study.runs.iter().flat_map(of_run).collect();
    rows.extend(study.runs.iter().filter_map(|run| loss_row(study, run)));
    rows
}

/// The contrastive loss over the last tenth of training. All runs of a seed see the same
/// batches, so its difference is paired batch by batch: nothing else measured is as sensitive.
fn loss_row(study: &Study<'_>, run: &str) -> Option<ComparisonRow> {
    let losses = |run: &str| -> BySeed {
        let of_run = study.of(run).filter(|own| !own.log.is_empty());
        of_run.map(|own| (own.seed, last_tenth(&own.log))).collect()
    };
    let values = losses(run);
    let difference =
        study.reference().and_then(|base| paired(&values, &losses(base), COVERAGE));
    let key = MetricKey {
        run,
        point: FINAL,
        task: "training",
        split: "train",
        metric: "contrastive_loss",
    };
    filled(key, &values, difference, None)
}

/// The mean contrastive loss over the last tenth of the steps.
pub(super) fn last_tenth(log: &[LogRow]) -> f64 {
    let from = log.len() - log.len().div_ceil(10);
    crate::num::mean(&log[from..].iter().map(|row| row.clip).collect::<Vec<_>>())
}

fn row(study: &Study<'_>, key: MetricKey<'_>, values: &BySeed) -> Option<ComparisonRow> {
    let base = study.reference().map(|run| MetricKey { run, ..key });
    let difference = base.and_then(|base| study.difference(key, base, COVERAGE));
    let mixed =
        study.reference().and_then(|theirs| outcomes::difference(study, key, theirs));
    filled(key, values, difference, mixed)
}

/// A row, with NaN where something is not defined.
fn filled(
    key: MetricKey<'_>,
    values: &BySeed,
    difference: Option<Difference>,
    mixed: Option<Mixed>,
) -> Option<ComparisonRow> {
    let summary = over_seeds(values)?;
    // Parquet has a column of numbers here, in which NaN says that there is no interval.
    let both = mixed.as_ref().map(|own| own.interval(COVERAGE));
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
        mixed_low: both.map_or(f64::NAN, |own| own.low),
        mixed_high: both.map_or(f64::NAN, |own| own.high),
        mixed_covers: mixed.map_or(String::new(), |own| own.covers.to_string()),
    })
}
