//! LayerNorm, ε = 1e-5 as in PyTorch.
//!
//! The forward keeps the normalized rows and 1/σ; the backward needs nothing else.

use super::simd;

/// PyTorch's default, which every published CLIP uses.
pub const EPSILON: f32 = 1e-5;

/// What the backward needs: normalized rows `[N, d]` and 1/σ `[N]`.
#[derive(Debug, Default, Clone)]
pub struct Saved {
    normalized: Vec<f32>,
    inverse_deviation: Vec<f32>,
}

/// `y` [N, d] = gain ⊙ (x - mean) / σ + bias.
pub fn forward(y: &mut [f32], x: &[f32], gain: &[f32], bias: &[f32], saved: &mut Saved) {
    let d = gain.len();
    saved.normalized.resize(x.len(), 0.0);
    saved.inverse_deviation.resize(x.len() / d, 0.0);

    let width = d as f32;
    simd::dispatch(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(d).zip(y.chunks_exact_mut(d));
            let kept =
                saved.normalized.chunks_exact_mut(d).zip(&mut saved.inverse_deviation);
            for ((x, y), (n, inverse)) in rows.zip(kept) {
                let mean = simd::sum(x) / width;
                for (n, x) in n.iter_mut().zip(x) {
                    *n = x - mean;
                }

                // The variance of centered values cannot lose digits to a large mean.
                let variance = simd::dot(n, n) / width;
                *inverse = 1.0 / (variance + EPSILON).sqrt();
                for (((y, n), g), b) in y.iter_mut().zip(n).zip(gain).zip(bias) {
                    *n *= *inverse;
                    *y = n.mul_add(*g, *b);
                }
            }
        },
    );
}

/// Gradients of gain and bias, `[d]` each, added to.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of the gain.
    pub gain: &'a mut [f32],
    /// Gradient of the bias.
    pub bias: &'a mut [f32],
}

/// *Adds* the input gradient to `dx` `[N, d]`; `scratch` is `[d]`.
pub fn backward_add(
    dx: &mut [f32],
    dy: &[f32],
    gain: &[f32],
    saved: &Saved,
    gradients: &mut Gradients<'_>,
) {
    let d = gain.len();
    let width = d as f32;
    simd::dispatch(
        #[inline(always)]
        || {
            let rows = dx.chunks_exact_mut(d).zip(dy.chunks_exact(d));
            let kept = saved.normalized.chunks_exact(d).zip(&saved.inverse_deviation);
            for ((dx, dy), (n, inverse)) in rows.zip(kept) {
                for (j, db) in gradients.bias.iter_mut().enumerate() {
                    *db += dy[j];
                }
                for (j, dg) in gradients.gain.iter_mut().enumerate() {
                    *dg = dy[j].mul_add(n[j], *dg);
                }

                // What moves a whole row, or scales it, does not pass the norm.
                let (total, along) = sums(dy, gain, n);
                let (mean, along) = (total / width, along / width);
                for j in 0..d {
                    let inner = dy[j].mul_add(gain[j], -mean) - n[j] * along;
                    dx[j] = inner.mul_add(*inverse, dx[j]);
                }
            }
        },
    );
}

/// (Σ dy g, Σ dy g n).
#[inline(always)]
fn sums(dy: &[f32], gain: &[f32], n: &[f32]) -> (f32, f32) {
    let mut total = [0.0_f32; simd::LANES];
    let mut along = [0.0_f32; simd::LANES];

    let (dy, dy_rest) = dy.as_chunks::<{ simd::LANES }>();
    let (gain, gain_rest) = gain.as_chunks::<{ simd::LANES }>();
    let (n, n_rest) = n.as_chunks::<{ simd::LANES }>();

    for ((dy, gain), n) in dy.iter().zip(gain).zip(n) {
        for l in 0..simd::LANES {
            let scaled = dy[l] * gain[l];
            total[l] += scaled;
            along[l] = scaled.mul_add(n[l], along[l]);
        }
    }

    for (l, ((dy, gain), n)) in dy_rest.iter().zip(gain_rest).zip(n_rest).enumerate() {
        total[l] += dy * gain;
        along[l] = (dy * gain).mul_add(*n, along[l]);
    }
    (simd::sum(&total), simd::sum(&along))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::cpu::ops::check::{assert_close, differences, random, wide};

    fn slow(x: &[f64], gain: &[f64], bias: &[f64]) -> Vec<f64> {
        let d = gain.len() as f64;
        let mut y = Vec::new();
        for x in x.chunks_exact(gain.len()) {
            let mean = x.iter().sum::<f64>() / d;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d;
            let scale = 1.0 / (variance + f64::from(EPSILON)).sqrt();
            let row = x.iter().zip(gain).zip(bias);
            y.extend(row.map(|((x, g), b)| (x - mean) * scale * g + b));
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn both_passes_equal_the_definition(
            n in 1_usize..9, d in 3_usize..40, seed in 0..99_u64
        ) {
            let x = random("x", n * d, seed);
            let (g, b) = (random("gain", d, seed), random("bias", d, seed));
            let dy = random("dy", n * d, seed);
            let (x64, g64, b64) = (wide(&x), wide(&g), wide(&b));
            let (mut y, mut saved) = (vec![9.0; n * d], Saved::default());
            forward(&mut y, &x, &g, &b, &mut saved);
            assert_close("y", &y, &slow(&x64, &g64, &b64), 1e-5);
            let (mut dg, mut db) = (vec![0.0; d], vec![0.0; d]);
            let mut gradients = Gradients { gain: &mut dg, bias: &mut db };
            let mut dx = vec![1.0; n * d];
            backward_add(&mut dx, &dy, &g, &saved, &mut gradients);
            let added = differences(&x, &dy, |x| slow(x, &g64, &b64));
            let added: Vec<f64> = added.iter().map(|v| v + 1.0).collect();
            assert_close("dx", &dx, &added, 1e-4);
            assert_close("dgain", &dg, &differences(&g, &dy, |g| slow(&x64, g, &b64)), 1e-5);
            assert_close("dbias", &db, &differences(&b, &dy, |b| slow(&x64, &g64, b)), 1e-5);
        }
    }
}
