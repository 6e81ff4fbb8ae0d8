//! GELU and QuickGELU with their derivatives in one pass.
//!
//! The forward writes the derivative too: value and derivative share the exponential, and the
//! backward is then one multiplication.

use super::simd;
use crate::config::Activation;

/// Replaces `x` by act(x) and writes act'(x) to `derivative`.
pub fn forward(activation: Activation, x: &mut [f32], derivative: &mut [f32]) {
    // One loop per function: the choice is made once, and not for every value.
    match activation {
        Activation::Gelu => simd::dispatch(
            #[inline(always)]
            || {
                for (x, s) in x.iter_mut().zip(derivative) {
                    (*x, *s) = gelu(*x);
                }
            },
        ),
        Activation::QuickGelu => simd::dispatch(
            #[inline(always)]
            || {
                for (x, s) in x.iter_mut().zip(derivative) {
                    (*x, *s) = quick_gelu(*x);
                }
            },
        ),
    }
}

/// Replaces `x` by act(x).
pub fn apply(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Gelu => simd::dispatch(
            #[inline(always)]
            || x.iter_mut().for_each(|x| *x = gelu(*x).0),
        ),
        Activation::QuickGelu => {
            simd::dispatch(
                #[inline(always)]
                || x.iter_mut().for_each(|x| *x = quick_gelu(*x).0),
            );
        }
    }
}

/// (x Φ(x), Φ(x) + x φ(x)); Φ by Abramowitz & Stegun 7.1.26, absolute error 1.5e-7.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let p = 1.061_405_4_f32;
    let p = p.mul_add(t, -1.453_152_1);
    let p = p.mul_add(t, 1.421_413_8);
    let p = p.mul_add(t, -0.284_496_72);
    let p = p.mul_add(t, 0.254_829_6) * t;

    // 1 - erf(z) = p(t) exp(-z²), and exp(-z²) = exp(-x²/2) is needed for φ as well.
    let bell = simd::exp(-0.5 * x * x);
    let tail = 0.5 * p * bell;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };

    (x * cdf, (x * INV_SQRT_2PI).mul_add(bell, cdf))
}

/// (x σ(1.702 x), its derivative).
#[inline(always)]
fn quick_gelu(x: f32) -> (f32, f32) {
    const SLOPE: f32 = 1.702;
    let s = 1.0 / (1.0 + simd::exp(-SLOPE * x));
    (x * s, s * (SLOPE * x).mul_add(1.0 - s, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf in f64 by its series and continued fraction: slow, independent of the fit above.
    fn erf(z: f64) -> f64 {
        let (mut term, mut total) = (z, z);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -z * z / n;
            total += term / (2.0 * n + 1.0);
        }
        (2.0 / std::f64::consts::PI.sqrt() * total).clamp(-1.0, 1.0)
    }

    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt())),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        }
    }

    #[test]
    fn values_and_derivatives_equal_the_definition() {
        for activation in [Activation::Gelu, Activation::QuickGelu] {
            for i in -500..500_i16 {
                let x = f32::from(i) * 0.01;
                let (mut value, mut derivative) = ([x], [0.0]);
                forward(activation, &mut value, &mut derivative);
                let x = f64::from(x);
                let step = 1e-5;
                let (up, down) =
                    (exact(activation, x + step), exact(activation, x - step));
                assert!((f64::from(value[0]) - exact(activation, x)).abs() < 1e-6, "{x}");
                assert!(
                    (f64::from(derivative[0]) - (up - down) / (2.0 * step)).abs() < 2e-6
                );
                let mut again = [crate::num::round_f32(x)];
                apply(activation, &mut again);
                assert_eq!(again[0].to_bits(), value[0].to_bits());
            }
        }
    }
}
