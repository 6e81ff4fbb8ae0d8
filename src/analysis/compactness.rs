//! Relative compactness: how much the outputs of different experts overlap.
//!
//! Tokens are grouped by their first expert, z is that expert's output. With the within
//! scatter `S_W` and the between scatter `S_B`,
//!
//! ```text
//! S_W = Σ_e Σ_{n in e} (z_n - μ_e)(z_n - μ_e)ᵀ      S_B = Σ_e n_e (μ_e - μ)(μ_e - μ)ᵀ
//! RC  = tr(S_W S_B⁺) / E                            lower = better separated
//! ```
//!
//! The paper (arXiv 2604.13508, figure 4a) describes the quantity and prints no formula;
//! this one is our choice (METHOD §7). Without any separation `S_B` is what chance leaves
//! of N tokens, so RC grows with N: compare at equal N.
//!
//! `S_B = M Mᵀ` with columns `√n_e (μ_e - μ)`, so its eigenvectors come from the E × E Gram
//! matrix of M: the d × d scatters are never formed.

use nalgebra::{DMatrix, SymmetricEigen};

use super::Routing;
use crate::error::{Error, Result};
use crate::linalg::Matrix;

/// Eigenvalues of `S_B` at or below this part of the largest count as zero in the
/// pseudo-inverse: means that differ by less than 1e-5 of the widest difference.
const PSEUDO_INVERSE_THRESHOLD: f64 = 1e-10;

/// Scatter at or below this part of Σ‖z‖² is rounding noise of f64 means, (1e-12)².
const NOISE: f64 = 1e-24;

/// Relative compactness of a layer in three forms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compactness {
    /// tr(`S_W` `S_B`⁺) / E; undefined if all groups have the same mean.
    pub overlap: Option<f64>,
    /// tr(`S_W`) / tr(`S_B`); undefined if all groups have the same mean.
    pub trace_ratio: Option<f64>,
    /// tr(`S_W`) / tr(`S_W` + `S_B`), 0 to 1; undefined if all outputs are equal.
    pub within_fraction: Option<f64>,
    /// Eigenvalues of `S_B` the pseudo-inverse kept, at most E - 1.
    pub directions: usize,
}

/// Scatters of `outputs` `[N, d]`, the output of every token's first expert.
///
/// Experts that are nobody's first have no mean and add nothing; E counts them all the
/// same. O(N d E) time, all sums in f64.
///
/// # Errors
/// Another number of rows than tokens, and non-finite values.
pub fn compactness(routing: &Routing<'_>, outputs: &Matrix) -> Result<Compactness> {
    check(routing, outputs)?;
    let groups = Groups::of(routing, outputs);

    // Directions of S_B that are noise beside the outputs would be divided by almost nothing.
    let factor = groups.between_factor();
    let size: f64 = outputs.data().iter().map(|&z| f64::from(z).powi(2)).sum();
    let floor = NOISE * size;
    let kept = kept_directions(&factor, floor);

    // tr(S_W S_B⁺) = Σ_k |S_W along v_k| / λ_k, so one pass over the tokens is enough.
    let mut within = 0.0;
    let mut along = vec![0.0_f64; kept.len()];
    for (token, z) in outputs.iter_rows().enumerate() {
        let mean = &groups.means[routing.first(token)];
        let centered: Vec<f64> =
            z.iter().zip(mean).map(|(&z, mean)| f64::from(z) - mean).collect();
        within += inner(&centered, &centered);
        for (sum, direction) in along.iter_mut().zip(&kept) {
            *sum += inner(&centered, &direction.vector).powi(2);
        }
    }

    let between = factor.norm_squared();
    let separated = !kept.is_empty();
    let overlap: f64 = along.iter().zip(&kept).map(|(sum, d)| sum / d.value).sum();
    Ok(Compactness {
        overlap: separated.then(|| overlap / routing.experts() as f64),
        trace_ratio: separated.then(|| within / between),
        within_fraction: (within + between > floor).then(|| within / (within + between)),
        directions: kept.len(),
    })
}

/// Tokens by first expert.
#[derive(Debug)]
struct Groups {
    counts: Vec<usize>,
    /// `μ_e` `[E, d]`; zeros for an empty group.
    means: Vec<Vec<f64>>,
    /// μ `[d]`.
    mean: Vec<f64>,
}

