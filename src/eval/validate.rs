//! The cheap evaluation during training: three numbers on the validation split.
//!
//! They are defined as in the final tasks, so that the curves lead to the final numbers. The
//! bootstrap, the probes and the other splits are left out.

use std::collections::BTreeSet;

use super::metrics::classification::Classified;
use super::metrics::{classifier, retrieval::Retrieval};
use super::{Encoder, Split, Validation, Vocabulary, embed};
use crate::error::Result;
use crate::linalg::Matrix;

/// Concept accuracy and retrieval recall at 1 both ways, named for `validation.parquet`.
///
/// Retrieval takes only the first picture of each concept: pictures of one concept share
/// their captions, and no model could tell equal captions apart. Every prompt and every
/// validation picture goes through the towers once.
pub fn validate(
    encoder: &mut dyn Encoder,
    vocabulary: &Vocabulary<'_>,
    validation: &Split<'_, Validation>,
    batch: usize,
) -> Result<Vec<(String, f64)>> {
    validation.check(vocabulary.concepts.len())?;

    let prompts = embed::texts(encoder, vocabulary, &vocabulary.prompts()?, batch)?;
    let classes: Vec<Vec<usize>> =
        (0..vocabulary.classes).map(|c| vocabulary.rows(c).collect()).collect();
    let images = embed::split(encoder, validation, batch)?;
    let classifier = classifier::build(&prompts, &classes)?;
    let known = images.of_classes(vocabulary.classes)?;
    let found = Classified::new(&known.embeddings, &classifier, &known.concept)?;

    // The first picture of each concept, in the order of the split.
    let mut seen = BTreeSet::new();
    let first: Vec<usize> =
        (0..images.len()).filter(|&i| seen.insert(images.concept[i])).collect();
    let (texts, owner) = embed::captions(encoder, vocabulary, validation, &first, batch)?;

    let rows = first.iter().flat_map(|&i| images.embeddings.row(i).to_vec()).collect();
    let pictures = Matrix::new(first.len(), images.embeddings.cols(), rows)?;
    let pairs = Retrieval::new(&pictures, &texts, &owner)?;

    Ok(vec![
        ("concept/acc1".to_owned(), found.accuracy().acc1),
        (
            "retrieval/image_retrieval_recall@1".to_owned(),
            pairs.image_retrieval_recall(1)?,
        ),
        ("retrieval/text_retrieval_recall@1".to_owned(), pairs.text_retrieval_recall(1)?),
    ])
}
