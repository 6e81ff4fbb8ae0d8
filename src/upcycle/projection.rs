//! Projecting an FFN on the subspaces of one expert (METHOD §2.3).
//!
//! The data-aware truncated SVD of the paper (arXiv 2604.13508) equals
//! `W_i = U Uᵀ W`, so given the bases U an expert is two products. With moments about the
//! cluster's mean (`centre: mean`, beyond the paper) the part of the mean output that the
//! projection loses goes to the bias: `b_i = b + (I - U Uᵀ) W μ`, which makes the expert
//! exact on the mean.
//!
//! A soft truncation (ours) takes only the part α of the discarded outputs away:
//!
//! ```text
//! W_i = W - α (I - U Uᵀ) W       b_i = b + α (I - U Uᵀ) W μ
//! ```
//!
//! so α = 1 is the projection, and α = 0 is the dense FFN.

use faer::{Mat, MatRef, Scale};

use crate::ffn::{Ffn, FfnTensors};
use crate::linalg::wide::{narrowed, widened_rows};
use crate::num;

/// What an expert keeps of the outputs of one matrix.
#[derive(Debug)]
pub(super) struct Projection<'a> {
    /// U [out, r]; `None` keeps everything.
    pub(super) basis: Option<Mat<f64>>,
    /// W μ `[out]`, if the bias is to make up for the mean.
    pub(super) mean: Option<&'a [f32]>,
    /// The part α of the discarded outputs that is taken away, 0 to 1.
    pub(super) alpha: f64,
}

/// The dense FFN with both matrices projected.
///
/// Products in f64, rounded once. A full basis returns the dense tensors bit for bit, and so
/// does α = 0.
pub(super) fn project_ffn(
    dense: FfnTensors<'_>,
    fc1: &Projection<'_>,
    fc2: &Projection<'_>,
) -> Ffn {
    let (fc1, fc1_bias) = project(dense.fc1, dense.fc1_bias, fc1);
    let (fc2, fc2_bias) = project(dense.fc2, dense.fc2_bias, fc2);
    Ffn { fc1, fc1_bias, fc2, fc2_bias }
}

/// One matrix, whose rows are as many as the biases, and its bias.
fn project(weight: &[f32], bias: &[f32], to: &Projection<'_>) -> (Vec<f32>, Vec<f32>) {
    let Some(basis) = to.basis.as_ref().filter(|u| u.ncols() < bias.len()) else {
        return (weight.to_vec(), bias.to_vec());
    };

    let whole = widened_rows(weight, weight.len() / bias.len());
    let mut projected = onto(basis.as_ref(), whole.as_ref());
    if to.alpha < 1.0 {
        projected = whole * Scale(1.0 - to.alpha) + projected * Scale(to.alpha);
    }

    // b + α (I - U Uᵀ) W μ: what the projection loses of the mean output.
    let bias = match to.mean {
        None => bias.to_vec(),
        Some(mean) => {
            let mean = Mat::from_fn(mean.len(), 1, |i, _| f64::from(mean[i]));

            // W μ and its projection nearly cancel, which is why all of this is f64.
            let lost = &mean - onto(basis.as_ref(), mean.as_ref());
            let moved = bias.iter().enumerate();
            moved
                .map(|(i, &b)| num::round_f32(f64::from(b) + to.alpha * lost[(i, 0)]))
                .collect()
        }
    };
    (narrowed(projected.as_ref()).into_data(), bias)
}

