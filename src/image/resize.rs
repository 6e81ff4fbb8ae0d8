//! Bicubic resizing that equals Pillow's bit for bit, and CLIP's way to a square.
//!
//! Resamplers differ by up to 14 levels near black and white; published CLIP weights were
//! trained on Pillow's. Its arithmetic: per axis scale = in/out, f = max(scale, 1); output i
//! has centre c = (i + 0.5) scale and the taps j within 2f of it, with weights
//! cubic((j - c + 0.5) / f), a = -0.5, normalised in f64 and rounded to 22-bit fixed point.
//! The horizontal pass comes first and its result is rounded and clamped to 8 bits.

use super::{MAX_PIXELS, Picture};
use crate::error::{Error, Result};
use crate::num;

/// Fractional bits of a weight.
const BITS: u32 = 22;

/// Resizes to `width` x `height`. Cost: O(in height · width + height · width) · taps.
#[must_use]
pub fn resize(picture: &Picture, width: usize, height: usize) -> Picture {
    let columns = Taps::new(picture.width, width);
    let rows = Taps::new(picture.height, height);
    let mut middle = Picture::filled(width, picture.height, [0; 3]);
    for (from, to) in picture
        .rgb
        .chunks_exact(picture.width * 3)
        .zip(middle.rgb.chunks_exact_mut(width * 3))
    {
        for (x, pixel) in to.chunks_exact_mut(3).enumerate() {
            let (start, weights) = columns.of(x);
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

/// CLIP's evaluation transform: the shorter side becomes `side`, then the centre is cut out.
///
/// The longer side is truncated to `side * long / short`; the offset of the cut is rounded
/// half to even, as Python does. Refuses pictures so thin that the longer side would pass
/// [`MAX_PIXELS`].
pub fn fit_square(picture: &Picture, side: usize) -> Result<Picture> {
    let (width, height) = (picture.width, picture.height);
    let short = width.min(height).max(1);
    let long = side.saturating_mul(width.max(height)) / short;
    if long.saturating_mul(side) as u64 > MAX_PIXELS {
        return Err(Error::failed(format!(
            "a picture of {width} x {height} pixels is too thin to become {side} x {side}"
        )));
    }
    let (new_width, new_height) =
        if width <= height { (side, long) } else { (long, side) };
    let resized = resize(picture, new_width, new_height);
    let offset = |extent: usize| (extent - side) / 2 + half_to_even(extent - side);
    let (left, top) = (offset(new_width), offset(new_height));
    Ok(resized.crop(left.cast_signed(), top.cast_signed(), side, side))
}

/// 1 where halving `extent` must be rounded up to reach an even number.
fn half_to_even(extent: usize) -> usize {
    usize::from(extent % 4 == 3)
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
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let mut taps = Self { starts: Vec::new(), weights: Vec::new() };
        for i in 0..to {
            let centre = (i as f64 + 0.5) * scale;
            let start = num::truncate_usize(centre - 2.0 * stretch + 0.5);
            let end = num::truncate_usize(centre + 2.0 * stretch + 0.5).min(from);
            let raw: Vec<f64> = (start..end)
                .map(|j| cubic((j as f64 - centre + 0.5) / stretch))
                .collect();
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

/// Keys' cubic with a = -0.5.
fn cubic(x: f64) -> f64 {
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
    use std::path::Path;

    use super::*;
    use crate::image::decode;

    /// Pillow's pixels, see `tests/fixtures/preprocess/README.md`.
    #[test]
    fn equals_pillow_on_lossless_pictures() {
        let folder = Path::new("tests/fixtures/preprocess");
        let expected =
            crate::io::tensors::read(&folder.join("expected.safetensors")).unwrap();
        for name in ["rgb.png", "gray.png", "lossless.webp", "thin.png"] {
            let bytes = std::fs::read(folder.join("images").join(name)).unwrap();
            let picture = decode(&bytes, name).unwrap();
            let square = fit_square(&picture, 32).unwrap();
            let truth = &expected[&format!("{name}.f32_32")];
            let mut planes = Vec::new();
            square.push_planes(&mut planes);
            let mean = [0.481_454_66, 0.457_827_5, 0.408_210_73];
            let std = [0.268_629_54, 0.261_302_6, 0.275_777_1];
            for (i, (&ours, &theirs)) in planes.iter().zip(&truth.data).enumerate() {
                let c = i / 1024;
                let value = (f32::from(ours) / 255.0 - mean[c]) / std[c];
                assert!((value - theirs).abs() < 1e-5, "{name} value {i}");
            }
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let rgb = (0..7 * 5 * 3).map(|i| u8::try_from(i * 2).unwrap()).collect();
        let picture = Picture { width: 7, height: 5, rgb };
        assert_eq!(resize(&picture, 7, 5), picture);
    }

    #[test]
    fn a_flat_colour_stays_flat() {
        let flat = Picture::filled(61, 13, [7, 200, 255]);
        assert_eq!(resize(&flat, 16, 40), Picture::filled(16, 40, [7, 200, 255]));
    }

    #[test]
    fn a_needle_is_refused() {
        let needle = Picture::filled(1, 1_000_000, [0; 3]);
        let error = fit_square(&needle, 32).unwrap_err().to_string();
        assert!(error.contains("too thin"), "{error}");
    }
}
