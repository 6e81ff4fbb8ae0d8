//! Thin singular value decomposition in f64, with signs that do not depend on chance.

use faer::{Mat, MatRef};

use super::eigen::sign;
use crate::error::{Error, Result};

/// `A = U diag(values) Vᵀ` with `k = min(m, n)` terms.
#[derive(Debug, Clone)]
pub struct ThinSvd {
    /// Left singular vectors [m, k]; the entry of largest magnitude of each is positive.
    pub left: Mat<f64>,
    /// Singular values, descending.
    pub values: Vec<f64>,
    /// Right singular vectors [n, k].
    pub right: Mat<f64>,
}

/// Decomposes any matrix of finite values.
pub fn thin(a: MatRef<'_, f64>) -> Result<ThinSvd> {
    let (m, n) = a.shape();
    if !a.is_all_finite() {
        return Err(Error::failed(format!(
            "cannot decompose a {m}×{n} matrix: it has values that are not finite"
        )));
    }

    let found = a
        .thin_svd()
        .map_err(|cause| Error::failed(format!("SVD of a {m}×{n} matrix: {cause:?}")))?;
    let (mut left, mut right) = (found.U().to_owned(), found.V().to_owned());
    let values: Vec<f64> = found.S().column_vector().iter().copied().collect();

    // The signs of a pair of vectors are free together: one rule fixes both.
    for k in 0..values.len() {
        if sign(left.col(k).iter().copied()) < 0.0 {
            left.col_mut(k).iter_mut().for_each(|v| *v = -*v);
            right.col_mut(k).iter_mut().for_each(|v| *v = -*v);
        }
    }
    Ok(ThinSvd { left, values, right })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::wide::product;
    use crate::rng;

    #[test]
    fn the_terms_rebuild_the_matrix_and_agree_with_nalgebra() {
        for (m, n) in [(8, 5), (5, 8), (6, 6), (1, 4)] {
            let mut stream = rng::stream(3, "test");
            let a = Mat::from_fn(m, n, |_, _| f64::from(rng::normal(&mut stream)));
            let ThinSvd { left, values, right } = thin(a.as_ref()).unwrap();
            let scaled = Mat::from_fn(m, values.len(), |i, j| left[(i, j)] * values[j]);
            let back = product(scaled.as_ref(), right.transpose());
            assert!((back - &a).norm_max() < 1e-13);
            let slow =
                nalgebra::DMatrix::from_fn(m, n, |i, j| a[(i, j)]).singular_values();
            for (fast, slow) in values.iter().zip(slow.iter()) {
                assert!((fast - slow).abs() < 1e-13);
            }
        }
    }
}
