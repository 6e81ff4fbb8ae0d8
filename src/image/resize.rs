//! Resizing that equals Pillow's bit for bit.
//!
//! Resamplers differ by up to 14 levels near black and white; published CLIP weights were
//! trained on Pillow's. Its arithmetic: per axis scale = in/out, f = max(scale, 1); output i
//! has center c = (i + 0.5) scale and the taps j within f times the filter's support of it,
//! with weights filter((j - c + 0.5) / f), normalised in f64 and rounded to 22-bit fixed
//! point. The horizontal pass comes first and its result is rounded and clamped to 8 bits.

use serde::{Deserialize, Serialize};

use super::Picture;
use crate::num;

/// Fractional bits of a weight.
const BITS: u32 = 22;

/// How neighboring pixels are weighted. The two that `open_clip` has for evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Keys' cubic with a = -0.5 (CLIP's default).
    #[default]
    Bicubic,
    /// A triangle.
    Bilinear,
}

impl Filter {
    /// The name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bicubic => "bicubic",
            Self::Bilinear => "bilinear",
        }
    }

    /// The distance, in pixels of the coarser side, beyond which the weight is zero.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => cubic(x),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
        }
    }
}

/// Resizes to `width` x `height` with the bicubic filter.
///
/// Cost: O(in height · width + height · width) · taps.
#[must_use]
pub fn resize(picture: &Picture, width: usize, height: usize) -> Picture {
    resize_with(picture, width, height, Filter::Bicubic)
}

/// [`resize`] with any filter.
#[must_use]
pub(super) fn resize_with(
    picture: &Picture,
    width: usize,
    height: usize,
    filter: Filter,
) -> Picture {
    let columns = Taps::new(picture.width, width, filter);
    let rows = Taps::new(picture.height, height, filter);

    let mut middle = Picture::filled(width, picture.height, [0; 3]);
    for (from, to) in picture
        .rgb
        .chunks_exact(picture.width * 3)
        .zip(middle.rgb.chunks_exact_mut(width * 3))
    {
        for (x, pixel) in to.chunks_exact_mut(3).enumerate() {
            let (start, weights) = columns.of(x);

            // Half of the last place is added beforehand, so that the shift below rounds.
            let mut sums = [1 << (BITS - 1); 3];
            for (source, &weight) in from[start * 3..].chunks_exact(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum += weight * i32::from(value);
                }
            }
            pixel.iter_mut().zip(sums).for_each(|(out, sum)| *out = level(sum));
        }
    }

    let mut out = Picture::filled(width, height, [0; 3]);
    let mut sums = vec![0_i32; width * 3];
    for (y, to) in out.rgb.chunks_exact_mut(width * 3).enumerate() {
        let (start, weights) = rows.of(y);

        sums.fill(1 << (BITS - 1));
        for (from, &weight) in
            middle.rgb[start * width * 3..].chunks(width * 3).zip(weights)
        {
            for (sum, &value) in sums.iter_mut().zip(from) {
                *sum += weight * i32::from(value);
            }
        }
        to.iter_mut().zip(&sums).for_each(|(out, &sum)| *out = level(sum));
    }
    out
}

fn level(sum: i32) -> u8 {
    u8::try_from((sum >> BITS).clamp(0, 255)).unwrap_or(u8::MAX)
}

/// The weights of every output position along one axis.
struct Taps {
    starts: Vec<usize>,
    weights: Vec<Vec<i32>>,
}

impl Taps {
    fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let reach = filter.support() * stretch;
        let mut taps = Self { starts: Vec::new(), weights: Vec::new() };

        for i in 0..to {
            let center = (i as f64 + 0.5) * scale;
            let start = num::truncate_usize(center - reach + 0.5);
            let end = num::truncate_usize(center + reach + 0.5).min(from);

            let raw: Vec<f64> = (start..end)
                .map(|j| filter.weight((j as f64 - center + 0.5) / stretch))
                .collect();

            // Taps beyond the edge are left out, and those that stay share the whole
            // weight.
            let total: f64 = raw.iter().sum();
            let one = f64::from(1_i32 << BITS);
            taps.starts.push(start);
            taps.weights
                .push(raw.iter().map(|w| num::round_i32(w / total * one)).collect());
        }
        taps
    }

    fn of(&self, position: usize) -> (usize, &[i32]) {
        (self.starts[position], &self.weights[position])
    }
}

/// Keys' cubic with a = -0.5 ("Cubic convolution interpolation for digital image processing",
/// 1981): the weight of a neighbor at the distance `x`, zero from 2 on. Pillow and PyTorch's
/// antialiased resize use it.
pub fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_picture() {
        let rgb = (0..7 * 5 * 3).map(|i| u8::try_from(i * 2).unwrap()).collect();
        let picture = Picture { width: 7, height: 5, rgb };
        assert_eq!(resize(&picture, 7, 5), picture);
    }

    #[test]
    fn a_flat_color_stays_flat() {
        let flat = Picture::filled(61, 13, [7, 200, 255]);
        assert_eq!(resize(&flat, 16, 40), Picture::filled(16, 40, [7, 200, 255]));
    }
}
