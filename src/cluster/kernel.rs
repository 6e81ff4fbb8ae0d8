//! The inner loops of k-means, on whatever vector unit the machine has.
//!
//! `pulp` picks the instruction set at run time and keeps this file free of `unsafe`.
//! [`dots`] is fast and rounds differently from machine to machine; nothing that reaches a
//! result may depend on its last bits (see [`super::assign`]). The f64 loops multiply and
//! add, unfused, in a fixed order of eight lanes: the same bits on every machine.

use pulp::{Arch, Simd, WithSimd};

/// Lanes of the f64 loops; fixed, so that sums do not depend on the machine.
const LANES: usize = 8;

/// Centroids that share the load of a row.
const TILE: usize = 4;

/// Writes `<rows[i], centroids[j]>` to `out[i * centroid_count + j]`, in f32.
///
/// `rows` and `centroids` are row-major with `cols` values a row. The error is bounded by
/// [`dots_error`].
pub(super) fn dots(cols: usize, rows: &[f32], centroids: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(Dots { cols, rows, centroids, out });
}

/// A bound on `|fl(<x, c>) - <x, c>| / (|x| |c|)` for the dot products of [`dots`], valid for
/// any number of lanes: the classical `d u / (1 - d u)` with `u = eps / 2`, doubled.
pub(super) fn dots_error(cols: usize) -> f64 {
    (cols as f64 + 16.0) * f64::from(f32::EPSILON)
}

/// `<row, centroid>` in f64, the same bits on every machine.
pub(super) fn dot_exact(row: &[f32], centroid: &[f64]) -> f64 {
    Arch::new().dispatch(DotExact { row, centroid })
}

/// Length of a row in f64, the same bits on every machine; never overflows for finite rows.
pub(super) fn norm(row: &[f32]) -> f64 {
    Arch::new().dispatch(Squares { row }).sqrt()
}

/// `sum += scale * row` in f64, the same bits on every machine.
pub(super) fn add_scaled(sum: &mut [f64], scale: f64, row: &[f32]) {
    Arch::new().dispatch(AddScaled { sum, scale, row });
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
    #[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (row_head, row_tail) = self.row.as_chunks::<LANES>();
        let (centroid_head, centroid_tail) = self.centroid.as_chunks::<LANES>();
        for (x, c) in row_head.iter().zip(centroid_head) {
            for lane in 0..LANES {
                lanes[lane] += f64::from(x[lane]) * c[lane];
            }
        }
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
    #[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
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
    #[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
    fn with_simd<S: Simd>(self, _: S) {
        for (total, &value) in self.sum.iter_mut().zip(self.row) {
            *total += self.scale * f64::from(value);
        }
    }
}

