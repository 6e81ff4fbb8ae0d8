//! The tables of stage `evaluate` and of `upcycle-evaluate on`.

use super::{Field, Row};

/// The metric of the manifest of `evaluate` that says how long the image tower takes.
///
/// It depends on the machine, so it is no column of a table.
pub const MILLISECONDS_PER_PICTURE: &str = "milliseconds_per_picture";

/// One metric of one task on one split.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MetricRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// Task.
    pub task: String,
    /// Split measured on; `shift` for all shift splits together.
    pub split: String,
    /// Metric.
    pub metric: String,
    /// Its value, a fraction in 0..1.
    pub value: f64,
    /// Low end of the 95 % bootstrap interval.
    pub low: f64,
    /// High end of the 95 % bootstrap interval.
    pub high: f64,
    /// Examples, for probes the draws.
    pub n: u32,
}

impl Row for MetricRow {
    const FILE: &'static str = "metrics.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("point", |row| &mut row.point),
            Field::new("task", |row| &mut row.task),
            Field::new("split", |row| &mut row.split),
            Field::new("metric", |row| &mut row.metric),
            Field::new("value", |row| &mut row.value),
            Field::new("low", |row| &mut row.low),
            Field::new("high", |row| &mut row.high),
            Field::new("n", |row| &mut row.n),
        ]
    }
}

/// One metric of one task on every bootstrap resample of its split.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResampleRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// Task.
    pub task: String,
    /// Split measured on; `shift` for all shift splits together.
    pub split: String,
    /// Metric.
    pub metric: String,
    /// Its value on each resample. The examples of a resample are the same for every model of
    /// a seed, so differences are paired.
    pub values: Vec<f32>,
}

impl Row for ResampleRow {
    const FILE: &'static str = "resamples.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("point", |row| &mut row.point),
            Field::new("task", |row| &mut row.task),
            Field::new("split", |row| &mut row.split),
            Field::new("metric", |row| &mut row.metric),
            Field::new("values", |row| &mut row.values),
        ]
    }
}

/// One picture that one caption found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RetrievalRow {
    /// Number of the query.
    pub query: u32,
    /// The caption that was asked with.
    pub text: String,
    /// Sample of the caption's own picture.
    pub sample: u32,
    /// Rank of that picture among all, 0 the best.
    pub own_rank: u32,
    /// Rank of the picture found, 0 the best.
    pub rank: u32,
    /// Sample of the picture found.
    pub retrieved: u32,
    /// Cosine of the caption and that picture.
    pub score: f32,
}

impl Row for RetrievalRow {
    const FILE: &'static str = "retrievals.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("query", |row| &mut row.query),
            Field::new("text", |row| &mut row.text),
            Field::new("sample", |row| &mut row.sample),
            Field::new("own_rank", |row| &mut row.own_rank),
            Field::new("rank", |row| &mut row.rank),
            Field::new("retrieved", |row| &mut row.retrieved),
            Field::new("score", |row| &mut row.score),
        ]
    }
}

/// One metric of one model on one data set of your own.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SetRow {
    /// Name of the data set.
    pub dataset: String,
    /// Name of the model.
    pub model: String,
    /// Its weights.
    pub pretrained: String,
    /// `zeroshot_classification` or `zeroshot_retrieval`.
    pub task: String,
    /// Split of the data set.
    pub split: String,
    /// Metric.
    pub metric: String,
    /// Its value, a fraction in 0..1.
    pub value: f64,
    /// Low end of the 95 % bootstrap interval.
    pub low: f64,
    /// High end of the 95 % bootstrap interval.
    pub high: f64,
    /// Examples.
    pub n: u32,
}

impl Row for SetRow {
    /// The file is named after the data set.
    const FILE: &'static str = "<set>.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("dataset", |row| &mut row.dataset),
            Field::new("model", |row| &mut row.model),
            Field::new("pretrained", |row| &mut row.pretrained),
            Field::new("task", |row| &mut row.task),
            Field::new("split", |row| &mut row.split),
            Field::new("metric", |row| &mut row.metric),
            Field::new("value", |row| &mut row.value),
            Field::new("low", |row| &mut row.low),
            Field::new("high", |row| &mut row.high),
            Field::new("n", |row| &mut row.n),
        ]
    }
}
