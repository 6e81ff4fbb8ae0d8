//! Orthonormal bases: of a range (Householder QR), random, and in a complement.

use faer::{Mat, MatRef};

use super::wide::product;
use crate::rng::{self, Stream};

/// Thin QR: `q` [m, k] with orthonormal columns and `r` [k, n] with a non-negative diagonal,
/// `k = min(m, n)`. Orthonormal to machine precision whatever the rank of `a`.
pub fn qr(a: MatRef<'_, f64>) -> (Mat<f64>, Mat<f64>) {
    let found = a.qr();
    let (mut q, mut r) = (found.compute_thin_Q(), found.thin_R().to_owned());
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

/// `cols <= rows` orthonormal columns, uniform over all such bases.
pub fn random(stream: &mut Stream, rows: usize, cols: usize) -> Mat<f64> {
    // Column by column, so that fewer columns are a prefix of more.
    let mut gauss = Mat::zeros(rows, cols.min(rows));
    for j in 0..gauss.ncols() {
        for i in 0..rows {
            gauss[(i, j)] = f64::from(rng::normal(stream));
        }
    }
    qr(gauss.as_ref()).0
}

/// `cols` random orthonormal columns orthogonal to the orthonormal columns of `basis`;
/// fewer if the complement has fewer dimensions.
pub fn complement(stream: &mut Stream, basis: MatRef<'_, f64>, cols: usize) -> Mat<f64> {
    let rows = basis.nrows();
    let cols = cols.min(rows - basis.ncols().min(rows));
    let mut out = random(stream, rows, cols);
    // Once leaves the rounding of a large projection; twice is enough (Kahan, Parlett).
    for _ in 0..2 {
        let inside = product(basis, product(basis.transpose(), out.as_ref()).as_ref());
        out = qr((&out - &inside).as_ref()).0;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap_from_identity(q: MatRef<'_, f64>) -> f64 {
        let eye = product(q.transpose(), q);
        (eye - Mat::<f64>::identity(q.ncols(), q.ncols())).norm_max()
    }

    #[test]
    fn qr_rebuilds_and_is_orthonormal_even_without_full_rank() {
        let mut stream = rng::stream(1, "test");
        for (m, n) in [(7, 3), (3, 7), (5, 5), (1, 1)] {
            let mut a = random(&mut stream, m, n);
            if n > m {
                a = random(&mut stream, n, m).transpose().to_owned();
            }
            if a.ncols() > 1 {
                let first = a.col(0).to_owned();
                a.col_mut(1).copy_from(first);
            }
            let (q, r) = qr(a.as_ref());
            assert!((product(q.as_ref(), r.as_ref()) - &a).norm_max() < 1e-14);
            assert!(gap_from_identity(q.as_ref()) < 1e-14);
            assert!((0..r.nrows()).all(|k| r[(k, k)] >= 0.0));
        }
    }

    #[test]
    fn complements_are_orthonormal_and_orthogonal() {
        let mut stream = rng::stream(2, "test");
        let basis = random(&mut stream, 9, 6);
        let other = complement(&mut stream, basis.as_ref(), 5);
        assert_eq!(other.ncols(), 3);
        assert!(gap_from_identity(other.as_ref()) < 1e-14);
        assert!(product(basis.transpose(), other.as_ref()).norm_max() < 1e-14);
    }
}
