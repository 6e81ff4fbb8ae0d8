//! Drop-SVD: every expert forgets the directions its matrices use least.
//!
//! Each matrix W = U Σ Vᵀ (m = min(out, in) singular values) keeps its largest singular
//! values with their vectors. The vectors of the ceil(r·m) smallest are replaced, left and
//! right, by random orthonormal directions in the orthogonal complement of the kept ones;
//! the singular values stay. Biases are kept. Introduced as a comparison in the supplement
//! of the cluster-aware paper (section A, r = 0.25), which says "reinitializes"; that the
//! new directions are orthonormal and the spectrum unchanged is our reading.

use faer::{Mat, MatRef};

use super::{Form, LayerInput, MakeExperts, Method, Parameter, Router};
use crate::error::{Context as _, Result};
use crate::ffn::Ffn;
use crate::linalg::wide::{narrowed, widened_rows};
use crate::linalg::{orthonormal, svd};
use crate::num;
use crate::par;
use crate::rng::Stream;

/// Method `drop-svd`: the lowest singular directions of every expert are redrawn.
#[derive(Debug)]
pub struct DropSvd;

impl Method for DropSvd {
    fn name(&self) -> &'static str {
        "drop-svd"
    }

    fn reference(&self) -> &'static str {
        "Chu et al., Enhancing Mixture-of-Experts Specialization via Cluster-Aware \
         Upcycling, CVPR 2026, supplement A, https://arxiv.org/abs/2604.13508"
    }

    fn describe(&self) -> &'static str {
        "the fraction `ratio` of lowest singular directions is redrawn; random router"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter::Ratio]
    }

    fn form(&self) -> Form<'_> {
        Form::Experts(Router::Random, self)
    }
}

impl MakeExperts for DropSvd {
    fn experts(&self, layer: &LayerInput<'_>) -> Result<Vec<Ffn>> {
        let (dense, ratio) = (layer.dense, layer.settings.ratio());
        let split = |weight, cols, tensor: &str| {
            let found = Split::of(widened_rows(weight, cols), ratio);
            found.context(|| format!("{}: {tensor}", layer.streams.place()))
        };

        // The decompositions serve all experts: only the draws differ.
        let (fc1, fc2) = par::join(
            || split(dense.fc1, dense.width(), "fc1"),
            || split(dense.fc2, dense.hidden(), "fc2"),
        );
        let (fc1, fc2) = (fc1?, fc2?);

        Ok(par::map(layer.settings.experts(), |index| {
            let mut stream = layer.streams.expert(self.name(), index);
            Ffn {
                fc1: fc1.redrawn(&mut stream),
                fc1_bias: dense.fc1_bias.to_vec(),
                fc2: fc2.redrawn(&mut stream),
                fc2_bias: dense.fc2_bias.to_vec(),
            }
        }))
    }
}

/// A matrix split at a singular value: computed once per layer, used by every expert.
#[derive(Debug)]
struct Split {
    /// W [out, in].
    weight: Mat<f64>,
    /// The part of the matrix that is replaced, W minus its kept part [out, in].
    low: Mat<f64>,
    /// Kept left vectors [out, k].
    left: Mat<f64>,
    /// Kept right vectors [in, k].
    right: Mat<f64>,
    /// The singular values whose vectors are replaced, descending.
    values: Vec<f64>,
}

impl Split {
    fn of(weight: Mat<f64>, ratio: f64) -> Result<Self> {
        let svd::ThinSvd { left: u, values, right: v } = svd::thin(weight.as_ref())?;
        // The smallest values come last.
        let kept = values.len() - redrawn_directions(ratio, values.len());

        let values = values[kept..].to_vec();

        Ok(Self {
            weight,
            low: recomposed(u.get(.., kept..), &values, v.get(.., kept..)),
            left: u.get(.., ..kept).to_owned(),
            right: v.get(.., ..kept).to_owned(),
            values,
        })
    }

    /// W with its low part along new random directions. Nothing replaced, nothing changed:
    /// a ratio of 0 returns W bit for bit.
    fn redrawn(&self, stream: &mut Stream) -> Vec<f32> {
        let count = self.values.len();
        let left = orthonormal::complement(self.left.as_ref(), count, stream);
        let right = orthonormal::complement(self.right.as_ref(), count, stream);

        let new = recomposed(left.as_ref(), &self.values, right.as_ref());

        // W - low + new in f64, rounded once: with nothing redrawn, W returns exactly.
        narrowed((&self.weight - &self.low + new).as_ref()).into_data()
    }
}

/// ceil(r·m), with a slack of 1e-9 so that a product like 0.07·100 = 7.000000000000001 does
/// not round up.
fn redrawn_directions(ratio: f64, m: usize) -> usize {
    num::truncate_usize((ratio * m as f64 - 1e-9).ceil()).min(m)
}

