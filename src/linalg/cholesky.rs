//! Linear systems with a symmetric positive definite matrix, in f64.

use faer::linalg::solvers::{Llt, Solve as _};
use faer::{Mat, MatRef, Side};

use crate::error::{Error, Result};

/// `A = L Lᵀ`.
#[derive(Debug, Clone)]
pub struct Cholesky(Llt<f64>);

impl Cholesky {
    /// Decomposes a matrix, of which the lower triangle is read. Cost: n³ / 3.
    ///
    /// # Errors
    /// Where the matrix is not positive definite.
    pub fn new(a: MatRef<'_, f64>) -> Result<Self> {
        let (n, cols) = (a.nrows(), a.ncols());
        a.llt(Side::Lower).map(Self).map_err(|cause| {
            Error::failed(format!(
                "the {n}×{cols} matrix of a linear system is not positive definite \
                 ({cause:?}); expected one, as a larger ridge makes it"
            ))
        })
    }

    /// Solves A X = B for every column of B [n, k].
    pub fn solve(&self, b: MatRef<'_, f64>) -> Mat<f64> {
        self.0.solve(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn solutions_solve_and_indefinite_matrices_are_refused() {
        let mut stream = rng::stream(5, "cholesky");
        let x = Mat::from_fn(9, 6, |_, _| rng::normal_f64(&mut stream));
        let a = x.transpose() * &x;
        let b = Mat::from_fn(6, 4, |i, j| (i * 4 + j) as f64);
        let found = Cholesky::new(a.as_ref()).unwrap().solve(b.as_ref());
        let off = &a * &found - &b;
        assert!(off.norm_max() < 1e-9, "{}", off.norm_max());
        let error = Cholesky::new((-1.0 * &a).as_ref()).unwrap_err().to_string();
        assert!(error.contains("positive definite"), "{error}");
    }
}
