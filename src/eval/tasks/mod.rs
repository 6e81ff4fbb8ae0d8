//! The tasks, one per file: embeddings and labels in, measurements out.

pub(super) mod coarse;
pub(super) mod concept;
pub(crate) mod contrastive;
pub(super) mod few_shot;
pub(super) mod held_out;
pub(super) mod retrieval;

use super::metrics::classification::Classified;
use super::metrics::classifier;
use super::{Bootstrap, LabelledImages, Outcome, Test, Vocabulary};
use crate::error::Result;
use crate::linalg::Matrix;

/// What every zero-shot task needs.
#[derive(Debug)]
pub(super) struct ZeroShot<'a> {
    pub(super) vocabulary: &'a Vocabulary<'a>,
    /// Embeddings of [`Vocabulary::prompts`].
    pub(super) prompts: &'a Matrix,
    pub(super) bootstrap: Bootstrap,
}

/// Whether each picture is classified rightly: what `acc1` is the mean of.
fn hits(
    task: &'static str,
    images: &LabelledImages<Test>,
    found: &Classified,
) -> impl Iterator<Item = Outcome> {
    images.sample.iter().enumerate().map(move |(index, &sample)| Outcome {
        task,
        split: images.split.clone(),
        metric: "acc1".to_owned(),
        sample,
        value: f64::from(u8::from(found.hit(index))),
    })
}

impl ZeroShot<'_> {
    /// The classifier whose classes are lists of concepts.
    pub(super) fn classifier(&self, classes: &[Vec<usize>]) -> Result<Matrix> {
        let rows = |concepts: &Vec<usize>| {
            concepts.iter().flat_map(|&c| self.vocabulary.rows(c)).collect()
        };
        let members: Vec<Vec<usize>> = classes.iter().map(rows).collect();
        classifier::build(self.prompts, &members)
    }

    /// Resampled accuracies at 1, accuracies at 5 and per-class recalls. Accuracies at 5 are NaN
    /// where there are too few classes for them.
    fn resampled(&self, name: &str, found: &Classified) -> Vec<Vec<f64>> {
        self.bootstrap.resample(name, 3, |draws| {
            let accuracy = found.accuracy_over(draws.examples(found.len()));
            let acc5 = accuracy.acc5.unwrap_or(f64::NAN);
            vec![accuracy.acc1, acc5, accuracy.mean_per_class_recall]
        })
    }
}
