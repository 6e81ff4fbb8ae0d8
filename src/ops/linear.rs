//! The linear layer y = x Wᵀ + b.

use super::simd;
use crate::linalg::gemm::{self, Rows, Write};

/// `y` [N, o] = `x` [N, i] Wᵀ + b, W [o, i].
pub fn forward(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    let out = bias.len();
    let width = weight.len() / out;
    simd::dispatch(
        #[inline(always)]
        || {
            for row in y.chunks_exact_mut(out) {
                row.copy_from_slice(bias);
            }
        },
    );
    gemm::a_bt(y, Rows::new(x, width), Rows::new(weight, width), Write::Add);
}

/// `y` [N, o] += `x` [N, i] Wᵀ + b.
pub fn forward_add(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    let out = bias.len();
    let width = weight.len() / out;
    simd::dispatch(
        #[inline(always)]
        || {
            for row in y.chunks_exact_mut(out) {
                simd::add(row, bias);
            }
        },
    );
    gemm::a_bt(y, Rows::new(x, width), Rows::new(weight, width), Write::Add);
}

/// Input gradient: `dx` [N, i] = `dy` [N, o] W.
pub fn backward_input(dx: &mut [f32], dy: &[f32], weight: &[f32], out: usize) {
    let width = weight.len() / out;
    gemm::a_b(dx, Rows::new(dy, out), Rows::new(weight, width), Write::Replace);
}

/// Parameter gradients: `dw` `[o, i]` += dyᵀ x, `db` `[o]` += Σ dy.
pub fn backward_parameters(dw: &mut [f32], db: &mut [f32], dy: &[f32], x: &[f32]) {
    let out = db.len();
    let width = dw.len() / out;
    gemm::at_b(dw, Rows::new(dy, out), Rows::new(x, width), Write::Add);
    simd::dispatch(
        #[inline(always)]
        || {
            for row in dy.chunks_exact(out) {
                simd::add(db, row);
            }
        },
    );
}
