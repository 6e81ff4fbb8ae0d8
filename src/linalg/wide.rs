//! f64 matrices (faer's) for the places where f32 is not enough, and their products.
//!
//! Everything runs on the calling thread: parallelism belongs above, over layers and
//! experts, where it cannot change a bit.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::Matrix;

/// The f64 copy of a matrix.
pub fn widened(matrix: &Matrix) -> Mat<f64> {
    Mat::from_fn(matrix.rows(), matrix.cols(), |i, j| f64::from(matrix.row(i)[j]))
}

/// The f32 copy of a matrix.
pub fn narrowed(matrix: MatRef<'_, f64>) -> Matrix {
    let mut out = Matrix::zeros(matrix.nrows(), matrix.ncols());
    for i in 0..matrix.nrows() {
        for (j, value) in out.row_mut(i).iter_mut().enumerate() {
            *value = crate::num::round_f32(matrix[(i, j)]);
        }
    }
    out
}

/// `lhs · rhs`.
pub fn product(lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(lhs.nrows(), rhs.ncols());
    matmul(out.as_mut(), Accum::Replace, lhs, rhs, 1.0, Par::Seq);
    out
}

/// `a · aᵀ`, both triangles.
pub fn gram(a: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), a.nrows());
    add_gram(out.as_mut(), a);
    mirror(out.as_mut());
    out
}

/// Adds `a · aᵀ` to the lower triangle of `out`; the upper one is left as it is.
pub fn add_gram(out: MatMut<'_, f64>, a: MatRef<'_, f64>) {
    use BlockStructure::{Rectangular, TriangularLower};
    let right = a.transpose();
    let sequential = Par::Seq;
    triangular::matmul(
        out,
        TriangularLower,
        Accum::Add,
        a,
        Rectangular,
        right,
        Rectangular,
        1.0,
        sequential,
    );
}

/// Copies the lower triangle of a square matrix over the upper one.
pub fn mirror(mut matrix: MatMut<'_, f64>) {
    for j in 0..matrix.ncols() {
        for i in 0..j {
            matrix[(i, j)] = matrix[(j, i)];
        }
    }
}
