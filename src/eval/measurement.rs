//! What an evaluation found, for `metrics.parquet` and as JSON.

use serde::Serialize;

use super::Interval;
use crate::error::{Context, Result};
pub use crate::tables::Measurement;

/// How one picture fared in one metric: 1 where the model is right, 0 where it is not, and
/// the mean of these where a metric draws several classifiers. The mean over pictures is the
/// metric: where a picture has several captions that ask, it counts their hits over the mean
/// number of captions.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Task of the metric.
    pub task: &'static str,
    /// Split of the picture.
    pub split: String,
    /// Name of the metric.
    pub metric: String,
    /// Number of the picture's sample.
    pub sample: u32,
    /// 0 to 1, or more of a picture with more captions than most.
    pub value: f64,
}

/// The ℓ2 weight that was chosen for a probe, and the accuracies it was chosen by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// `logistic` or `ridge`.
    pub probe: String,
    /// Examples per class.
    pub shots: usize,
    /// The chosen weight.
    pub l2: f64,
    /// Its accuracy on the validation split, mean over draws.
    pub validation: f64,
    /// All weights tried with their validation accuracy, ascending.
    pub tried: Vec<(f64, f64)>,
}

/// Everything one evaluation of one model says.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Evaluation {
    /// The numbers, in the order of the report.
    pub measurements: Vec<Measurement>,
    /// The ℓ2 weights that were chosen for the probes.
    pub choices: Vec<Choice>,
    /// What could not be measured, and why.
    pub notes: Vec<String>,
    /// Pictures one by one, for differences between models.
    #[serde(skip)]
    pub outcomes: Vec<Outcome>,
}

impl Evaluation {
    /// Adds what a task found.
    pub(super) fn add(&mut self, found: Self) {
        self.measurements.extend(found.measurements);
        self.choices.extend(found.choices);
        self.notes.extend(found.notes);
        self.outcomes.extend(found.outcomes);
    }

    /// The content of `metrics.json`: pretty, keys in declaration order, one final newline.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        text.map(|t| t + "\n").context(|| "writing measurements as JSON".to_owned())
    }

    /// The measurement of a task, split and metric.
    pub fn find(&self, task: &str, split: &str, metric: &str) -> Option<&Measurement> {
        self.measurements
            .iter()
            .find(|m| m.task == task && m.split == split && m.metric == metric)
    }
}

/// The task and split that metrics belong to.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) task: &'a str,
    pub(super) split: &'a str,
    pub(super) n: usize,
}

impl Row<'_> {
    /// A measurement with the percentile interval of its resampled values.
    pub(super) fn measured(
        &self,
        metric: &str,
        value: f64,
        resampled: &[f64],
    ) -> Measurement {
        let Interval { low, high } = Interval::of(resampled);
        Measurement {
            task: self.task.to_owned(),
            split: self.split.to_owned(),
            metric: metric.to_owned(),
            value,
            low,
            high,
            n: crate::num::index_u32(self.n),
            resampled: resampled.to_vec(),
        }
    }
}
