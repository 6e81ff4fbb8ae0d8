//! Expert similarity: how alike the experts' weights are.
//!
//! Cosine of the flattened [W1; W2] of every two experts, biases left out. Experts that
//! start as copies share the dense weights forever, so their cosines stay near 1 whatever
//! they learn; the second form takes the differences from the dense weights, where that
//! common part is gone.

use crate::error::{Error, Result};
use crate::ffn::FfnTensors;
use crate::par;

/// Cosines between all experts: symmetric, ones on the diagonal.
#[derive(Debug, Clone, PartialEq)]
pub struct SimilarityMatrix {
    experts: usize,
    cosines: Vec<f64>,
}

impl SimilarityMatrix {
    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Cosine between two experts, -1 to 1.
    ///
    /// # Panics
    /// If an index is E or more.
    pub fn get(&self, expert: usize, other: usize) -> f64 {
        assert!(expert < self.experts && other < self.experts, "expert out of range");
        self.cosines[expert * self.experts + other]
    }

    /// Mean over all pairs of different experts; undefined for a single one.
    pub fn mean_off_diagonal(&self) -> Option<f64> {
        let e = self.experts;
        let pairs = e * e.saturating_sub(1) / 2;
        let above = (0..e).flat_map(|i| (i + 1..e).map(move |j| (i, j)));
        let total: f64 = above.map(|(i, j)| self.get(i, j)).sum();
        (pairs > 0).then(|| total / pairs as f64)
    }
}

