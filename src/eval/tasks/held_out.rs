//! Classification among the concepts that are never trained on: zero-shot in the strict sense.

use super::{ZeroShot, hits};
use crate::error::{Error, Result};
use crate::eval::measurement::Row;
use crate::eval::metrics::classification::Classified;
use crate::eval::{Evaluation, LabelledImages, Test};

/// Measures accuracy among the held-out concepts; every picture must show one of them.
pub(crate) fn measure(
    zero_shot: &ZeroShot<'_>,
    images: &LabelledImages<Test>,
) -> Result<Evaluation> {
    let concepts = &zero_shot.vocabulary.concepts;
    let held_out: Vec<usize> =
        (0..zero_shot.vocabulary.classes).filter(|&c| concepts[c].held_out).collect();

    let split = images.split.as_str();
    let place = |(&concept, &sample): (&usize, &u32)| {
        held_out.binary_search(&concept).ok().ok_or_else(|| {
            let label = &concepts[concept].label;
            Error::corrupt(format!(
                "split {split}: sample {sample} shows {label:?}, which is not held out"
            ))
        })
    };

    let class: Vec<usize> =
        images.concept.iter().zip(&images.sample).map(place).collect::<Result<_>>()?;

    // The other concepts are no candidates: the task is to tell unseen concepts apart.
    let classes: Vec<Vec<usize>> = held_out.iter().map(|&c| vec![c]).collect();
    let classifier = zero_shot.classifier(&classes)?;
    let found = Classified::new(&images.embeddings, &classifier, &class)?;

    let accuracy = found.accuracy();
    let resampled = zero_shot.resampled(&format!("heldout/{split}"), &found);
    let row = Row { task: "heldout", split, n: found.len() };
    let mut out = vec![row.measured("acc1", accuracy.acc1, &resampled[0])];
    if let Some(acc5) = accuracy.acc5 {
        out.push(row.measured("acc5", acc5, &resampled[1]));
    }
    let outcomes = hits("heldout", images, &found).collect();
    Ok(Evaluation { measurements: out, outcomes, ..Evaluation::default() })
}
