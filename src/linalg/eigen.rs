//! Symmetric eigenproblems in f64, with an order and signs that do not depend on chance.

use faer::{Mat, MatRef, Side};

use crate::error::{Context, Error, Result};

/// `A = V diag(values) Vᵀ`.
#[derive(Debug, Clone)]
pub struct SymmetricEigen {
    /// Eigenvalues, descending.
    pub values: Vec<f64>,
    /// Orthonormal eigenvectors, one per column; the entry of largest magnitude (the first of
    /// equals) of each is positive.
    pub vectors: Mat<f64>,
}

/// Decomposes a symmetric matrix, of which the lower triangle is read. Cost: about 9 n³.
pub fn symmetric(a: MatRef<'_, f64>) -> Result<SymmetricEigen> {
    let n = a.nrows();
    if n != a.ncols() || !a.is_all_finite() {
        let cols = a.ncols();
        return Err(Error::failed(format!(
            "cannot find the eigenvalues of a {n}×{cols} matrix: expected a square matrix of \
             finite values"
        )));
    }
    if n == 0 {
        return Ok(SymmetricEigen { values: Vec::new(), vectors: Mat::zeros(0, 0) });
    }

    let found = a
        .self_adjoint_eigen(Side::Lower)
        .map_err(|cause| Error::failed(format!("{cause:?}")))
        .context(|| format!("eigenvalues of a symmetric {n}×{n} matrix"))?;

    // faer's order is ascending, and its signs follow from the order of its operations.
    let (ascending, columns) = (found.S().column_vector(), found.U());
    let values = (0..n).rev().map(|i| ascending[i]).collect();
    let mut vectors = Mat::zeros(n, n);
    for j in 0..n {
        let source = columns.col(n - 1 - j);
        let sign = sign(source.iter().copied());
        let column = vectors.col_mut(j).iter_mut();
        column.zip(source.iter()).for_each(|(to, from)| *to = sign * from);
    }
    Ok(SymmetricEigen { values, vectors })
}

/// -1 if the value of largest magnitude (the first of equals) is negative, else 1.
pub(super) fn sign(values: impl Iterator<Item = f64>) -> f64 {
    let largest =
        values.fold(0.0_f64, |best, v| if v.abs() > best.abs() { v } else { best });
    if largest < 0.0 { -1.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::wide::{gram, product};
    use crate::rng;

    #[test]
    fn eigenvectors_rebuild_the_matrix_and_agree_with_nalgebra() {
        for (n, inner) in [(1, 1), (5, 9), (40, 60), (12, 4)] {
            let mut stream = rng::stream(n as u64, "test");
            let x = Mat::from_fn(n, inner, |_, _| f64::from(rng::normal(&mut stream)));
            let a = gram(x.as_ref());
            let SymmetricEigen { values, vectors } = symmetric(a.as_ref()).unwrap();
            assert!(values.is_sorted_by(|a, b| a >= b));
            let scaled = Mat::from_fn(n, n, |i, j| vectors[(i, j)] * values[j]);
            let back = product(scaled.as_ref(), vectors.transpose());
            let eye = product(vectors.transpose(), vectors.as_ref());
            let slow =
                nalgebra::DMatrix::from_fn(n, n, |i, j| a[(i, j)]).symmetric_eigen();
            let mut slow: Vec<f64> = slow.eigenvalues.iter().copied().collect();
            slow.sort_by(|a, b| b.total_cmp(a));
            for i in 0..n {
                assert!((values[i] - slow[i]).abs() < 1e-12 * values[0]);
                for j in 0..n {
                    assert!((back[(i, j)] - a[(i, j)]).abs() < 1e-12 * values[0]);
                    let unit = if i == j { 1.0 } else { 0.0 };
                    assert!((eye[(i, j)] - unit).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn unusable_matrices_are_refused() {
        assert!(symmetric(Mat::zeros(2, 3).as_ref()).is_err());
        assert!(symmetric(Mat::from_fn(2, 2, |_, _| f64::NAN).as_ref()).is_err());
    }
}
