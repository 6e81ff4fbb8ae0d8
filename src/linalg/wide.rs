//! f64 matrices (faer's) for the places where f32 is not enough, and their products.
//!
//! Everything runs on the calling thread: parallelism belongs above, over layers and
//! experts, where it cannot change a bit.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::Matrix;

/// Columns that are copied together: rows of f32 and columns of f64 meet in one cache line.
const TILE: usize = 16;

/// The f64 copy of a matrix.
pub fn widened(matrix: &Matrix) -> Mat<f64> {
    widened_rows(matrix.data(), matrix.cols())
}

/// The f64 copy of row-major values in rows of `cols`.
pub fn widened_rows(values: &[f32], cols: usize) -> Mat<f64> {
    let rows = values.len() / cols.max(1);
    let mut out = Mat::zeros(rows, cols);

    for first in (0..cols).step_by(TILE) {
        let count = TILE.min(cols - first);
        let mut part = out.as_mut().subcols_mut(first, count);
        for i in 0..rows {
            let row = &values[i * cols + first..][..count];
            for (j, &value) in row.iter().enumerate() {
                part[(i, j)] = f64::from(value);
            }
        }
    }
    out
}

/// The f32 copy of a matrix.
pub fn narrowed(matrix: MatRef<'_, f64>) -> Matrix {
    let mut out = Matrix::zeros(matrix.nrows(), matrix.ncols());
    for first in (0..matrix.ncols()).step_by(TILE) {
        let count = TILE.min(matrix.ncols() - first);
        let part = matrix.subcols(first, count);
        for i in 0..matrix.nrows() {
            let row = &mut out.row_mut(i)[first..first + count];
            for (j, value) in row.iter_mut().enumerate() {
                *value = crate::num::round_f32(part[(i, j)]);
            }
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

/// `r · g · rᵀ` of an upper triangular `r` and a symmetric `g`, both triangles.
pub fn congruence(r: MatRef<'_, f64>, g: MatRef<'_, f64>) -> Mat<f64> {
    use BlockStructure::{Rectangular, TriangularLower, TriangularUpper};
    let n = r.nrows();
    let (mut half, mut out) = (Mat::zeros(n, n), Mat::zeros(n, n));
    let multiply = |to: MatMut<'_, f64>, shape, left, left_shape, right, right_shape| {
        let (write, sequential) = (Accum::Replace, Par::Seq);
        triangular::matmul(
            to,
            shape,
            write,
            left,
            left_shape,
            right,
            right_shape,
            1.0,
            sequential,
        );
    };

    // Each product skips the half of the terms that the triangle makes zero.
    multiply(half.as_mut(), Rectangular, r, TriangularUpper, g, Rectangular);
    let half = half.as_ref();
    let right = r.transpose();
    multiply(out.as_mut(), TriangularLower, half, Rectangular, right, TriangularLower);
    mirror(out.as_mut());
    out
}

/// Copies the lower triangle of a square matrix over the upper one.
pub fn mirror(mut matrix: MatMut<'_, f64>) {
    let n = matrix.ncols();
    // Tile by tile: one side is read against the order of memory.
    for (row, column) in (0..n)
        .step_by(TILE)
        .flat_map(|row| (row..n).step_by(TILE).map(move |column| (row, column)))
    {
        for j in column..(column + TILE).min(n) {
            for i in row..(row + TILE).min(j) {
                matrix[(i, j)] = matrix[(j, i)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_congruence_is_its_two_products() {
        for n in [1, 5, 16, 37, 130] {
            let value = |i: usize, j: usize| ((i * 7 + j * 13) % 11) as f64 - 5.0;
            let r = Mat::from_fn(n, n, |i, j| if i <= j { value(i, j) } else { 0.0 });
            let g = gram(Mat::from_fn(n, n + 3, value).as_ref());
            let slow = &r * &g * r.transpose();
            let gap = (congruence(r.as_ref(), g.as_ref()) - &slow).norm_max();
            assert!(gap <= 1e-12 * slow.norm_max(), "{n}: {gap}");
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(g[(i, j)].to_bits(), g[(j, i)].to_bits());
            }
        }
    }
}
