//! The contrastive loss on held-out pairs: what training lowers, on pictures that it never
//! saw. It moves with every pair and not only where a rank changes, so it tells two models
//! apart where accuracies cannot yet.

use super::retrieval::Captions;
use crate::error::Result;
use crate::eval::measurement::Row;
use crate::eval::metrics::contrastive::{first_captions, first_of_each, losses};
use crate::eval::{Bootstrap, Evaluation, LabelledImages, Outcome, Test};
use crate::num;

/// Name of the task; its metric is `loss`, in nats.
pub const TASK: &str = "contrastive";

/// Measures the loss of the first picture of each concept with its first caption, among all
/// such pairs of the split.
pub(crate) fn measure(
    bootstrap: Bootstrap,
    images: &LabelledImages<Test>,
    captions: Captions<'_>,
    scale: f64,
) -> Result<Evaluation> {
    let first = first_of_each(&images.concept);
    let pictures = images.embeddings.select(&first)?;
    let texts = first_captions(captions.texts, captions.owner)?.select(&first)?;
    let found = losses(&pictures, &texts, scale)?;

    let split = images.split.as_str();
    let resampled = bootstrap.resample(&format!("{TASK}/{split}"), 1, |draws| {
        let drawn = draws.examples(found.len());
        vec![num::mean(&drawn.into_iter().map(|pair| found[pair]).collect::<Vec<_>>())]
    });
    let row = Row { task: TASK, split, n: found.len() };
    let outcome = |(&picture, &value): (&usize, &f64)| Outcome {
        task: TASK,
        split: split.to_owned(),
        metric: "loss".to_owned(),
        sample: images.sample[picture],
        value,
    };
    Ok(Evaluation {
        measurements: vec![row.measured("loss", num::mean(&found), &resampled[0])],
        outcomes: first.iter().zip(&found).map(outcome).collect(),
        ..Evaluation::default()
    })
}
