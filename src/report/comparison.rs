//! `comparison.parquet`: every metric of every run over seeds, beside its paired difference
//! from the reference run.

use super::stats::{BySeed, COVERAGE, paired};
use super::study::{Study, over_seeds};
use crate::io::table::{Column, Table};
use crate::num::index_u32;

/// The table in the order of runs, then point, task, split and metric.
pub(super) fn comparison(study: &Study<'_>) -> Table {
    let mut text: [Vec<String>; 5] = Default::default();
    let mut n = Vec::new();
    let mut numbers: [Vec<f64>; 5] = Default::default();
    let nothing = BySeed::new();
    for run in &study.runs {
        for (key, values) in study.metrics().iter().filter(|(key, _)| key.0 == run) {
            let Some(summary) = over_seeds(values) else { continue };
            let (_, point, task, split, metric) = *key;
            let base = study.reference().map(|base| (base, point, task, split, metric));
            let base = base.and_then(|key| study.metrics().get(&key)).unwrap_or(&nothing);
            let difference = paired(values, base, COVERAGE);
            let (low, high) =
                difference.and_then(|d| d.interval).unwrap_or((f64::NAN, f64::NAN));
            let row = [run.as_str(), point, task, split, metric];
            text.iter_mut().zip(row).for_each(|(column, v)| column.push(v.to_owned()));
            n.push(index_u32(summary.n));
            let mean = difference.map_or(f64::NAN, |d| d.mean);
            let row = [summary.mean, summary.std.unwrap_or(f64::NAN), mean, low, high];
            numbers.iter_mut().zip(row).for_each(|(column, v)| column.push(v));
        }
    }
    let [run, point, task, split, metric] = text.map(Column::Text);
    let [mean, std, difference, low, high] = numbers.map(Column::F64);
    Table::new()
        .with("run", run)
        .with("point", point)
        .with("task", task)
        .with("split", split)
        .with("metric", metric)
        .with("mean", mean)
        .with("std", std)
        .with("n", Column::U32(n))
        .with("difference", difference)
        .with("difference_low", low)
        .with("difference_high", high)
}
