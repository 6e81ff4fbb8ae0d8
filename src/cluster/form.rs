//! How a row is held: f32, or bf16 packed in pairs at half the bytes.
//!
//! With few centroids k-means waits for memory, so half the bytes is nearly half the time. A
//! bf16 copy is a data set of its own, on which every rule holds that holds for f32 (exact
//! decisions, f64 sums): only the loops that read rows know the difference, and this file.
//!
//! ```text
//! unit u of a packed row:  | bits of column 2u + 1 | bits of column 2u |
//!                            high 16                 low 16
//! ```
//!
//! Widening is a shift or a mask, since a bf16 is the upper half of an f32. The columns of even
//! index come out together and so do the odd ones; centroids are stored in that order
//! ([`Form::planes`]), so no lane ever has to move.

use pulp::Simd;

/// A way to hold rows.
pub(super) trait Form: Copy + Send + Sync + 'static {
    /// What a row is a slice of.
    type Unit: Copy + Send + Sync;
    /// As many units as a register holds.
    type Vector<S: Simd>: Copy;
    /// Columns of a unit: 1 or 2.
    const COLUMNS: usize;
    /// Whether rows are touched ahead of their turn. The prefetcher of the machine does well
    /// with rows of f32; with half the bytes a row is over before it has learned the pattern
    /// (200,000 × 768, k = 8, one thread: 54 ms without, 42 ms with; f32 62 ms and 70 ms).
    const AHEAD: bool;

    /// Whole registers of a row, and the rest.
    fn vectors<S: Simd>(row: &[Self::Unit]) -> (&[Self::Vector<S>], &[Self::Unit]);

    /// The columns in a register; the second half is meaningless with one column per unit.
    fn widen<S: Simd>(simd: S, vector: Self::Vector<S>) -> [S::f32s; 2];

    /// The columns in a unit; the second is 0 with one column per unit.
    fn columns(unit: Self::Unit) -> [f32; 2];

    /// The bits of a unit.
    fn bits(unit: Self::Unit) -> u32;

    /// A row in f32; `scratch` lends space if it has to be converted.
    fn row<'a>(
        units: &'a [Self::Unit],
        cols: usize,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32];

    /// Units of a row.
    fn units(cols: usize) -> usize {
        cols.div_ceil(Self::COLUMNS)
    }

    /// A centroid in the order of [`Form::widen`]: first columns of all units, then second
    /// columns, padded with zeros.
    fn planes(centroid: &[f64], out: &mut Vec<f32>) {
        for plane in 0..Self::COLUMNS {
            for unit in 0..Self::units(centroid.len()) {
                let value = centroid.get(unit * Self::COLUMNS + plane);
                out.push(crate::num::round_f32(value.copied().unwrap_or(0.0)));
            }
        }
    }
}

/// Rows of f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Full;

impl Form for Full {
    type Unit = f32;
    type Vector<S: Simd> = S::f32s;
    const COLUMNS: usize = 1;
    const AHEAD: bool = false;

    #[inline(always)]
    fn vectors<S: Simd>(row: &[f32]) -> (&[S::f32s], &[f32]) {
        S::as_simd_f32s(row)
    }

    #[inline(always)]
    fn widen<S: Simd>(_: S, vector: S::f32s) -> [S::f32s; 2] {
        [vector; 2]
    }

    #[inline(always)]
    fn bits(unit: f32) -> u32 {
        unit.to_bits()
    }

    #[inline(always)]
    fn columns(unit: f32) -> [f32; 2] {
        [unit, 0.0]
    }

    #[inline(always)]
    fn row<'a>(units: &'a [f32], _: usize, _: &'a mut Vec<f32>) -> &'a [f32] {
        units
    }
}

/// Rows of bf16, two columns per unit; a row of odd length ends with a zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct Half;

const HIGH: u32 = 0xffff_0000;

impl Form for Half {
    type Unit = u32;
    type Vector<S: Simd> = S::u32s;
    const COLUMNS: usize = 2;
    const AHEAD: bool = true;

    #[inline(always)]
    fn vectors<S: Simd>(row: &[u32]) -> (&[S::u32s], &[u32]) {
        S::as_simd_u32s(row)
    }

    #[inline(always)]
    fn widen<S: Simd>(simd: S, vector: S::u32s) -> [S::f32s; 2] {
        // The low half becomes the upper half of an f32; the high half already is one.
        let low = simd.wrapping_dyn_shl_u32s(vector, simd.splat_u32s(16));
        let high = simd.and_u32s(vector, simd.splat_u32s(HIGH));
        [simd.transmute_f32s_u32s(low), simd.transmute_f32s_u32s(high)]
    }

    #[inline(always)]
    fn bits(unit: u32) -> u32 {
        unit
    }

    #[inline(always)]
    fn columns(unit: u32) -> [f32; 2] {
        [f32::from_bits(unit << 16), f32::from_bits(unit & HIGH)]
    }

    fn row<'a>(units: &'a [u32], cols: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(2 * units.len(), 0.0);
        for (pair, &unit) in scratch.as_chunks_mut::<2>().0.iter_mut().zip(units) {
            *pair = Self::columns(unit);
        }
        &scratch[..cols]
    }
}

/// Packs rows of `cols` finite values; rounds to the nearest bf16, ties to even.
pub(super) fn pack(rows: &[f32], cols: usize, out: &mut [u32]) {
    for (row, out) in rows.chunks_exact(cols).zip(out.chunks_exact_mut(Half::units(cols)))
    {
        let (pairs, rest) = row.as_chunks::<2>();
        // A row of odd length ends with half a pair.
        let last = rest.first().map(|&last| [last, 0.0]);
        for (&[low, high], unit) in pairs.iter().chain(&last).zip(out) {
            *unit = upper(low) >> 16 | upper(high);
        }
    }
}

/// The nearest bf16 in the upper half; the largest finite one where rounding would overflow.
#[inline(always)]
fn upper(value: f32) -> u32 {
    let bits = value.to_bits();
    // Half a unit in the last place, and one more bit where the tie would leave it odd.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & HIGH;
    if rounded & 0x7f80_0000 == 0x7f80_0000 { bits & HIGH } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn packing_rounds_to_the_nearest_bf16_and_never_overflows() {
        for (value, expected) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0), // A tie, to even.
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (-1.004, -1.007_812_5),
            (0.0, 0.0),
            (f32::MAX, f32::from_bits(0x7f7f_0000)),
            (f32::MIN, f32::from_bits(0xff7f_0000)),
        ] {
            assert_eq!(f32::from_bits(upper(value)).to_bits(), f32::to_bits(expected));
        }
    }

    #[test]
    fn rows_of_any_width_unpack_to_within_a_256th() {
        for cols in [1, 2, 5, 16, 33] {
            let mut rows = vec![0.0; 3 * cols];
            rng::fill_normal(&mut rng::stream(1, "test"), 1.0, &mut rows);
            let mut packed = vec![0; 3 * Half::units(cols)];
            pack(&rows, cols, &mut packed);
            let mut scratch = Vec::new();
            for (row, units) in rows.chunks(cols).zip(packed.chunks(Half::units(cols))) {
                let back = Half::row(units, cols, &mut scratch);
                assert_eq!(back.len(), cols);
                for (a, b) in row.iter().zip(back) {
                    assert!((a - b).abs() <= a.abs() / 256.0);
                }
            }
        }
    }
}
