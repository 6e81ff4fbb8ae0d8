//! LayerNorm, ε = 1e-5 as in PyTorch.
//!
//! The forward keeps the normalised rows and 1/σ; the backward needs nothing else.

use super::simd;

/// PyTorch's default, which every published CLIP uses.
pub const EPSILON: f32 = 1e-5;

/// What the backward needs: normalised rows `[N, d]` and 1/σ `[N]`.
#[derive(Debug, Default, Clone)]
pub struct Saved {
    normalised: Vec<f32>,
    inverse_deviation: Vec<f32>,
}

/// `y` [N, d] = gain ⊙ (x - mean) / σ + bias.
pub fn forward(y: &mut [f32], x: &[f32], gain: &[f32], bias: &[f32], saved: &mut Saved) {
    let d = gain.len();
    saved.normalised.resize(x.len(), 0.0);
    saved.inverse_deviation.resize(x.len() / d, 0.0);
    let width = d as f32;
    simd::dispatch(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(d).zip(y.chunks_exact_mut(d));
            let kept =
                saved.normalised.chunks_exact_mut(d).zip(&mut saved.inverse_deviation);
            for ((x, y), (n, inverse)) in rows.zip(kept) {
                let mean = simd::sum(x) / width;
                for (n, x) in n.iter_mut().zip(x) {
                    *n = x - mean;
                }
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
            let kept = saved.normalised.chunks_exact(d).zip(&saved.inverse_deviation);
            for ((dx, dy), (n, inverse)) in rows.zip(kept) {
                for (j, db) in gradients.bias.iter_mut().enumerate() {
                    *db += dy[j];
                }
                for (j, dg) in gradients.gain.iter_mut().enumerate() {
                    *dg = dy[j].mul_add(n[j], *dg);
                }
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
