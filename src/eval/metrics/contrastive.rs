//! The contrastive loss of embedded pairs, as training defines it.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::eval::similarity;
use crate::linalg::Matrix;

/// The loss of each pair in nats, whose mean is the contrastive loss: row i of both matrices
/// belongs together, every other row is a negative, and the cross-entropies of both directions
/// are averaged. Cosines are multiplied with `scale`; sums are in f64.
pub fn losses(pictures: &Matrix, texts: &Matrix, scale: f64) -> Result<Vec<f64>> {
    let cross_entropy = |own: usize, cosines: &[f32]| {
        let logit = |&cosine: &f32| scale * f64::from(cosine);
        let top = cosines.iter().map(logit).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = cosines.iter().map(|cosine| (logit(cosine) - top).exp()).sum();
        top + sum.ln() - logit(&cosines[own])
    };
    let of_pictures = similarity::map_rows(pictures, texts, cross_entropy)?;
    let of_texts = similarity::map_rows(texts, pictures, cross_entropy)?;
    let both = of_pictures.into_iter().zip(of_texts);
    Ok(both.map(|(picture, text)| f64::midpoint(picture, text)).collect())
}

/// The positions of the pictures that take part: the first one of each concept. Pictures of one
/// concept share their captions, and no model could tell equal captions apart.
pub fn first_of_each(concept: &[usize]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    (0..concept.len()).filter(|&picture| seen.insert(concept[picture])).collect()
}

/// The rows of the first caption of every picture; `owner` is ascending.
pub fn first_captions(texts: &Matrix, owner: &[usize]) -> Result<Matrix> {
    let is_first = |&i: &usize| i == 0 || owner[i] != owner[i - 1];
    let rows: Vec<usize> = (0..owner.len()).filter(is_first).collect();
    texts.select(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::ops::contrastive::Contrastive;
    use crate::num;
    use crate::ranks::Alone;
    use crate::rng;

    fn unit(name: &str) -> Matrix {
        let mut matrix = Matrix::zeros(9, 5);
        rng::fill_normal(&mut rng::stream(4, name), 1.0, matrix.data_mut());
        similarity::unit_rows(&matrix, name).unwrap()
    }

    #[test]
    fn the_loss_of_an_evaluation_is_that_of_a_training_batch() {
        let (pictures, texts, scale) = (unit("pictures"), unit("texts"), 3.0_f64);
        let found = num::mean(&losses(&pictures, &texts, scale).unwrap());

        let mut trained = Contrastive::default();
        let logit_scale = num::round_f32(scale.ln());
        let rows = (pictures.data(), texts.data());
        trained.run(&Alone, rows, pictures.cols(), logit_scale).unwrap();
        assert!((found - trained.loss).abs() < 1e-5, "{found} {}", trained.loss);
    }

    #[test]
    fn embeddings_without_information_lose_the_logarithm_of_their_number() {
        let same = Matrix::new(8, 2, [1.0, 0.0].repeat(8)).unwrap();
        for found in losses(&same, &same, 20.0).unwrap() {
            assert!((found - 8.0_f64.ln()).abs() < 1e-12, "{found}");
        }
    }

    #[test]
    fn one_picture_of_each_concept_and_one_caption_of_each_picture_take_part() {
        assert_eq!(first_of_each(&[3, 3, 1, 3, 1, 2]), [0, 2, 5]);
        let texts = Matrix::new(4, 1, vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        let first = first_captions(&texts, &[0, 0, 1, 2]).unwrap();
        assert_eq!(first.data(), [0.0, 2.0, 3.0]);
    }
}
