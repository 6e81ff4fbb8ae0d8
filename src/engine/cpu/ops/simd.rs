//! Vector instructions without `unsafe`: loops that the compiler vectorizes, run under the
//! widest instruction set that the machine has.
//!
//! [`dispatch`] compiles its closure once per instruction set and chooses at run time. The
//! closure and everything it calls must be `#[inline(always)]`: what is not inlined is compiled
//! for the oldest machine, and a fused multiply-add becomes a call, 50 times slower. Reductions
//! keep [`LANES`] partial sums whatever the register width, so their results do not depend on
//! the machine.

/// Partial sums of a reduction.
pub const LANES: usize = 16;

/// Runs the closure with the widest vector instructions available.
#[inline]
pub fn dispatch<R>(work: impl FnOnce() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Work<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }

    // The processor's features are detected once per thread, not once per call.
    ARCH.with(|arch| arch.dispatch(Work(work)))
}

thread_local! {
    static ARCH: pulp::Arch = pulp::Arch::new();
}

/// e^x to about 2 ulp; below -87 it is 0-like (1.6e-38), above 88 it saturates.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Cody-Waite reduction by ln 2 and a degree-6 polynomial (Cephes' expf coefficients).
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer.
    let x = x.clamp(-87.0, 88.0);

    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;

    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);

    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 5.000_000_3e-1);
    let p = p.mul_add(r * r, r) + 1.0;

    // 2ⁿ by its bits: n is in the low bits of `shifted`, and 127 is the exponent's bias.
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

/// Σ a b with [`LANES`] partial sums.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();

    for (x, y) in a_whole.iter().zip(b_whole) {
        for l in 0..LANES {
            lanes[l] = x[l].mul_add(y[l], lanes[l]);
        }
    }

    for (l, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[l] = x.mul_add(*y, lanes[l]);
    }
    fold(lanes)
}

/// Σ a with [`LANES`] partial sums.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = a.as_chunks::<LANES>();

    for x in whole {
        for l in 0..LANES {
            lanes[l] += x[l];
        }
    }

    for (l, x) in rest.iter().enumerate() {
        lanes[l] += x;
    }
    fold(lanes)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    // Lanes are added as a tree, which is the same on every register width.
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `out += x`, value by value.
#[inline(always)]
pub fn add(out: &mut [f32], x: &[f32]) {
    for (o, v) in out.iter_mut().zip(x) {
        *o += v;
    }
}

/// Softmax of one row in place; the largest value is subtracted first.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for v in row.iter_mut() {
        *v = exp(*v - largest);
    }

    let scale = 1.0 / sum(row);
    for v in row.iter_mut() {
        *v *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_four_ulp() {
        let mut x = -86.0_f32;
        while x < 87.0 {
            let exact = f64::from(x).exp();
            let error = (f64::from(dispatch(|| exp(x))) - exact).abs() / exact;
            assert!(error < 4.0 * f64::from(f32::EPSILON), "exp({x}): {error:e}");
            x += 0.013;
        }
        assert!(exp(-1e9) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn sums_do_not_depend_on_the_instruction_set() {
        let a: Vec<f32> = (0..1003_u16).map(|i| f32::from(i).sin()).collect();
        let b: Vec<f32> = (0..1003_u16).map(|i| f32::from(i).cos()).collect();
        assert_eq!(dispatch(|| dot(&a, &b)).to_bits(), dot(&a, &b).to_bits());
        assert_eq!(dispatch(|| sum(&a)).to_bits(), sum(&a).to_bits());
        let exact: f64 =
            a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-3);
    }
}