impl Groups {
    fn of(routing: &Routing<'_>, outputs: &Matrix) -> Self {
        let (e, d) = (routing.experts(), outputs.cols());
        let mut counts = vec![0_usize; e];
        let mut means = vec![vec![0.0_f64; d]; e];
        for (token, z) in outputs.iter_rows().enumerate() {
            let expert = routing.first(token);
            counts[expert] += 1;
            means[expert].iter_mut().zip(z).for_each(|(sum, &z)| *sum += f64::from(z));
        }

        // The sums of the groups are also the sum of all, before they become means.
        let mut mean = vec![0.0; d];
        for sums in &means {
            mean.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        for total in &mut mean {
            *total /= outputs.rows() as f64;
        }

        for (sums, &count) in means.iter_mut().zip(&counts) {
            for sum in sums.iter_mut() {
                *sum /= count.max(1) as f64;
            }
        }
        Self { counts, means, mean }
    }

    /// M `[d,E]`, columns `√n_e (μ_e - μ)`: `S_B = M Mᵀ`.
    fn between_factor(&self) -> DMatrix<f64> {
        DMatrix::from_fn(self.mean.len(), self.counts.len(), |i, expert| {
            (self.counts[expert] as f64).sqrt() * (self.means[expert][i] - self.mean[i])
        })
    }
}

/// An eigenpair of `S_B` that the pseudo-inverse keeps.
#[derive(Debug)]
struct Direction {
    value: f64,
    vector: Vec<f64>,
}

/// Eigenpairs of M Mᵀ above the threshold, by way of Mᵀ M.
fn kept_directions(factor: &DMatrix<f64>, floor: f64) -> Vec<Direction> {
    let eigen = SymmetricEigen::new(factor.tr_mul(factor));
    let largest = eigen.eigenvalues.iter().copied().fold(0.0, f64::max);
    let least = floor.max(PSEUDO_INVERSE_THRESHOLD * largest);

    // An eigenvector u of MᵀM with value λ gives the one of M Mᵀ: M u / √λ.
    let pairs = eigen.eigenvalues.iter().zip(eigen.eigenvectors.column_iter());
    let kept = pairs.filter(|(value, _)| **value > least);
    kept.map(|(&value, column)| Direction {
        value,
        vector: (factor * column / value.sqrt()).iter().copied().collect(),
    })
    .collect()
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn check(routing: &Routing<'_>, outputs: &Matrix) -> Result<()> {
    let (found, expected) = (outputs.rows(), routing.tokens());
    if found != expected {
        return Err(Error::failed(format!(
            "expert outputs: found {found} rows, expected {expected} (one per token)"
        )));
    }

    match outputs.data().iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::failed(format!(
            "expert outputs: found {} in token {}, expected finite values",
            outputs.data()[index],
            index / outputs.cols(),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn of(n_experts: usize, first: &[u32], outputs: &Matrix) -> Compactness {
        let mut probs = Matrix::zeros(first.len(), n_experts);
        for token in 0..first.len() {
            probs.row_mut(token)[0] = 1.0;
        }
        compactness(&Routing::new(&probs, 1, first).unwrap(), outputs).unwrap()
    }

    /// Clouds of N(0, spread²) around well separated centers, groups in turn.
    fn clouds(n_experts: usize, n: usize, d: usize, spread: f32) -> (Vec<u32>, Matrix) {
        let mut stream = rng::stream(9, "clouds");
        let mut centers = Matrix::zeros(n_experts, d);
        rng::fill_normal(&mut stream, 3.0, centers.data_mut());
        let mut outputs = Matrix::zeros(n, d);
        rng::fill_normal(&mut stream, spread, outputs.data_mut());
        let first: Vec<u32> =
            (0..n).map(|token| u32::try_from(token % n_experts).unwrap()).collect();
        for token in 0..n {
            let center = centers.row(token % n_experts).to_vec();
            outputs.row_mut(token).iter_mut().zip(&center).for_each(|(z, c)| *z += c);
        }
        (first, outputs)
    }

    fn near(a: Option<f64>, b: Option<f64>, tolerance: f64) -> bool {
        let (a, b) = (a.unwrap(), b.unwrap());
        (a - b).abs() <= tolerance * b.abs()
    }

    /// The definition with the d × d scatters written out and nalgebra's pseudo-inverse.
    fn reference(n_experts: usize, first: &[u32], outputs: &Matrix) -> [f64; 3] {
        let d = outputs.cols();
        let n = outputs.rows();
        let z = DMatrix::from_fn(n, d, |i, j| f64::from(outputs.row(i)[j]));
        let mean = z.row_mean();
        let (mut within, mut between) = (DMatrix::zeros(d, d), DMatrix::zeros(d, d));
        for expert in 0..n_experts {
            let rows: Vec<usize> =
                (0..n).filter(|&i| crate::num::widen(first[i]) == expert).collect();
            if rows.is_empty() {
                continue;
            }
            let group = z.select_rows(&rows);
            let center = group.row_mean();
            for row in group.row_iter() {
                within += (row - &center).transpose() * (row - &center);
            }
            let apart = &center - &mean;
            between += apart.transpose() * &apart * rows.len() as f64;
        }
        let largest = between.norm();
        let inverse = between.clone().pseudo_inverse(1e-10 * largest).unwrap();
        let (w, b) = (within.trace(), between.trace());
        [(&within * inverse).trace() / n_experts as f64, w / b, w / (w + b)]
    }

    #[test]
    fn the_short_way_equals_the_scatters_written_out() {
        for (e, n, d, spread) in [(3, 60, 7, 1.0), (8, 80, 5, 0.3), (4, 41, 2, 2.0)] {
            let (first, outputs) = clouds(e, n, d, spread);
            let found = of(e, &first, &outputs);
            let [overlap, ratio, share] = reference(e, &first, &outputs);
            assert!(near(found.overlap, Some(overlap), 1e-9), "{found:?} {overlap}");
            assert!(near(found.trace_ratio, Some(ratio), 1e-12));
            assert!(near(found.within_fraction, Some(share), 1e-12));
            assert_eq!(found.directions, d.min(e - 1));
        }
    }

    #[test]
    fn point_clusters_have_no_overlap() {
        let (first, outputs) = clouds(4, 40, 6, 0.0);
        let found = of(4, &first, &outputs);
        assert_eq!(found.overlap, Some(0.0));
        assert_eq!(found.trace_ratio, Some(0.0));
        assert_eq!(found.within_fraction, Some(0.0));
        assert_eq!(found.directions, 3);
    }

    #[test]
    fn scaling_and_shifting_change_nothing() {
        let (first, outputs) = clouds(4, 60, 6, 0.5);
        let before = of(4, &first, &outputs);
        for (scale, shift) in [(64.0, 0.0), (1.0 / 1024.0, 0.0), (1.0, 16.0)] {
            let mut moved = outputs.clone();
            for z in moved.data_mut().iter_mut() {
                *z = *z * scale + shift;
            }
            let after = of(4, &first, &moved);
            assert!(near(after.overlap, before.overlap, 1e-5));
            assert!(near(after.trace_ratio, before.trace_ratio, 1e-5));
            assert!(near(after.within_fraction, before.within_fraction, 1e-5));
        }
    }

    #[test]
    fn rotations_change_nothing() {
        let (first, outputs) = clouds(4, 60, 6, 0.5);
        let mut draws = Matrix::zeros(6, 6);
        rng::fill_normal(&mut rng::stream(2, "rotation"), 1.0, draws.data_mut());
        let draws = DMatrix::from_fn(6, 6, |i, j| f64::from(draws.row(i)[j]));
        let rotation = draws.qr().q();
        let z = DMatrix::from_fn(60, 6, |i, j| f64::from(outputs.row(i)[j])) * rotation;
        let mut turned = Matrix::zeros(60, 6);
        for i in 0..60 {
            for j in 0..6 {
                turned.row_mut(i)[j] = crate::num::round_f32(z[(i, j)]);
            }
        }
        let (before, after) = (of(4, &first, &outputs), of(4, &first, &turned));
        assert!(near(after.overlap, before.overlap, 1e-5));
        assert!(near(after.trace_ratio, before.trace_ratio, 1e-5));
    }

    #[test]
    fn wider_clouds_overlap_more() {
        let overlaps: Vec<f64> = [0.1, 0.5, 1.0, 2.0]
            .map(|spread| {
                let (first, outputs) = clouds(4, 200, 6, spread);
                of(4, &first, &outputs).overlap.unwrap()
            })
            .to_vec();
        assert!(overlaps.windows(2).all(|pair| pair[0] < pair[1]), "{overlaps:?}");
    }

    #[test]
    fn empty_experts_add_nothing_but_count() {
        let (first, outputs) = clouds(3, 30, 4, 0.5);
        let (three, six) = (of(3, &first, &outputs), of(6, &first, &outputs));
        assert!(near(six.overlap, three.overlap.map(|v| v / 2.0), 1e-9));
        assert!(near(six.trace_ratio, three.trace_ratio, 1e-15));
        assert_eq!(six.directions, 2);
    }

    #[test]
    fn what_is_not_separated_has_no_overlap_number() {
        let (_, outputs) = clouds(3, 30, 4, 0.5);
        let alone = of(3, &[1; 30], &outputs);
        assert_eq!((alone.overlap, alone.trace_ratio), (None, None));
        assert_eq!((alone.within_fraction, alone.directions), (Some(1.0), 0));
        let mut equal = Matrix::zeros(6, 3);
        for z in equal.data_mut().iter_mut() {
            *z = 0.1;
        }
        let same = of(2, &[0, 1, 0, 1, 1, 1], &equal);
        assert_eq!((same.overlap, same.within_fraction), (None, None));
        let zero = of(2, &[0, 1], &Matrix::zeros(2, 3));
        assert_eq!((zero.overlap, zero.within_fraction), (None, None));
    }
}