struct Dots<'a> {
    cols: usize,
    rows: &'a [f32],
    centroids: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
    fn with_simd<S: Simd>(self, simd: S) {
        // 32 registers hold 4 × 4 sums beside their operands, 16 registers hold 2 × 4.
        if S::REGISTER_COUNT >= 32 {
            row_groups::<S, 4>(simd, self);
        } else {
            row_groups::<S, 2>(simd, self);
        }
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
fn row_groups<S: Simd, const R: usize>(simd: S, task: Dots<'_>) {
    let Dots { cols, rows, centroids, out } = task;
    let count = centroids.len() / cols;
    let mut groups = rows.chunks_exact(R * cols);
    let mut outs = out.chunks_exact_mut(R * count);
    for (group, out) in groups.by_ref().zip(outs.by_ref()) {
        row_group::<S, R>(simd, cols, group, centroids, out);
    }
    let rest = groups.remainder().chunks_exact(cols);
    for (row, out) in rest.zip(outs.into_remainder().chunks_exact_mut(count)) {
        row_group::<S, 1>(simd, cols, row, centroids, out);
    }
}

/// All dot products of `R` rows.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
fn row_group<S: Simd, const R: usize>(
    simd: S,
    cols: usize,
    rows: &[f32],
    centroids: &[f32],
    out: &mut [f32],
) {
    let count = centroids.len() / cols;
    let mut each: [&[f32]; R] = [&[]; R];
    for (slot, row) in each.iter_mut().zip(rows.chunks_exact(cols)) {
        *slot = row;
    }
    let mut first = 0;
    let mut tiles = centroids.chunks_exact(TILE * cols);
    for group in tiles.by_ref() {
        let mut four: [&[f32]; TILE] = [&[]; TILE];
        for (slot, centroid) in four.iter_mut().zip(group.chunks_exact(cols)) {
            *slot = centroid;
        }
        let sums = tile::<S, R, TILE>(simd, each, four);
        for (i, sums) in sums.iter().enumerate() {
            out[i * count + first..][..TILE].copy_from_slice(sums);
        }
        first += TILE;
    }
    for centroid in tiles.remainder().chunks_exact(cols) {
        let sums = tile::<S, R, 1>(simd, each, [centroid]);
        for (i, [sum]) in sums.iter().enumerate() {
            out[i * count + first] = *sum;
        }
        first += 1;
    }
}

/// The `R × C` dot products of `R` rows with `C` centroids, summed in registers.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
fn tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    rows: [&[f32]; R],
    centroids: [&[f32]; C],
) -> [[f32; C]; R] {
    let (mut x, x_tail) = vectors::<S, R>(rows);
    let (mut c, c_tail) = vectors::<S, C>(centroids);
    // Equal lengths, in sight of the compiler, so that it drops the bounds checks.
    let length = x[0].len();
    for row in &mut x {
        *row = &row[..length];
    }
    for centroid in &mut c {
        *centroid = &centroid[..length];
    }
    let zero = simd.splat_f32s(0.0);
    let mut sums = [[zero; C]; R];
    for step in 0..length {
        let mut operands = [zero; C];
        for j in 0..C {
            operands[j] = c[j][step];
        }
        for i in 0..R {
            let value = x[i][step];
            for j in 0..C {
                sums[i][j] = simd.mul_add_e_f32s(value, operands[j], sums[i][j]);
            }
        }
    }
    let mut out = [[0.0_f32; C]; R];
    for i in 0..R {
        for j in 0..C {
            out[i][j] = simd.reduce_sum_f32s(sums[i][j]);
            for (&value, &operand) in x_tail[i].iter().zip(c_tail[j]) {
                out[i][j] += value * operand;
            }
        }
    }
    out
}

/// Whole vectors of each row, and each row's rest.
type Vectors<'a, T, const N: usize> = ([&'a [T]; N], [&'a [f32]; N]);

#[inline(always)]
#[expect(clippy::inline_always, reason = "the loops must see the instruction set")]
fn vectors<S: Simd, const N: usize>(rows: [&[f32]; N]) -> Vectors<'_, S::f32s, N> {
    let (mut heads, mut tails): Vectors<'_, S::f32s, N> = ([&[]; N], [&[]; N]);
    for (i, row) in rows.into_iter().enumerate() {
        (heads[i], tails[i]) = S::as_simd_f32s(row);
    }
    (heads, tails)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn fast_dots_stay_within_their_bound_of_the_exact_ones() {
        for (rows, count, cols) in [(1, 1, 1), (5, 3, 7), (9, 8, 33), (6, 13, 768)] {
            let mut stream = rng::stream(1, "test");
            let mut x = vec![0.0; rows * cols];
            let mut c = vec![0.0; count * cols];
            rng::fill_normal(&mut stream, 1.0, &mut x);
            rng::fill_normal(&mut stream, 1.0, &mut c);
            let mut out = vec![f32::NAN; rows * count];
            dots(cols, &x, &c, &mut out);
            for (i, row) in x.chunks(cols).enumerate() {
                for (j, centroid) in c.chunks(cols).enumerate() {
                    let wide: Vec<f64> = centroid.iter().map(|&v| v.into()).collect();
                    let exact = dot_exact(row, &wide);
                    let gap = (f64::from(out[i * count + j]) - exact).abs();
                    assert!(gap <= dots_error(cols) * norm(row) * norm(centroid));
                    let plain: f64 =
                        row.iter().zip(&wide).map(|(&x, c)| f64::from(x) * c).sum();
                    assert!((plain - exact).abs() < 1e-12 * cols as f64);
                }
            }
        }
    }
}
