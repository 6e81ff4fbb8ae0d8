//! The exact loops of k-means: the same bits on every machine.
//!
//! They multiply and add in f64, unfused, in a fixed order of eight lanes, on whatever vector
//! unit the machine has. The fast loops, which round as they like, are in [`super::dots`].

use std::sync::LazyLock;

use pulp::{Arch, Simd, WithSimd};

/// Lanes of the f64 loops; fixed, so that sums do not depend on the machine.
const LANES: usize = 8;

/// The instruction set of this machine, found out once: asking costs as much as a short row.
pub(super) fn arch() -> Arch {
    static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
    *ARCH
}

/// `<row, centroid>` in f64, the same bits on every machine.
pub(super) fn dot_exact(row: &[f32], centroid: &[f64]) -> f64 {
    arch().dispatch(DotExact { row, centroid })
}

/// Length of a row in f64, the same bits on every machine; never overflows for finite rows.
pub(super) fn norm(row: &[f32]) -> f64 {
    arch().dispatch(Squares { row }).sqrt()
}

/// `sum += scale * row` in f64, the same bits on every machine.
pub(super) fn add_scaled(sum: &mut [f64], scale: f64, row: &[f32]) {
    arch().dispatch(AddScaled { sum, scale, row });
}

// Everything below is inlined into the code of one instruction set. A closure would not be,
// and vector instructions outside such code turn into calls.

struct DotExact<'a> {
    row: &'a [f32],
    centroid: &'a [f64],
}

impl WithSimd for DotExact<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (row_head, row_tail) = self.row.as_chunks::<LANES>();
        let (centroid_head, centroid_tail) = self.centroid.as_chunks::<LANES>();
        for (x, c) in row_head.iter().zip(centroid_head) {
            for lane in 0..LANES {
                lanes[lane] += f64::from(x[lane]) * c[lane];
            }
        }

        // The lanes meet in order, then the values that fill no chunk of lanes follow.
        let mut total = 0.0;
        for lane in lanes {
            total += lane;
        }
        for (&x, &c) in row_tail.iter().zip(centroid_tail) {
            total += f64::from(x) * c;
        }
        total
    }
}

struct Squares<'a> {
    row: &'a [f32],
}

impl WithSimd for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (head, tail) = self.row.as_chunks::<LANES>();
        for x in head {
            for lane in 0..LANES {
                lanes[lane] += f64::from(x[lane]) * f64::from(x[lane]);
            }
        }

        let mut total = 0.0;
        for lane in lanes {
            total += lane;
        }
        for &x in tail {
            total += f64::from(x) * f64::from(x);
        }
        total
    }
}

struct AddScaled<'a> {
    sum: &'a mut [f64],
    scale: f64,
    row: &'a [f32],
}

impl WithSimd for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (total, &value) in self.sum.iter_mut().zip(self.row) {
            *total += self.scale * f64::from(value);
        }
    }
}
