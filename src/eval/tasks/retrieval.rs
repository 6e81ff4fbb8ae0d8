//! Retrieval between pictures and their captions, both ways, at every k of
//! `evaluate.recall_at`.

use crate::error::Result;
use crate::eval::measurement::Row;
use crate::eval::metrics::retrieval::Retrieval;
use crate::eval::{Bootstrap, Evaluation, LabelledImages, Outcome, Test};
use crate::linalg::Matrix;

/// Embedded captions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Captions<'a> {
    /// Unit embeddings [m, P].
    pub(crate) texts: &'a Matrix,
    /// The picture that each caption belongs to `[m]`.
    pub(crate) owner: &'a [usize],
}

/// Measures the recalls of `images` and `captions`. Pictures are resampled, each with all its
/// captions, and always retrieved from the full set of candidates.
pub(crate) fn measure(
    bootstrap: Bootstrap,
    images: &LabelledImages<Test>,
    captions: Captions<'_>,
    recall_at: &[usize],
) -> Result<Evaluation> {
    let found = Retrieval::new(&images.embeddings, captions.texts, captions.owner)?;

    let split = images.split.as_str();
    let mut points = Vec::new();
    for &k in recall_at {
        points.push((found.image_retrieval_recall(k)?, found.text_retrieval_recall(k)?));
    }

    // The same pictures are drawn for every k and both ways.
    let name = format!("retrieval/{split}");
    let resampled = bootstrap.resample(&name, 2 * recall_at.len(), |draws| {
        let drawn = draws.examples(found.images());
        let both = |&k: &usize| {
            let texts = found.image_retrieval_recall_over(k, drawn.iter().copied());
            [texts, found.text_retrieval_recall_over(k, drawn.iter().copied())]
        };
        recall_at.iter().flat_map(both).collect()
    });

    let (mut out, mut outcomes) = (Vec::new(), Vec::new());
    for (index, (&k, &(image, text))) in recall_at.iter().zip(&points).enumerate() {
        let row = Row { task: "retrieval", split, n: found.texts() };
        let metric = format!("image_retrieval_recall@{k}");
        out.push(row.measured(&metric, image, &resampled[2 * index]));
        outcomes.extend(of_pictures(images, &metric, &found.caption_hits(k)));
        let row = Row { task: "retrieval", split, n: found.images() };
        let metric = format!("text_retrieval_recall@{k}");
        out.push(row.measured(&metric, text, &resampled[2 * index + 1]));
        outcomes.extend(of_pictures(images, &metric, &found.image_hits(k)));
    }
    Ok(Evaluation { measurements: out, outcomes, ..Evaluation::default() })
}

/// One outcome per picture.
fn of_pictures(
    images: &LabelledImages<Test>,
    metric: &str,
    values: &[f64],
) -> Vec<Outcome> {
    let outcome = |(&sample, &value): (&u32, &f64)| Outcome {
        task: "retrieval",
        split: images.split.clone(),
        metric: metric.to_owned(),
        sample,
        value,
    };
    images.sample.iter().zip(values).map(outcome).collect()
}
