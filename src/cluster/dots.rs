//! Dot products of rows with centroids in f32, at the speed of the machine's vector unit.
//!
//! `pulp` picks the instruction set at run time and keeps this file free of `unsafe`. The
//! results round differently from machine to machine: nothing that reaches an artifact may
//! depend on their last bits (see [`super::assign`]); [`error_bound`] says how many those are.

use pulp::{Simd, WithSimd};

use super::form::Form;
use super::kernel;

/// Centroids that share the load of a row.
const TILE: usize = 4;

/// Writes `<rows[i], centroids[j]>` to `out[i * centroid_count + j]`, in f32.
///
/// `rows` are row-major of `cols` columns, `centroids` as [`Form::planes`] lays them out.
pub(super) fn dots<F: Form>(
    cols: usize,
    rows: &[F::Unit],
    centroids: &[f32],
    out: &mut [f32],
) {
    kernel::arch().dispatch(Dots::<F> { units: F::units(cols), rows, centroids, out });
}

/// A bound on `|fl(<x, c>) - <x, c>| / (|x| |c|)` for the dot products of [`dots`], valid for
/// any number of lanes: the classical `d u / (1 - d u)` with `u = eps / 2`, doubled.
pub(super) fn error_bound(cols: usize) -> f64 {
    (cols as f64 + 16.0) * f64::from(f32::EPSILON)
}

// Everything below is inlined into the code of one instruction set. A closure would not be,
// and vector instructions outside such code turn into calls.

struct Dots<'a, F: Form> {
    units: usize,
    rows: &'a [F::Unit],
    centroids: &'a [f32],
    out: &'a mut [f32],
}

impl<F: Form> WithSimd for Dots<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // 32 registers hold 4 × 4 sums beside their operands, 16 registers hold 2 × 4.
        if S::REGISTER_COUNT >= 32 {
            row_groups::<S, F, 4>(simd, self);
        } else {
            row_groups::<S, F, 2>(simd, self);
        }
    }
}

#[inline(always)]
fn row_groups<S: Simd, F: Form, const R: usize>(simd: S, task: Dots<'_, F>) {
    let Dots { units, rows, centroids, out } = task;
    let count = centroids.len() / (units * F::COLUMNS);

    // Whole groups of R rows keep R × TILE sums in registers; the rest goes row by row.
    let mut groups = rows.chunks_exact(R * units);
    let mut outs = out.chunks_exact_mut(R * count);
    for (index, (group, out)) in groups.by_ref().zip(outs.by_ref()).enumerate() {
        let next = &rows[((index + 1) * R * units).min(rows.len())..];
        row_group::<S, F, R>(simd, group, next, centroids, out);
    }

    let rest = groups.remainder().chunks_exact(units);
    for (row, out) in rest.zip(outs.into_remainder().chunks_exact_mut(count)) {
        row_group::<S, F, 1>(simd, row, &[], centroids, out);
    }
}

/// All dot products of `R` rows; what follows them is touched meanwhile.
#[inline(always)]
fn row_group<S: Simd, F: Form, const R: usize>(
    simd: S,
    rows: &[F::Unit],
    next: &[F::Unit],
    centroids: &[f32],
    out: &mut [f32],
) {
    let units = rows.len() / R;
    let width = units * F::COLUMNS;
    let count = centroids.len() / width;
    let mut each: [&[F::Unit]; R] = [&[]; R];
    for (slot, row) in each.iter_mut().zip(rows.chunks_exact(units)) {
        *slot = row;
    }

    let mut first = 0;
    let mut tiles = centroids.chunks_exact(TILE * width);
    for group in tiles.by_ref() {
        let mut four: [&[f32]; TILE] = [&[]; TILE];
        for (slot, centroid) in four.iter_mut().zip(group.chunks_exact(width)) {
            *slot = centroid;
        }
        // The last tile of a group is followed by the next rows, so they are touched there.
        let last = first + 2 * TILE > count;
        let sums = if F::AHEAD && last && next.len() >= rows.len() {
            tile::<S, F, R, TILE, true>(simd, each, four, next)
        } else {
            tile::<S, F, R, TILE, false>(simd, each, four, next)
        };
        for (i, sums) in sums.iter().enumerate() {
            out[i * count + first..][..TILE].copy_from_slice(sums);
        }
        first += TILE;
    }

    for centroid in tiles.remainder().chunks_exact(width) {
        let sums = tile::<S, F, R, 1, false>(simd, each, [centroid], next);
        for (i, [sum]) in sums.iter().enumerate() {
            out[i * count + first] = *sum;
        }
        first += 1;
    }
}

