//! Retrieval between pictures and their captions, both ways, at every k of
//! `evaluate.recall_at`.

use crate::error::Result;
use crate::eval::measurement::Row;
use crate::eval::metrics::retrieval::Retrieval;
use crate::eval::{Bootstrap, LabelledImages, Measurement, Test};
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
) -> Result<Vec<Measurement>> {
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

    let mut out = Vec::new();
    for (index, (&k, &(image, text))) in recall_at.iter().zip(&points).enumerate() {
        let row = Row { task: "retrieval", split, n: found.texts() };
        let metric = format!("image_retrieval_recall@{k}");
        out.push(row.measured(&metric, image, &resampled[2 * index]));
        let row = Row { task: "retrieval", split, n: found.images() };
        let metric = format!("text_retrieval_recall@{k}");
        out.push(row.measured(&metric, text, &resampled[2 * index + 1]));
    }
    Ok(out)
}
