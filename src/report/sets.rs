//! The comparison on the sets of `evaluate.sets`: each model against the untouched dense model
//! and against the reference run, paired over examples.
//!
//! A bootstrap resample draws the same examples for every model, so the difference of two
//! models in each resample is paired, and its percentiles are the interval. That covers which
//! examples the set happens to have, and not the luck of training.

use super::inputs::{ReportInputs, SetInputs, ordered_runs};
use crate::config::Config;
use crate::eval::Interval;
use crate::num;
use crate::tables::SetComparisonRow;

/// What tables call the dense model that the runs start from.
pub(super) const UNTOUCHED: &str = "(untouched)";

/// A metric of one model: the mean over its seeds, on all examples and on each resample.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    value: f64,
    resampled: Vec<f64>,
    n: u32,
}

/// All rows of `sets.parquet`, set by set.
pub(super) fn comparison(inputs: &ReportInputs) -> Vec<SetComparisonRow> {
    let config = &inputs.config;
    let mut sets: Vec<&str> =
        inputs.sets.iter().map(|found| found.set.as_str()).collect();
    sets.dedup();
    let mut models = vec![UNTOUCHED.to_owned()];
    models.extend(ordered_runs(config));

    let mut rows = Vec::new();
    for set in sets {
        let found: Vec<&SetInputs> =
            inputs.sets.iter().filter(|f| f.set == set).collect();
        let Some(first) = found.first() else { continue };
        for metric in &first.metrics {
            let figure = |model: &str| figure(config, &found, model, &metric.metric);
            for model in &models {
                let Some(ours) = figure(model) else { continue };
                for against in [UNTOUCHED, config.report.reference.as_str()] {
                    let theirs = figure(against).filter(|_| against != model);
                    rows.push(row(
                        (set, &metric.task, &metric.metric),
                        (model, &ours),
                        (against, theirs.as_ref()),
                    ));
                }
            }
        }
    }
    rows
}

/// A metric of a model. The untouched model counts once for each seed that starts from it, so
/// that it is paired with the runs.
fn figure(
    config: &Config,
    found: &[&SetInputs],
    model: &str,
    metric: &str,
) -> Option<Figure> {
    let is_base = model == UNTOUCHED;
    let of_seed = |seed: u64| {
        let (run, seed) =
            if is_base { (None, config.base_of(seed)) } else { (Some(model), seed) };
        let inputs = found.iter().find(|f| f.run.as_deref() == run && f.seed == seed)?;
        let row = inputs.metrics.iter().find(|row| row.metric == metric)?;
        let resamples = inputs.resamples.iter().filter(|row| row.metric == metric);
        Some((row.value, row.n, resamples.map(|row| row.value).collect::<Vec<f64>>()))
    };
    let seeds: Vec<_> = config.seeds.iter().filter_map(|&seed| of_seed(seed)).collect();
    let (_, n, first) = seeds.first()?;

    let values: Vec<f64> = seeds.iter().map(|(value, _, _)| *value).collect();
    let mean_of = |index: usize| {
        let of_seeds = seeds.iter().filter_map(|(_, _, all)| all.get(index).copied());
        num::mean(&of_seeds.collect::<Vec<_>>())
    };
    Some(Figure {
        value: num::mean(&values),
        resampled: (0..first.len()).map(mean_of).collect(),
        n: *n,
    })
}

fn row(
    (set, task, metric): (&str, &str, &str),
    (run, ours): (&str, &Figure),
    (against, theirs): (&str, Option<&Figure>),
) -> SetComparisonRow {
    let own = Interval::of(&ours.resampled);
    let (mut difference, mut paired) =
        (f64::NAN, Interval { low: f64::NAN, high: f64::NAN });
    if let Some(theirs) = theirs {
        difference = ours.value - theirs.value;
        let pairs = ours.resampled.iter().zip(&theirs.resampled);
        paired = Interval::of(&pairs.map(|(a, b)| a - b).collect::<Vec<_>>());
    }
    SetComparisonRow {
        set: set.to_owned(),
        task: task.to_owned(),
        metric: metric.to_owned(),
        run: run.to_owned(),
        value: ours.value,
        low: own.low,
        high: own.high,
        n: ours.n,
        against: against.to_owned(),
        difference,
        difference_low: paired.low,
        difference_high: paired.high,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::num::index_u32;
    use crate::tables::{SetMetricRow, SetResampleRow};

    /// A set on which every run is better than the untouched model by `gain` in each resample.
    pub(in crate::report) fn with_set(gain: f64) -> ReportInputs {
        let mut inputs = crate::report::sample::inputs(&[]);
        let model = |run: Option<&String>, seed: u64| {
            let value = if run.is_some() { 0.5 + gain } else { 0.5 };
            let resample = |index: usize| SetResampleRow {
                metric: "acc1".to_owned(),
                resample: index_u32(index),
                // The luck of the examples is the same for all models.
                value: value + 0.1 * (index as f64 / 20.0 - 0.5),
            };
            SetInputs {
                set: "birds".to_owned(),
                run: run.cloned(),
                seed,
                metrics: vec![SetMetricRow {
                    set: "birds".to_owned(),
                    task: "zeroshot_classification".to_owned(),
                    metric: "acc1".to_owned(),
                    value,
                    low: value - 0.05,
                    high: value + 0.05,
                    n: 40,
                }],
                resamples: (0..21).map(resample).collect(),
            }
        };
        let config = inputs.config.clone();
        inputs.sets = config.base_seeds().iter().map(|&seed| model(None, seed)).collect();
        for run in config.runs.keys() {
            inputs.sets.extend(config.seeds.iter().map(|&seed| model(Some(run), seed)));
        }
        inputs
    }

    #[test]
    fn a_difference_is_paired_and_so_narrower_than_either_interval() {
        let inputs = with_set(0.02);
        let rows = comparison(&inputs);
        assert_eq!(rows.len(), 2 * (inputs.config.runs.len() + 1));
        let of = |run: &str, against: &str| {
            rows.iter().find(|row| row.run == run && row.against == against).unwrap()
        };
        let row = of("drop", UNTOUCHED);
        assert!((row.difference - 0.02).abs() < 1e-12, "{row:?}");
        assert!((row.difference_low - 0.02).abs() < 1e-12, "{row:?}");
        assert!(row.high - row.low > 0.09, "{row:?}");
        assert!(of(UNTOUCHED, UNTOUCHED).difference.is_nan());
        assert!(of("sparse", "sparse").difference.is_nan());
        assert!(of("drop", "sparse").difference.abs() < 1e-12);
    }

    #[test]
    fn without_sets_there_is_no_row() {
        assert!(comparison(&crate::report::sample::inputs(&[])).is_empty());
    }
}
