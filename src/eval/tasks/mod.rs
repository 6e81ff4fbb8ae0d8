//! The tasks, one per file: embeddings and labels in, measurements out.

pub(super) mod coarse;
pub(super) mod concept;
pub(super) mod few_shot;
pub(super) mod held_out;
pub(super) mod retrieval;

use super::metrics::classification::Classified;
use super::metrics::classifier;
use super::{Bootstrap, Vocabulary};
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
