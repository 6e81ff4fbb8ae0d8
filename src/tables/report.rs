//! The tables of stage `report`.

use super::{Field, Row};

/// One metric of one run over its seeds, and its difference from the reference run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ComparisonRow {
    /// Name of the run in the configuration.
    pub run: String,
    /// `init` (before training) or `final`.
    pub point: String,
    /// Task.
    pub task: String,
    /// Split measured on.
    pub split: String,
    /// Metric.
    pub metric: String,
    /// Mean over seeds.
    pub mean: f64,
    /// Standard deviation over seeds; NaN below two seeds.
    pub std: f64,
    /// Seeds with a finite value.
    pub n: u32,
    /// Mean difference from the reference run over shared seeds; NaN without one.
    pub difference: f64,
    /// Low end of the 95 % t interval of the difference, with one seed of the paired bootstrap
    /// interval over examples; NaN where it is undefined.
    pub difference_low: f64,
    /// High end of that interval.
    pub difference_high: f64,
    /// Low end of the 95 % interval of the difference over seeds, bases and pictures; NaN for
    /// metrics that are no means over pictures.
    pub mixed_low: f64,
    /// High end of that interval.
    pub mixed_high: f64,
    /// What that interval covers, in words; empty without one.
    pub mixed_covers: String,
}

impl Row for ComparisonRow {
    const FILE: &'static str = "comparison.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("run", |row| &mut row.run),
            Field::new("point", |row| &mut row.point),
            Field::new("task", |row| &mut row.task),
            Field::new("split", |row| &mut row.split),
            Field::new("metric", |row| &mut row.metric),
            Field::new("mean", |row| &mut row.mean),
            Field::new("std", |row| &mut row.std),
            Field::new("n", |row| &mut row.n),
            Field::new("difference", |row| &mut row.difference),
            Field::new("difference_low", |row| &mut row.difference_low),
            Field::new("difference_high", |row| &mut row.difference_high),
            Field::new("mixed_low", |row| &mut row.mixed_low),
            Field::new("mixed_high", |row| &mut row.mixed_high),
            Field::new("mixed_covers", |row| &mut row.mixed_covers),
        ]
    }
}

/// One metric of one model on one set of `evaluate.sets`, and its difference from another
/// model on the same examples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SetComparisonRow {
    /// Name of the set.
    pub set: String,
    /// `zeroshot_classification` or `zeroshot_retrieval`.
    pub task: String,
    /// Metric.
    pub metric: String,
    /// Name of the run; `(untouched)` for the dense model before any of them.
    pub run: String,
    /// Mean over seeds, a fraction in 0..1.
    pub value: f64,
    /// Low end of its 95 % bootstrap interval over examples.
    pub low: f64,
    /// High end of that interval.
    pub high: f64,
    /// Examples.
    pub n: u32,
    /// What it is compared with: `(untouched)` or the reference run.
    pub against: String,
    /// Difference from it, mean over seeds; NaN from itself.
    pub difference: f64,
    /// Low end of the paired 95 % bootstrap interval over examples.
    pub difference_low: f64,
    /// High end of that interval.
    pub difference_high: f64,
}

impl Row for SetComparisonRow {
    const FILE: &'static str = "sets.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("set", |row| &mut row.set),
            Field::new("task", |row| &mut row.task),
            Field::new("metric", |row| &mut row.metric),
            Field::new("run", |row| &mut row.run),
            Field::new("value", |row| &mut row.value),
            Field::new("low", |row| &mut row.low),
            Field::new("high", |row| &mut row.high),
            Field::new("n", |row| &mut row.n),
            Field::new("against", |row| &mut row.against),
            Field::new("difference", |row| &mut row.difference),
            Field::new("difference_low", |row| &mut row.difference_low),
            Field::new("difference_high", |row| &mut row.difference_high),
        ]
    }
}

/// One metric of one value of a factor of section `sweep`, on the validation split, and its
/// difference from the default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SweepRow {
    /// Name of the factor.
    pub factor: String,
    /// Name of the run that is trained.
    pub run: String,
    /// The value, as assignments.
    pub value: String,
    /// Whether it is the default.
    pub is_default: bool,
    /// Metric of `validation.parquet`, or `training/contrastive_loss`.
    pub metric: String,
    /// Mean over seeds, after the last step.
    pub mean: f64,
    /// Seeds with a finite value.
    pub n: u32,
    /// Mean difference from the default over shared seeds; NaN of the default.
    pub difference: f64,
    /// Low end of the 95 % t interval of the difference; NaN below two seeds.
    pub difference_low: f64,
    /// High end of that interval.
    pub difference_high: f64,
}

impl Row for SweepRow {
    const FILE: &'static str = "sweep.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("factor", |row| &mut row.factor),
            Field::new("run", |row| &mut row.run),
            Field::new("value", |row| &mut row.value),
            Field::new("is_default", |row| &mut row.is_default),
            Field::new("metric", |row| &mut row.metric),
            Field::new("mean", |row| &mut row.mean),
            Field::new("n", |row| &mut row.n),
            Field::new("difference", |row| &mut row.difference),
            Field::new("difference_low", |row| &mut row.difference_low),
            Field::new("difference_high", |row| &mut row.difference_high),
        ]
    }
}
