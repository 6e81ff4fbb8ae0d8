//! The cheap evaluation during training: four numbers on the validation split.
//!
//! They are defined as in the final tasks, so that the curves lead to the final numbers. The
//! bootstrap, the probes and the other splits are left out.

use super::metrics::classification::Classified;
use super::metrics::contrastive::{first_captions, first_of_each, losses};
use super::metrics::{classifier, retrieval::Retrieval};
use super::{Encoder, Split, Validation, Vocabulary, embed};
use crate::error::Result;
use crate::num;

/// Concept accuracy, retrieval recall at 1 both ways, and the contrastive loss, named for
/// `validation.parquet`.
///
/// Retrieval and loss take only the first picture of each concept: pictures of one concept
/// share their captions, and no model could tell equal captions apart. The loss takes the first
/// caption of each and all other pairs as negatives, so it is larger than that of a training
/// batch. Every prompt and every validation picture goes through the towers once, `batch` at a
/// time.
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
    let first = first_of_each(&images.concept);
    let (texts, owner) = embed::captions(encoder, vocabulary, validation, &first, batch)?;

    let pictures = images.embeddings.select(&first)?;
    let pairs = Retrieval::new(&pictures, &texts, &owner)?;
    let captions = first_captions(&texts, &owner)?;
    let loss = num::mean(&losses(&pictures, &captions, encoder.scale()?)?);

    Ok(vec![
        ("concept/acc1".to_owned(), found.accuracy().acc1),
        (
            "retrieval/image_retrieval_recall@1".to_owned(),
            pairs.image_retrieval_recall(1)?,
        ),
        ("retrieval/text_retrieval_recall@1".to_owned(), pairs.text_retrieval_recall(1)?),
        (CONTRASTIVE.to_owned(), loss),
    ])
}

/// The name of the contrastive loss in `validation.parquet`.
pub const CONTRASTIVE: &str = "contrastive/loss";