/// Cosines between the experts' weights. O(E² h d), sums in f64.
///
/// A zero vector has no direction. Two zero vectors are equal and count as 1, so that
/// identical experts always have similarity 1; a zero and another vector count as 0.
pub fn similarity(experts: &[FfnTensors<'_>]) -> Result<SimilarityMatrix> {
    check(experts)?;
    Ok(cosines(experts.len(), |i, j| {
        let (a, b) = (experts[i], experts[j]);
        dot(a.fc1, b.fc1) + dot(a.fc2, b.fc2)
    }))
}

/// Cosines between the differences of the experts from the dense weights, with the same
/// rule for zeros: copies of the dense FFN have similarity 1.
pub fn similarity_about(
    experts: &[FfnTensors<'_>],
    dense: FfnTensors<'_>,
) -> Result<SimilarityMatrix> {
    check(experts)?;
    check_one(dense, experts.first().copied().unwrap_or(dense), "dense weights")?;
    Ok(cosines(experts.len(), |i, j| {
        let (a, b) = (experts[i], experts[j]);
        dot_about(a.fc1, b.fc1, dense.fc1) + dot_about(a.fc2, b.fc2, dense.fc2)
    }))
}

/// Normalizes the inner products of all pairs.
fn cosines(
    n: usize,
    inner: impl Fn(usize, usize) -> f64 + Sync + Send,
) -> SimilarityMatrix {
    // Half of the products are enough: the matrix is symmetric.
    let pairs: Vec<(usize, usize)> =
        (0..n).flat_map(|i| (i..n).map(move |j| (i, j))).collect();
    let products = par::map(pairs.len(), |k| inner(pairs[k].0, pairs[k].1));

    let mut gram = vec![0.0; n * n];
    for (&(i, j), &product) in pairs.iter().zip(&products) {
        gram[i * n + j] = product;
        gram[j * n + i] = product;
    }

    let cosine = |i: usize, j: usize| {
        let (left, right) = (gram[i * n + i], gram[j * n + j]);
        // Rounding may carry a cosine beyond 1.
        match (left > 0.0, right > 0.0) {
            (true, true) => (gram[i * n + j] / (left * right).sqrt()).clamp(-1.0, 1.0),
            (false, false) => 1.0,
            _ => 0.0,
        }
    };
    let cosines = (0..n).flat_map(|i| (0..n).map(move |j| (i, j)));
    SimilarityMatrix { experts: n, cosines: cosines.map(|(i, j)| cosine(i, j)).collect() }
}

/// Partial sums kept apart: the compiler turns them into vector registers, and their order
/// is fixed by this number alone.
const LANES: usize = 8;

/// Σ a b in f64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (heads, tails) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = heads.remainder().iter().zip(tails.remainder());
    // What fills no chunk of lanes is summed apart and added last.
    let rest: f64 = rest.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    for (x, y) in heads.zip(tails) {
        for lane in 0..LANES {
            lanes[lane] += f64::from(x[lane]) * f64::from(y[lane]);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// Σ (a - c)(b - c) in f64.
fn dot_about(a: &[f32], b: &[f32], c: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let term = |x: f32, y: f32, z: f32| {
        let z = f64::from(z);
        (f64::from(x) - z) * (f64::from(y) - z)
    };

    // The last chunk may be shorter and fills the first lanes only.
    let chunks = a.chunks(LANES).zip(b.chunks(LANES)).zip(c.chunks(LANES));
    for ((x, y), z) in chunks {
        for (lane, ((&x, &y), &z)) in lanes.iter_mut().zip(x.iter().zip(y).zip(z)) {
            *lane += term(x, y, z);
        }
    }
    lanes.iter().sum()
}

fn check(experts: &[FfnTensors<'_>]) -> Result<()> {
    for (index, &expert) in experts.iter().enumerate() {
        check_one(expert, experts[0], &format!("weights of expert {index}"))?;
    }
    Ok(())
}

/// Refuses other lengths than those of `like` and non-finite values.
fn check_one(found: FfnTensors<'_>, like: FfnTensors<'_>, what: &str) -> Result<()> {
    for (matrix, values, expected) in
        [("fc1", found.fc1, like.fc1.len()), ("fc2", found.fc2, like.fc2.len())]
    {
        if values.len() != expected {
            let len = values.len();
            return Err(Error::failed(format!(
                "{what}: {matrix}: found {len} values, expected {expected}"
            )));
        }

        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let value = values[index];
            return Err(Error::failed(format!(
                "{what}: {matrix}: found {value} at index {index}, expected finite values"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of<'a>(fc1: &'a [f32], fc2: &'a [f32]) -> FfnTensors<'a> {
        FfnTensors { fc1, fc1_bias: &[], fc2, fc2_bias: &[] }
    }

    fn weights(fc1: &[Vec<f32>]) -> Vec<FfnTensors<'_>> {
        fc1.iter().map(|fc1| of(fc1, &fc1[..1])).collect()
    }

    fn random(n: usize, len: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut stream = crate::rng::stream(seed, "similarity");
        let mut draw = || {
            let mut row = vec![0.0; len];
            crate::rng::fill_normal(&mut stream, 1.0, &mut row);
            row
        };
        (0..n).map(|_| draw()).collect()
    }

    #[test]
    fn identical_experts_have_similarity_one() {
        let rows = vec![random(1, 37, 1).remove(0); 4];
        let experts = weights(&rows);
        assert_eq!(similarity(&experts).unwrap().mean_off_diagonal(), Some(1.0));
        let about = similarity_about(&experts, experts[0]).unwrap();
        assert_eq!(about.mean_off_diagonal(), Some(1.0));
        let other = random(1, 37, 2);
        let about = similarity_about(&experts, weights(&other)[0]).unwrap();
        assert_eq!(about.mean_off_diagonal(), Some(1.0));
    }

    #[test]
    fn orthogonal_experts_have_similarity_zero() {
        let rows: Vec<Vec<f32>> = (1..5)
            .map(|i| (0..40).map(|j| f32::from(u8::from(i == j % 5 && j > 0))).collect())
            .collect();
        assert_eq!(similarity(&weights(&rows)).unwrap().mean_off_diagonal(), Some(0.0));
    }

    #[test]
    fn an_expert_that_did_not_move_is_unlike_one_that_did() {
        let rows = vec![vec![1.0, 2.0], vec![1.0, 2.0], vec![1.0, 3.0]];
        let experts = weights(&rows);
        let about = similarity_about(&experts, experts[0]).unwrap();
        assert_eq!(about.cosines, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(about.mean_off_diagonal(), Some(1.0 / 3.0));
    }

    #[test]
    fn one_expert_has_no_similarity() {
        let rows = random(1, 5, 1);
        assert_eq!(similarity(&weights(&rows)).unwrap().mean_off_diagonal(), None);
        assert_eq!(similarity(&[]).unwrap().mean_off_diagonal(), None);
    }

    #[test]
    fn both_matrices_count() {
        let a = of(&[1.0, 0.0], &[0.0, 2.0]);
        let b = of(&[1.0, 0.0], &[2.0, 0.0]);
        let found = similarity(&[a, b]).unwrap();
        assert!((found.get(0, 1) - 0.2).abs() < 1e-15);
        assert_eq!(found.cosines[1].to_bits(), found.cosines[2].to_bits());
    }

    #[test]
    fn weights_that_disagree_are_refused_by_name() {
        let a = of(&[1.0, 0.0], &[0.0]);
        let short = of(&[1.0], &[0.0]);
        let broken = of(&[1.0, 0.0], &[f32::NAN]);
        assert_eq!(
            similarity(&[a, short]).unwrap_err().message(),
            "weights of expert 1: fc1: found 1 values, expected 2"
        );
        assert_eq!(
            similarity_about(&[a, a], broken).unwrap_err().message(),
            "dense weights: fc2: found NaN at index 0, expected finite values"
        );
    }

    proptest! {
        #[test]
        fn cosines_equal_the_textbook_and_ignore_scale(
            seed in 0_u64..500, len in 1_usize..60, scale in 0.1_f32..10.0,
        ) {
            let mut rows = random(3, len, seed);
            let slow = |a: &[f32], b: &[f32]| -> f64 {
                let inner = |a: &[f32], b: &[f32]| -> f64 {
                    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
                };
                inner(a, b) / (inner(a, a) * inner(b, b)).sqrt()
            };
            let plain = |rows: &[Vec<f32>]| {
                let experts: Vec<_> =
                    rows.iter().map(|fc1| of(fc1, &[])).collect();
                similarity(&experts).unwrap()
            };
            let found = plain(&rows);
            prop_assert!((found.get(0, 2) - slow(&rows[0], &rows[2])).abs() < 1e-12);
            for v in &mut rows[2] { *v *= scale; }
            prop_assert!((found.get(0, 2) - plain(&rows).get(0, 2)).abs() < 1e-6);
            let zero = vec![0.0; len];
            let experts: Vec<_> =
                rows.iter().map(|fc1| of(fc1, &[])).collect();
            let about =
                similarity_about(&experts, of(&zero, &[])).unwrap();
            prop_assert!((about.get(0, 1) - found.get(0, 1)).abs() < 1e-12);
        }
    }
}