/// U (Uᵀ A): never the out × out projector.
fn onto(basis: MatRef<'_, f64>, a: MatRef<'_, f64>) -> Mat<f64> {
    basis * (basis.transpose() * a)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{distance, ffn, matrix};
    use super::*;
    use crate::linalg::wide::widened;
    use crate::linalg::{Matrix, orthonormal};
    use crate::rng;

    fn basis(outputs: usize, rank: usize) -> Mat<f64> {
        orthonormal::random(outputs, rank, &mut rng::stream(3, "projection"))
    }

    fn onto_basis(u: Mat<f64>, alpha: f64) -> Projection<'static> {
        Projection { basis: Some(u), mean: None, alpha }
    }

    fn softly(weight: &Matrix, u: &Mat<f64>, alpha: f64) -> Matrix {
        let bias = vec![0.0; weight.rows()];
        let values = project(weight.data(), &bias, &onto_basis(u.clone(), alpha)).0;
        Matrix::new(weight.rows(), weight.cols(), values).unwrap()
    }

    fn only(weight: &Matrix, u: &Mat<f64>) -> Matrix {
        softly(weight, u, 1.0)
    }

    #[test]
    fn a_projection_is_idempotent() {
        let w = matrix(11, 5, 1.0, 1);
        let u = basis(11, 4);
        let once = only(&w, &u);
        assert!(distance(&once, &only(&once, &u)) < 1e-6);
    }

    #[test]
    fn what_is_kept_is_orthogonal_to_what_is_lost() {
        let w = matrix(11, 5, 1.0, 1);
        let u = basis(11, 4);
        let kept = widened(&only(&w, &u));
        let lost = widened(&w) - &kept;
        assert!((kept.transpose() * &lost).norm_max() < 1e-5);
        assert!((u.transpose() * &lost).norm_max() < 1e-6);
        let energy = kept.squared_norm_l2() + lost.squared_norm_l2();
        assert!((energy / widened(&w).squared_norm_l2() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_larger_nested_subspace_loses_no_more() {
        let w = matrix(11, 5, 1.0, 1);
        let u = basis(11, 11);
        let losses: Vec<f64> = (1..=11)
            .map(|r| {
                let part = u.get(.., ..r).to_owned();
                (widened(&w) - widened(&only(&w, &part))).squared_norm_l2()
            })
            .collect();
        assert!(losses.windows(2).all(|pair| pair[1] <= pair[0] + 1e-9), "{losses:?}");
        assert!(losses[10] == 0.0);
    }

    #[test]
    fn a_matrix_inside_the_subspace_stays() {
        let u = basis(11, 4);
        let inside = narrowed((&u * widened(&matrix(4, 5, 1.0, 2))).as_ref());
        assert!(distance(&inside, &only(&inside, &u)) < 1e-6);
    }

    /// The discarded part shrinks by 1 - α and the kept part stays, so the energy that is lost
    /// is `(1 - (1 - α)²) |(I - U Uᵀ) W|²`.
    #[test]
    fn a_soft_truncation_shrinks_what_is_discarded_and_nothing_else() {
        let w = matrix(11, 5, 1.0, 1);
        let u = basis(11, 4);
        let kept = widened(&only(&w, &u));
        let discarded = widened(&w) - &kept;
        for alpha in [0.0, 0.25, 0.5, 0.9, 1.0] {
            let soft = widened(&softly(&w, &u, alpha));
            assert!((onto(u.as_ref(), soft.as_ref()) - &kept).norm_max() < 1e-6);
            let left = &soft - &kept;
            assert!((left - &discarded * Scale(1.0 - alpha)).norm_max() < 1e-6);
            let energy = kept.squared_norm_l2()
                + (1.0 - alpha).powi(2) * discarded.squared_norm_l2();
            assert!((soft.squared_norm_l2() / energy - 1.0).abs() < 1e-6, "{alpha}");
        }
        assert_eq!(softly(&w, &u, 0.0), w);
    }

    /// With a mean μ the affine map is exact on it: `W_i μ + b_i = W μ + b`, whatever α.
    #[test]
    fn the_bias_makes_the_mean_exact() {
        let dense = ffn(5, 11, 4);
        let w = Matrix::new(11, 5, dense.fc1.clone()).unwrap();
        let mu = widened(&matrix(5, 1, 1.0, 5));
        let mean = narrowed((widened(&w) * &mu).as_ref()).into_data();
        for alpha in [0.3, 1.0] {
            let to = Projection { mean: Some(&mean), ..onto_basis(basis(11, 3), alpha) };
            let (w, b) = project(&dense.fc1, &dense.fc1_bias, &to);
            let out = widened_rows(&w, 5) * &mu;
            for i in 0..11 {
                let found = out[(i, 0)] + f64::from(b[i]);
                let expected = f64::from(mean[i]) + f64::from(dense.fc1_bias[i]);
                assert!((found - expected).abs() < 1e-6, "{i}: {found} {expected}");
            }
        }
        let plain = onto_basis(basis(11, 3), 1.0);
        assert_eq!(project(&dense.fc1, &dense.fc1_bias, &plain).1, dense.fc1_bias);
    }

    #[test]
    fn a_full_basis_keeps_every_bit() {
        let dense = ffn(5, 11, 4);
        let mean = vec![1.0; 11];
        for basis in [None, Some(basis(11, 11))] {
            let to = Projection { basis, mean: Some(&mean), alpha: 1.0 };
            let (w, b) = project(&dense.fc1, &dense.fc1_bias, &to);
            assert_eq!((w, b), (dense.fc1.clone(), dense.fc1_bias.clone()));
        }
    }
}
