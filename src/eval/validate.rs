//! The cheap evaluation during training: four numbers on the validation split.
//!
//! They are defined as in the final tasks, so that the curves lead to the final numbers. The
//! bootstrap, the probes and the other splits are left out.

use std::collections::BTreeSet;

use super::metrics::classification::Classified;
use super::metrics::{classifier, retrieval::Retrieval};
use super::similarity;
use super::{Encoder, Split, Validation, Vocabulary, embed};
use crate::error::Result;
use crate::linalg::Matrix;
use crate::num;

/// How a validation is made.
#[derive(Debug, Clone, Copy)]
pub struct ValidationSettings {
    /// Pictures or captions embedded at a time.
    pub batch: usize,
    /// What the cosines of the contrastive loss are multiplied with: e to the model's logit
    /// scale.
    pub scale: f64,
}

/// Concept accuracy, retrieval recall at 1 both ways, and the contrastive loss, named for
/// `validation.parquet`.
///
/// Retrieval and loss take only the first picture of each concept: pictures of one concept
/// share their captions, and no model could tell equal captions apart. The loss takes the first
/// caption of each and all other pairs as negatives, so it is larger than that of a training
/// batch. Every prompt and every validation picture goes through the towers once.
pub fn validate(
    encoder: &mut dyn Encoder,
    vocabulary: &Vocabulary<'_>,
    validation: &Split<'_, Validation>,
    settings: ValidationSettings,
) -> Result<Vec<(String, f64)>> {
    let batch = settings.batch;
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
    let loss = contrastive(&pictures, &first_captions(&texts, &owner)?, settings.scale)?;

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

/// The first caption of every picture; `owner` is ascending.
fn first_captions(texts: &Matrix, owner: &[usize]) -> Result<Matrix> {
    let is_first = |&i: &usize| i == 0 || owner[i] != owner[i - 1];
    let rows: Vec<usize> = (0..owner.len()).filter(is_first).collect();
    let data = rows.iter().flat_map(|&row| texts.row(row).to_vec()).collect();
    Matrix::new(rows.len(), texts.cols(), data)
}

/// The mean of both cross-entropies over all pairs, in nats: row i of both matrices belongs
/// together, and every other row is a negative. Sums are in f64.
fn contrastive(pictures: &Matrix, texts: &Matrix, scale: f64) -> Result<f64> {
    let cross_entropy = |own: usize, cosines: &[f32]| {
        let logit = |&cosine: &f32| scale * f64::from(cosine);
        let top = cosines.iter().map(logit).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = cosines.iter().map(|cosine| (logit(cosine) - top).exp()).sum();
        top + sum.ln() - logit(&cosines[own])
    };
    let of_pictures = similarity::map_rows(pictures, texts, cross_entropy)?;
    let of_texts = similarity::map_rows(texts, pictures, cross_entropy)?;
    Ok(f64::midpoint(num::mean(&of_pictures), num::mean(&of_texts)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::ops::contrastive::Contrastive;
    use crate::ranks::Alone;
    use crate::rng;

    fn unit(name: &str) -> Matrix {
        let mut matrix = Matrix::zeros(9, 5);
        rng::fill_normal(&mut rng::stream(4, name), 1.0, matrix.data_mut());
        similarity::unit_rows(&matrix, name).unwrap()
    }

    #[test]
    fn the_loss_of_a_validation_is_that_of_a_training_batch() {
        let (pictures, texts, scale) = (unit("pictures"), unit("texts"), 3.0_f64);
        let found = contrastive(&pictures, &texts, scale).unwrap();

        let mut trained = Contrastive::default();
        let logit_scale = num::round_f32(scale.ln());
        let rows = (pictures.data(), texts.data());
        trained.run(&Alone, rows, pictures.cols(), logit_scale).unwrap();
        assert!((found - trained.loss).abs() < 1e-5, "{found} {}", trained.loss);
    }

    #[test]
    fn embeddings_without_information_lose_the_logarithm_of_their_number() {
        let same = Matrix::new(8, 2, [1.0, 0.0].repeat(8)).unwrap();
        let found = contrastive(&same, &same, 20.0).unwrap();
        assert!((found - 8.0_f64.ln()).abs() < 1e-12, "{found}");
    }
}
