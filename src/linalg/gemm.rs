//! Dense f32 products on row-major slices, one thread each.
//!
//! The three forms a linear layer needs, over faer's kernels (AVX-512 or AVX2 where the
//! machine has them). A product never splits its inner dimension over threads: parallelism
//! stands above it, over fixed chunks of rows, so results do not depend on the thread count.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Whether a product replaces the output or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// C = A B.
    Replace,
    /// C += A B.
    Add,
}

impl Write {
    fn accum(self) -> Accum {
        match self {
            Self::Replace => Accum::Replace,
            Self::Add => Accum::Add,
        }
    }
}

/// A row-major matrix whose rows may lie apart: row i starts at `i * stride`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    count: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Consecutive rows of `cols` values; the number of rows follows.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        Self { data, count: data.len() / cols.max(1), cols, stride: cols }
    }

    /// `count` rows of `cols` values, `stride` apart, from the start of `data`.
    pub fn strided(data: &'a [f32], count: usize, cols: usize, stride: usize) -> Self {
        Self { data, count, cols, stride }
    }

    fn view(self) -> MatRef<'a, f32> {
        let last =
            if self.count == 0 { 0 } else { (self.count - 1) * self.stride + self.cols };
        let data = &self.data[..last];
        MatRef::from_row_major_slice_with_stride(data, self.count, self.cols, self.stride)
    }
}

/// C [m, n] from A [m, k] and B [n, k]: A Bᵀ, a linear layer's forward.
pub fn a_bt(c: &mut [f32], a: Rows<'_>, b: Rows<'_>, write: Write) {
    product(c, a.view(), b.view().transpose(), write);
}

/// C [m, n] from A [m, k] and B [k, n]: A B, a linear layer's input gradient.
pub fn a_b(c: &mut [f32], a: Rows<'_>, b: Rows<'_>, write: Write) {
    product(c, a.view(), b.view(), write);
}

/// C [m, n] from A [k, m] and B [k, n]: Aᵀ B, a linear layer's weight gradient.
pub fn at_b(c: &mut [f32], a: Rows<'_>, b: Rows<'_>, write: Write) {
    product(c, a.view().transpose(), b.view(), write);
}

/// As [`a_b`], into rows of C that lie `stride` apart.
pub fn a_b_strided(c: &mut [f32], stride: usize, a: Rows<'_>, b: Rows<'_>) {
    product_strided(c, stride, a.view(), b.view());
}

/// As [`at_b`], into rows of C that lie `stride` apart.
pub fn at_b_strided(c: &mut [f32], stride: usize, a: Rows<'_>, b: Rows<'_>) {
    product_strided(c, stride, a.view().transpose(), b.view());
}

fn product(c: &mut [f32], a: MatRef<'_, f32>, b: MatRef<'_, f32>, write: Write) {
    let c = MatMut::from_row_major_slice_mut(c, a.nrows(), b.ncols());
    matmul(c, write.accum(), a, b, 1.0, Par::Seq);
}

fn product_strided(c: &mut [f32], stride: usize, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    let (m, n) = (a.nrows(), b.ncols());
    let last = if m == 0 { 0 } else { (m - 1) * stride + n };
    // faer 0.24's `from_row_major_slice_with_stride_mut` confuses the strides and writes out
    // of bounds; its column-major twin is right.
    let c = MatMut::from_column_major_slice_with_stride_mut(&mut c[..last], n, m, stride);
    let c = c.transpose_mut();
    matmul(c, Accum::Replace, a, b, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn slow(m: usize, n: usize, k: usize, at: impl Fn(usize, usize) -> f32) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|p| f64::from(at(i * n + j, p))).sum();
            }
        }
        c
    }

    #[test]
    fn the_three_forms_equal_the_triple_loop_on_odd_sizes() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 33, 65), (64, 1, 130), (5, 40, 0)] {
            let mut stream = rng::stream(3, "gemm");
            let mut random = |len: usize| {
                let mut v = vec![0.0; len];
                rng::fill_normal(&mut stream, 1.0, &mut v);
                v
            };
            let (a, b) = (random(m * k), random(k * n));
            let expected = slow(m, n, k, |ij, p| a[(ij / n) * k + p] * b[p * n + ij % n]);
            let close = |c: &[f32]| {
                c.iter().zip(&expected).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-4)
            };
            let transpose = |v: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| v[(i % rows) * cols + i / rows]).collect()
            };
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            let view = |v, rows, cols: usize| Rows::strided(v, rows, cols, cols);
            let mut c = vec![0.0; m * n];
            a_b(&mut c, view(&a, m, k), view(&b, k, n), Write::Replace);
            assert!(close(&c));
            a_bt(&mut c, view(&a, m, k), view(&bt, n, k), Write::Replace);
            assert!(close(&c));
            c.fill(0.0);
            at_b(&mut c, view(&at, k, m), view(&b, k, n), Write::Add);
            assert!(close(&c));
        }
    }

    #[test]
    fn products_write_exactly_their_rows() {
        for (m, n, k) in [(1, 2, 1), (1, 1, 0), (3, 5, 2), (17, 16, 8), (19, 3, 17)] {
            for stride in [n, n + 3, n + 8] {
                let (a, b) = (vec![1.0; m * k], vec![1.0; k * n]);
                let mut c = vec![7.0; m * stride + 64];
                let last = (m - 1) * stride + n;
                let (a, b) = (Rows::strided(&a, m, k, k), Rows::strided(&b, k, n, n));
                a_b_strided(&mut c[..last], stride, a, b);
                for (i, v) in c.iter().enumerate() {
                    let inside = i < last && i % stride < n;
                    let expected = if inside { k as f32 } else { 7.0 };
                    assert!((v - expected).abs() < 1e-6, "{m} {n} {k} {stride}: {i}");
                }
            }
        }
    }
}
