//! Random orthonormal directions, free or in the complement of given ones.
//!
//! All products are faer's in f64. faer is built without its `rayon` feature, so every one
//! of them runs on the calling thread and its bits do not depend on the machine's threads.

use faer::{Mat, MatRef};

use super::streams::normal;
use crate::rng::Stream;

/// Uniformly random orthonormal columns [rows, count], `count <= rows`.
pub(super) fn random_orthonormal(
    rows: usize,
    count: usize,
    stream: &mut Stream,
) -> Mat<f64> {
    random_in_complement(Mat::zeros(rows, 0).as_ref(), count, stream)
}

/// Uniformly random orthonormal columns [rows, count] orthogonal to the columns of `kept`
/// [rows, k], `k + count <= rows`.
///
/// Normal draws are rotation invariant, their part in the complement is rotation invariant
/// within it, and QR with a positive diagonal of R keeps that: the result is Haar
/// distributed. One pass leaves a part in `kept` of about ε times the condition of the draw;
/// the second removes it (Giraud et al., 2005: twice is enough).
pub(super) fn random_in_complement(
    kept: MatRef<'_, f64>,
    count: usize,
    stream: &mut Stream,
) -> Mat<f64> {
    let draws = Mat::from_fn(kept.nrows(), count, |_, _| normal(stream));
    let once = orthonormalised(kept, draws);
    orthonormalised(kept, once)
}

/// Removes the part in `kept` and takes the Q of QR, signs chosen so that R's diagonal is
/// positive.
fn orthonormalised(kept: MatRef<'_, f64>, columns: Mat<f64>) -> Mat<f64> {
    let inside = kept * (kept.transpose() * &columns);
    let qr = (columns - inside).qr();
    let mut q = qr.compute_thin_Q();
    let r = qr.thin_R();
    for j in 0..q.ncols() {
        if r[(j, j)] < 0.0 {
            for value in q.col_mut(j).iter_mut() {
                *value = -*value;
            }
        }
    }
    q
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::num;
    use crate::rng;

    fn off_identity(q: &Mat<f64>) -> f64 {
        (q.transpose() * q - Mat::<f64>::identity(q.ncols(), q.ncols())).norm_max()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn columns_are_orthonormal_and_avoid_the_kept_ones(
            rows in 1_usize..40, k in 0_usize..40, count in 0_usize..40, seed in 0_u64..1000,
        ) {
            let k = k.min(rows);
            let count = count.min(rows - k);
            let mut stream = rng::stream(seed, "test");
            let kept = random_orthonormal(rows, k, &mut stream);
            let new = random_in_complement(kept.as_ref(), count, &mut stream);
            prop_assert!(off_identity(&kept) < 1e-13);
            prop_assert!(off_identity(&new) < 1e-13);
            prop_assert!((kept.transpose() * &new).norm_max() < 1e-13);
        }
    }

    /// A uniformly random unit vector in d dimensions has entries of mean 0 and variance
    /// 1/d; without the sign rule the diagonal entries would be biased.
    #[test]
    fn directions_have_no_preferred_sign() {
        let draws: Vec<f64> = (0..4000)
            .map(|i| random_orthonormal(3, 2, &mut rng::stream(i, "sign"))[(0, 0)])
            .collect();
        let error = (1.0_f64 / 3.0 / 4000.0).sqrt();
        assert!(num::mean(&draws).abs() < 4.5 * error);
        let squares: Vec<f64> = draws.iter().map(|v| v * v).collect();
        assert!((num::mean(&squares) - 1.0 / 3.0).abs() < 4.5 * error);
    }
}