/// The `R × C` dot products of `R` rows with `C` centroids, summed in registers. With `AHEAD`
/// one value of every register of the next rows is loaded too, which brings their cache lines
/// while the multiplications go on.
#[inline(always)]
fn tile<S: Simd, F: Form, const R: usize, const C: usize, const AHEAD: bool>(
    simd: S,
    rows: [&[F::Unit]; R],
    centroids: [&[f32]; C],
    next: &[F::Unit],
) -> [[f32; C]; R] {
    let units = rows[0].len();
    let mut x: [&[F::Vector<S>]; R] = [&[]; R];
    let mut x_rest: [&[F::Unit]; R] = [&[]; R];
    for (i, row) in rows.into_iter().enumerate() {
        (x[i], x_rest[i]) = F::vectors::<S>(row);
    }

    // Equal lengths, in sight of the compiler, so that it drops the bounds checks.
    let length = x[0].len();
    for row in &mut x {
        *row = &row[..length];
    }
    // A form of two columns per unit reads two planes of each centroid.
    let mut first: [&[S::f32s]; C] = [&[]; C];
    let mut second: [&[S::f32s]; C] = [&[]; C];
    for (j, centroid) in centroids.iter().enumerate() {
        first[j] = &S::as_simd_f32s(&centroid[..units]).0[..length];
        if F::COLUMNS == 2 {
            second[j] = &S::as_simd_f32s(&centroid[units..2 * units]).0[..length];
        }
    }

    let zero = simd.splat_f32s(0.0);
    let mut sums = [[zero; C]; R];
    let lanes = size_of::<F::Vector<S>>() / 4;
    let mut touched = 0;
    for step in 0..length {
        // A value that is used for nothing brings its cache line all the same.
        if AHEAD {
            for i in 0..R {
                touched ^= F::bits(next[(step * R + i) * lanes]);
            }
        }

        let mut values = [[zero; 2]; R];
        for i in 0..R {
            values[i] = F::widen(simd, x[i][step]);
        }

        for j in 0..C {
            let operand = first[j][step];
            for i in 0..R {
                sums[i][j] = simd.mul_add_e_f32s(values[i][0], operand, sums[i][j]);
            }
            if F::COLUMNS == 2 {
                let operand = second[j][step];
                for i in 0..R {
                    sums[i][j] = simd.mul_add_e_f32s(values[i][1], operand, sums[i][j]);
                }
            }
        }
    }
    if AHEAD {
        std::hint::black_box(touched);
    }

    // What does not fill a register is added one by one.
    let mut out = [[0.0_f32; C]; R];
    for i in 0..R {
        for j in 0..C {
            out[i][j] = simd.reduce_sum_f32s(sums[i][j]);
            for (at, &unit) in (units - x_rest[i].len()..units).zip(x_rest[i]) {
                let [low, high] = F::columns(unit);
                out[i][j] += low * centroids[j][at];
                if F::COLUMNS == 2 {
                    out[i][j] += high * centroids[j][units + at];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::form::{Full, Half, pack};
    use crate::cluster::kernel::{dot_exact, norm};
    use crate::rng;

    fn check<F: Form>(cols: usize, rows: &[F::Unit], centroids: &[Vec<f64>]) {
        let mut planes = Vec::new();
        for centroid in centroids {
            F::planes(centroid, &mut planes);
        }
        let units = F::units(cols);
        let count = centroids.len();
        let mut out = vec![f32::NAN; rows.len() / units * count];
        dots::<F>(cols, rows, &planes, &mut out);
        let mut scratch = Vec::new();
        for (i, row) in rows.chunks(units).enumerate() {
            let row = F::row(row, cols, &mut scratch);
            for (j, centroid) in centroids.iter().enumerate() {
                let exact = dot_exact(row, centroid);
                let length = centroid.iter().map(|v| v * v).sum::<f64>().sqrt();
                let gap = (f64::from(out[i * count + j]) - exact).abs();
                assert!(gap <= error_bound(cols) * norm(row) * length);
                let plain: f64 =
                    row.iter().zip(centroid).map(|(&x, c)| f64::from(x) * c).sum();
                assert!((plain - exact).abs() < 1e-12 * cols as f64);
            }
        }
    }

    #[test]
    fn fast_dots_stay_within_their_bound_of_the_exact_ones() {
        for (rows, count, cols) in
            [(1, 1, 1), (5, 3, 7), (9, 8, 33), (6, 13, 768), (4, 4, 2)]
        {
            let mut stream = rng::stream(1, "test");
            let mut x = vec![0.0; rows * cols];
            let mut c = vec![0.0; count * cols];
            rng::fill_normal(&mut stream, 1.0, &mut x);
            rng::fill_normal(&mut stream, 1.0, &mut c);
            let centroids: Vec<Vec<f64>> =
                c.chunks(cols).map(|c| c.iter().map(|&v| v.into()).collect()).collect();
            check::<Full>(cols, &x, &centroids);
            let mut packed = vec![0; rows * Half::units(cols)];
            pack(&x, cols, &mut packed);
            check::<Half>(cols, &packed, &centroids);
        }
    }
}
