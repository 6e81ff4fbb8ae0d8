//! The table of stage `report`.

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
        ]
    }
}
