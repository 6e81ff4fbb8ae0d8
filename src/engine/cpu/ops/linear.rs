//! The linear layer y = x Wᵀ + b.

use super::simd;
use crate::linalg::gemm::{self, Rows, Write};

/// `y` [N, o] = `x` [N, i] Wᵀ + b, W [o, i].
pub fn forward(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    let out = bias.len();
    let width = weight.len() / out;

    // The product is added to rows that hold the bias already, which saves a pass.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::cpu::ops::check::{assert_close, differences, random, wide};

    fn slow(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
        let width = w.len() / b.len();
        let mut y = Vec::new();
        for x in x.chunks_exact(width) {
            for (w, b) in w.chunks_exact(width).zip(b) {
                y.push(b + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>());
            }
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn both_passes_equal_the_definition(
            n in 1_usize..20, i in 1_usize..20, o in 1_usize..20, seed in 0..99_u64
        ) {
            let x = random("x", n * i, seed);
            let (w, b) = (random("w", o * i, seed), random("b", o, seed));
            let (dy, start) = (random("dy", n * o, seed), random("start", n * o, seed));
            let (x64, w64, b64) = (wide(&x), wide(&w), wide(&b));
            let truth = slow(&x64, &w64, &b64);
            let mut y = vec![9.0; n * o];
            forward(&mut y, &x, &w, &b);
            assert_close("y", &y, &truth, 1e-5);
            let mut y = start.clone();
            forward_add(&mut y, &x, &w, &b);
            let added: Vec<f64> =
                truth.iter().zip(&start).map(|(t, s)| t + f64::from(*s)).collect();
            assert_close("y added to", &y, &added, 1e-5);
            let mut dx = vec![9.0; n * i];
            backward_input(&mut dx, &dy, &w, o);
            assert_close("dx", &dx, &differences(&x, &dy, |x| slow(x, &w64, &b64)), 1e-5);
            let (mut dw, mut db) = (vec![0.0; o * i], vec![0.0; o]);
            backward_parameters(&mut dw, &mut db, &dy, &x);
            assert_close("dw", &dw, &differences(&w, &dy, |w| slow(&x64, w, &b64)), 1e-5);
            assert_close("db", &db, &differences(&b, &dy, |b| slow(&x64, &w64, b)), 1e-5);
        }
    }
}