/// U diag(values) Vᵀ.
fn recomposed(u: MatRef<'_, f64>, values: &[f64], v: MatRef<'_, f64>) -> Mat<f64> {
    let scaled = Mat::from_fn(u.nrows(), u.ncols(), |i, j| u[(i, j)] * values[j]);
    scaled * v.transpose()
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, matrix, run};
    use super::*;
    use crate::linalg::Matrix;
    use crate::linalg::wide::widened;
    use crate::rng;

    fn parts_of(w: &Matrix) -> (Mat<f64>, Vec<f64>, Mat<f64>) {
        let found = svd::thin(widened(w).as_ref()).unwrap();
        (found.left, found.values, found.right)
    }

    fn redrawn(w: &Matrix, ratio: f64, seed: u64) -> Matrix {
        let split = Split::of(widened(w), ratio).unwrap();
        let values = split.redrawn(&mut rng::stream(seed, "drop-svd"));
        Matrix::new(w.rows(), w.cols(), values).unwrap()
    }

    /// The projector on the columns of `u`.
    fn projector(u: MatRef<'_, f64>) -> Mat<f64> {
        u * u.transpose()
    }

    #[test]
    fn singular_values_and_top_directions_stay_the_rest_moves() {
        for (rows, cols) in [(24, 9), (9, 24), (16, 16)] {
            let w = matrix(rows, cols, 0.3, 5);
            let m = rows.min(cols);
            let count = redrawn_directions(0.25, m);
            let kept = m - count;
            let new = redrawn(&w, 0.25, 1);
            let (u, s, v) = parts_of(&w);
            let (new_u, new_s, new_v) = parts_of(&new);
            for (a, b) in s.iter().zip(&new_s) {
                assert!((a - b).abs() <= 1e-5 * s[0], "{a} {b}");
            }
            for (old, new) in [(&u, &new_u), (&v, &new_v)] {
                let old_top = projector(old.get(.., ..kept));
                let new_top = projector(new.get(.., ..kept));
                assert!((&old_top - &new_top).norm_max() < 1e-4);
                for k in 0..kept {
                    let same = (old.col(k).transpose() * new.col(k)).abs();
                    assert!(same > 1.0 - 1e-4, "direction {k}: {same}");
                }
            }
            let moved = (widened(&w) - widened(&new)).norm_l2();
            assert!(moved > 0.1 * s[m - 1], "{moved}");
        }
    }

    #[test]
    fn new_directions_avoid_the_kept_ones() {
        let w = matrix(24, 9, 0.3, 5);
        let split = Split::of(widened(&w), 0.25).unwrap();
        let new = widened(&redrawn(&w, 0.25, 1)) - (widened(&w) - &split.low);
        assert!((split.left.transpose() * &new).norm_max() < 1e-6);
        assert!((&new * &split.right).norm_max() < 1e-6);
    }

    #[test]
    fn the_count_is_rounded_up() {
        let found = [(0.25, 8), (0.25, 9), (0.0, 9), (1.0, 9), (0.07, 100), (0.01, 3)]
            .map(|(ratio, m)| redrawn_directions(ratio, m));
        assert_eq!(found, [2, 3, 0, 9, 7, 1]);
    }

    #[test]
    fn the_ends_of_the_ratio_copy_and_turn_everything() {
        let w = matrix(7, 4, 1.0, 2);
        assert_eq!(redrawn(&w, 0.0, 1), w);
        let turned = redrawn(&w, 1.0, 1);
        let (_, old, _) = parts_of(&w);
        let (_, new, _) = parts_of(&turned);
        assert!(old.iter().zip(&new).all(|(a, b)| (a - b).abs() < 1e-5 * old[0]));
    }

    #[test]
    fn a_matrix_of_lower_rank_is_no_obstacle() {
        let mut w = matrix(6, 5, 1.0, 2);
        for v in w.data_mut().iter_mut() {
            *v = 0.25;
        }
        let new = redrawn(&w, 0.5, 1);
        assert!(new.data().iter().all(|v| (v - 0.25).abs() < 1e-6));
        assert_eq!(redrawn(&Matrix::zeros(3, 4), 0.5, 1), Matrix::zeros(3, 4));
    }

    #[test]
    fn biases_stay_and_experts_differ() {
        let parts = Parts::new(8, 12, 3, 2);
        let made = run(&DropSvd, &parts, 3, 1);
        for expert in &made.experts {
            assert_eq!(expert.fc1_bias, parts.dense.fc1_bias);
            assert_eq!(expert.fc2_bias, parts.dense.fc2_bias);
        }
        assert_ne!(made.experts[0].fc1, made.experts[1].fc1);
        assert_ne!(made.experts[0].fc2, made.experts[1].fc2);
    }
}
