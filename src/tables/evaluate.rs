//! The tables of stage `evaluate` and of `upcycle-evaluate on`.

use serde::Serialize;

use super::{Field, Row};

/// The metric of the manifest of `evaluate` that says how long the image tower takes.
///
/// It depends on the machine, so it is no column of a table.
pub const MILLISECONDS_PER_PICTURE: &str = "milliseconds_per_picture";

/// One metric of one task on one split, with its interval.
///
/// It is a part of the rows of both tables of metrics, and of `metrics.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Measurement {
    /// The task: `concept`, `group`, `subgroup`, `heldout`, `retrieval`, `probe` or
    /// `summary`;
    /// on a data set of your own `zeroshot_classification` or `zeroshot_retrieval`.
    pub task: String,
    /// Split measured on; `shift` for all shift splits together.
    pub split: String,
    /// Name of the metric.
    pub metric: String,
    /// Its value, a fraction in 0..1.
    pub value: f64,
    /// Low end of the 95 % bootstrap interval over examples.
    pub low: f64,
    /// High end of the 95 % bootstrap interval over examples.
    pub high: f64,
    /// Number of examples (queries of the task), or of draws for probes.
    pub n: u32,
    /// Its value in every bootstrap resample; no column of these tables. The draws do not
    /// depend on the model, so differences between two models are paired.
    #[serde(skip)]
    pub resampled: Vec<f64>,
}

impl Measurement {
    /// The columns of a measurement that is part of a row of type `R`.
    fn columns_of<R: 'static>(of: fn(&mut R) -> &mut Self) -> Vec<Field<R>> {
        vec![
            Field::of_part("task", of, |own| &mut own.task),
            Field::of_part("split", of, |own| &mut own.split),
            Field::of_part("metric", of, |own| &mut own.metric),
            Field::of_part("value", of, |own| &mut own.value),
            Field::of_part("low", of, |own| &mut own.low),
            Field::of_part("high", of, |own| &mut own.high),
            Field::of_part("n", of, |own| &mut own.n),
        ]
    }
}

/// One measurement before or after training.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MetricRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// What was measured.
    pub measured: Measurement,
}

impl Row for MetricRow {
    const FILE: &'static str = "metrics.parquet";

    fn columns() -> Vec<Field<Self>> {
        let mut columns = vec![Field::new("point", |row: &mut Self| &mut row.point)];
        columns.extend(Measurement::columns_of(|row: &mut Self| &mut row.measured));
        columns
    }
}

/// One measurement of a classifier that sees pixels only.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PixelRow {
    /// `nearest` (the nearest training picture) or `linear` (ridge regression).
    pub classifier: String,
    /// Training pictures that it was fitted on.
    pub pictures: u32,
    /// What was measured.
    pub measured: Measurement,
}

impl Row for PixelRow {
    const FILE: &'static str = "pixels.parquet";

    fn columns() -> Vec<Field<Self>> {
        let mut columns = vec![
            Field::new("classifier", |row: &mut Self| &mut row.classifier),
            Field::new("pictures", |row| &mut row.pictures),
        ];
        columns.extend(Measurement::columns_of(|row: &mut Self| &mut row.measured));
        columns
    }
}

/// How one picture fared in one metric.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutcomeRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// Task.
    pub task: String,
    /// Split of the picture.
    pub split: String,
    /// Metric.
    pub metric: String,
    /// Sample of the picture.
    pub sample: u32,
    /// 1 where the model is right and 0 where not; of probes the mean over draws, and of
    /// captions that ask the hits of the picture's over their mean number.
    pub value: f64,
}

impl Row for OutcomeRow {
    const FILE: &'static str = "outcomes.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("point", |row| &mut row.point),
            Field::new("task", |row| &mut row.task),
            Field::new("split", |row| &mut row.split),
            Field::new("metric", |row| &mut row.metric),
            Field::new("sample", |row| &mut row.sample),
            Field::new("value", |row| &mut row.value),
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

/// One metric of one model on one set of `evaluate.sets`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SetMetricRow {
    /// Name of the set.
    pub set: String,
    /// `zeroshot_classification` or `zeroshot_retrieval`.
    pub task: String,
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

impl Row for SetMetricRow {
    const FILE: &'static str = "set_metrics.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("set", |row| &mut row.set),
            Field::new("task", |row| &mut row.task),
            Field::new("metric", |row| &mut row.metric),
            Field::new("value", |row| &mut row.value),
            Field::new("low", |row| &mut row.low),
            Field::new("high", |row| &mut row.high),
            Field::new("n", |row| &mut row.n),
        ]
    }
}

/// One metric of one model on one set in one bootstrap resample. The examples of a resample
/// are the same for every model, so differences are paired.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SetResampleRow {
    /// Metric.
    pub metric: String,
    /// Number of the resample.
    pub resample: u32,
    /// The metric's value on it.
    pub value: f64,
}

impl Row for SetResampleRow {
    const FILE: &'static str = "set_resamples.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("metric", |row| &mut row.metric),
            Field::new("resample", |row| &mut row.resample),
            Field::new("value", |row| &mut row.value),
        ]
    }
}

/// One measurement of one model on a data set of your own.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SetRow {
    /// Name of the data set.
    pub dataset: String,
    /// Name of the model.
    pub model: String,
    /// Its weights.
    pub pretrained: String,
    /// What was measured.
    pub measured: Measurement,
}

impl Row for SetRow {
    /// The file is named after the data set.
    const FILE: &'static str = "<set>.parquet";

    fn columns() -> Vec<Field<Self>> {
        let mut columns = vec![
            Field::new("dataset", |row: &mut Self| &mut row.dataset),
            Field::new("model", |row| &mut row.model),
            Field::new("pretrained", |row| &mut row.pretrained),
        ];
        columns.extend(Measurement::columns_of(|row: &mut Self| &mut row.measured));
        columns
    }
}
