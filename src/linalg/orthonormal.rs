//! Orthonormal bases: of a range (Householder QR), random, and in a complement.
//!
//! All products are faer's in f64. faer is built without its `rayon` feature, so every one
//! of them runs on the calling thread and its bits do not depend on the machine's threads.

use faer::{Mat, MatRef};

use super::wide::product;
use crate::rng::{self, Stream};

/// Thin QR: `q` [m, k] with orthonormal columns and `r` [k, n] with a non-negative diagonal,
/// `k = min(m, n)`. Orthonormal to machine precision whatever the rank of `a`.
pub fn qr(a: MatRef<'_, f64>) -> (Mat<f64>, Mat<f64>) {
    let found = a.qr();
    let (mut q, mut r) = (found.compute_thin_Q(), found.thin_R().to_owned());

    // With a non-negative diagonal the factorization is unique.
    for k in 0..r.nrows() {
        if r[(k, k)] < 0.0 {
            q.col_mut(k).iter_mut().for_each(|v| *v = -*v);
            r.row_mut(k).iter_mut().for_each(|v| *v = -*v);
        }
        // QR leaves Householder vectors below the diagonal.
        for j in 0..k.min(r.ncols()) {
            r[(k, j)] = 0.0;
        }
    }
    (q, r)
}

/// Uniformly random orthonormal columns [rows, count], `count <= rows`.
pub fn random(rows: usize, count: usize, stream: &mut Stream) -> Mat<f64> {
    complement(Mat::zeros(rows, 0).as_ref(), count, stream)
}

/// Uniformly random orthonormal columns [rows, count] orthogonal to the columns of `kept`
/// [rows, k], `k + count <= rows`.
///
/// Normal draws are rotation invariant, their part in the complement is rotation invariant
/// within it, and QR with a positive diagonal of R keeps that: the result is Haar
/// distributed. One pass leaves a part in `kept` of about ε times the condition of the draw;
/// the second removes it (Giraud et al., 2005: twice is enough).
pub fn complement(kept: MatRef<'_, f64>, count: usize, stream: &mut Stream) -> Mat<f64> {
    let draws = Mat::from_fn(kept.nrows(), count, |_, _| rng::normal_f64(stream));
    let once = orthonormalized(kept, &draws);
    orthonormalized(kept, &once)
}

/// Removes the part in `kept` and takes the Q of QR.
fn orthonormalized(kept: MatRef<'_, f64>, columns: &Mat<f64>) -> Mat<f64> {
    let inside = product(kept, product(kept.transpose(), columns.as_ref()).as_ref());
    qr((columns - inside).as_ref()).0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::num;

    fn off_identity(q: &Mat<f64>) -> f64 {
        (q.transpose() * q - Mat::<f64>::identity(q.ncols(), q.ncols())).norm_max()
    }

    #[test]
    fn qr_rebuilds_and_is_orthonormal_even_without_full_rank() {
        let mut stream = rng::stream(1, "test");
        for (m, n) in [(7, 3), (3, 7), (5, 5), (1, 1)] {
            let mut a = Mat::from_fn(m, n, |_, _| rng::normal_f64(&mut stream));
            if a.ncols() > 1 {
                let first = a.col(0).to_owned();
                a.col_mut(1).copy_from(first);
            }
            let (q, r) = qr(a.as_ref());
            assert!((product(q.as_ref(), r.as_ref()) - &a).norm_max() < 1e-14);
            assert!(off_identity(&q) < 1e-14);
            assert!((0..r.nrows()).all(|k| r[(k, k)] >= 0.0));
        }
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
            let kept = random(rows, k, &mut stream);
            let new = complement(kept.as_ref(), count, &mut stream);
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
            .map(|i| random(3, 2, &mut rng::stream(i, "sign"))[(0, 0)])
            .collect();
        let error = (1.0_f64 / 3.0 / 4000.0).sqrt();
        assert!(num::mean(&draws).abs() < 4.5 * error);
        let squares: Vec<f64> = draws.iter().map(|v| v * v).collect();
        assert!((num::mean(&squares) - 1.0 / 3.0).abs() < 4.5 * error);
    }
}
