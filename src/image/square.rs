//! CLIP's way from a picture file to a square: `open_clip`'s evaluation transform.
//!
//! Equal to Pillow bit for bit for lossless files (`tests/fixtures/preprocess`). Three points
//! that other readers get wrong: alpha is multiplied in before the resize, divided out after
//! it and then dropped; offsets are rounded half to even; EXIF orientation is ignored. One
//! deliberate difference: palette files become RGB first, where Pillow resizes the indices by
//! nearest neighbour.

use serde::{Deserialize, Serialize};

use super::resize::{Filter, resize_with};
use super::{MAX_PIXELS, Picture, decode_layers, resize};
use crate::error::{Error, Result};
use crate::num;

/// How a picture that is not a square becomes one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The shorter side becomes the square's, the centre is cut out (CLIP's default).
    #[default]
    Shortest,
    /// The longer side becomes the square's, a margin is added on both sides.
    Longest,
    /// Both sides become the square's, whatever the aspect.
    Squash,
}

impl Fit {
    /// The name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shortest => "shortest",
            Self::Longest => "longest",
            Self::Squash => "squash",
        }
    }
}

/// Whose steps are followed where the libraries differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// Colors are resized weighted by their alpha, which is dropped afterwards; the offset of
    /// the cut is rounded half to even.
    #[default]
    OpenClip,
    /// Alpha is dropped before the resize; the offset of the cut is rounded down.
    HuggingFace,
}

/// How a picture file becomes the square that a model sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Side of the square, in pixels.
    pub side: usize,
    /// Side to resize to, at least `side`; the centre of what is larger is cut out.
    pub resized: usize,
    /// How the aspect is treated.
    pub fit: Fit,
    /// How pixels are weighted.
    pub filter: Filter,
    /// Level of the margin that [`Fit::Longest`] adds.
    pub fill: u8,
    /// Whose steps are followed where the libraries differ.
    pub convention: Convention,
}

impl Framing {
    /// `open_clip`'s evaluation transform for a square of `side` pixels.
    #[must_use]
    pub fn new(side: usize, fit: Fit) -> Self {
        let (filter, convention) = (Filter::default(), Convention::default());
        Self { side, resized: side, fit, filter, fill: 0, convention }
    }

    /// Decodes a file and makes it the square.
    pub fn square(&self, bytes: &[u8], name: &str) -> Result<Picture> {
        let (picture, alpha) = decode_layers(bytes, name)?;
        let alpha = alpha.as_deref().filter(|_| self.convention == Convention::OpenClip);

        let [width, height] = match self.fit {
            Fit::Shortest => shortest(&picture, self.resized)?,
            Fit::Longest => longest(&picture, self.resized),
            Fit::Squash => [self.resized; 2],
        };
        let resized = resize_layers(&picture, alpha, [width, height], self.filter);

        Ok(match self.fit {
            Fit::Longest => self.cut(&pad(&resized, self.resized, self.fill)),
            Fit::Shortest | Fit::Squash => self.cut(&resized),
        })
    }

    fn cut(&self, picture: &Picture) -> Picture {
        match self.convention {
            Convention::OpenClip => centre(picture, self.side),
            Convention::HuggingFace => {
                let offset = |extent: usize| ((extent - self.side) / 2).cast_signed();
                let (left, top) = (offset(picture.width), offset(picture.height));
                picture.crop(left, top, self.side, self.side)
            }
        }
    }
}

/// Decodes a file and makes it a square of `side` pixels as `open_clip` does.
pub fn square(bytes: &[u8], name: &str, side: usize, fit: Fit) -> Result<Picture> {
    Framing::new(side, fit).square(bytes, name)
}

/// CLIP's evaluation transform of a picture without alpha: the shorter side becomes `side`,
/// then the centre is cut out.
///
/// The longer side is truncated to `side * long / short`; the offset of the cut is rounded
/// half to even, as Python does. Refuses pictures so thin that the longer side would pass
/// [`MAX_PIXELS`].
pub fn fit_square(picture: &Picture, side: usize) -> Result<Picture> {
    let [width, height] = shortest(picture, side)?;
    Ok(centre(&resize(picture, width, height), side))
}

/// The extents after which the shorter side is `side`.
fn shortest(picture: &Picture, side: usize) -> Result<[usize; 2]> {
    let (width, height) = (picture.width, picture.height);
    let short = width.min(height).max(1);
    let long = side.saturating_mul(width.max(height)) / short;
    if long.saturating_mul(side) as u64 > MAX_PIXELS {
        return Err(Error::failed(format!(
            "a picture of {width} x {height} pixels is too thin to become {side} x {side}"
        )));
    }
    Ok(if width <= height { [side, long] } else { [long, side] })
}

/// The extents after which the longer side is `side`.
fn longest(picture: &Picture, side: usize) -> [usize; 2] {
    let ratio = picture.width.max(picture.height) as f64 / side as f64;
    [picture.width, picture.height].map(|extent| {
        num::truncate_usize((extent as f64 / ratio).round_ties_even()).max(1)
    })
}

/// Cuts the centre out.
fn centre(picture: &Picture, side: usize) -> Picture {
    let offset = |extent: usize| (extent - side) / 2 + half_to_even(extent - side);
    let (left, top) = (offset(picture.width), offset(picture.height));
    picture.crop(left.cast_signed(), top.cast_signed(), side, side)
}

/// 1 where halving `extent` must be rounded up to reach an even number.
fn half_to_even(extent: usize) -> usize {
    usize::from(extent % 4 == 3)
}

/// A margin on all sides; an odd pixel goes to the right or the bottom.
fn pad(picture: &Picture, side: usize, fill: u8) -> Picture {
    let mut out = Picture::filled(side, side, [fill; 3]);
    let left = (side - picture.width) / 2;
    let top = (side - picture.height) / 2;
    for (y, row) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
        let start = ((top + y) * side + left) * 3;
        out.rgb[start..start + row.len()].copy_from_slice(row);
    }
    out
}

/// Resizes colours as Pillow does where there is alpha: multiplied, resized, divided again.
fn resize_layers(
    picture: &Picture,
    alpha: Option<&[u8]>,
    [width, height]: [usize; 2],
    filter: Filter,
) -> Picture {
    let resized = |picture: &Picture| resize_with(picture, width, height, filter);
    let Some(alpha) = alpha else { return resized(picture) };
    if [picture.width, picture.height] == [width, height] {
        return picture.clone();
    }
    let layer = |rgb: Vec<u8>| {
        let Picture { width, height, .. } = *picture;
        Picture { width, height, rgb }
    };
    let pixels = picture.rgb.chunks_exact(3).zip(alpha);
    let multiplied = pixels.flat_map(|(p, &a)| [0, 1, 2].map(|c| multiply(p[c], a)));
    let mut out = resized(&layer(multiplied.collect()));
    let grey = alpha.iter().flat_map(|&a| [a; 3]).collect();
    let alpha = resized(&layer(grey));
    for (value, &alpha) in out.rgb.iter_mut().zip(&alpha.rgb) {
        if !matches!(alpha, 0 | 255) {
            let level = 255 * u32::from(*value) / u32::from(alpha);
            *value = u8::try_from(level).unwrap_or(u8::MAX);
        }
    }
    out
}

/// c · a / 255, rounded as Pillow does.
fn multiply(value: u8, alpha: u8) -> u8 {
    let t = u32::from(value) * u32::from(alpha) + 128;
    u8::try_from((t + (t >> 8)) >> 8).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::image::Normalise;
    use crate::io::foreign::{self, Array, Values};

    const LOSSLESS: [&str; 5] =
        ["rgb.png", "rgba.png", "gray.png", "lossless.webp", "thin.png"];
    const LOSSY: [&str; 3] = ["photo.jpg", "exif.jpg", "lossy.webp"];

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocess")
    }

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(folder().join("images").join(name)).unwrap()
    }

    fn levels(array: &Array) -> &[i64] {
        let Values::Integers(levels) = &array.values else { panic!("floats") };
        levels
    }

    /// Pixels 7, 21, .., 217 of both axes.
    fn sample(picture: &Picture) -> Vec<u8> {
        let at = |i: usize| 7 + 14 * i;
        let places = (0..16).flat_map(|y| (0..16).map(move |x| (at(y), at(x))));
        let pixel = |(y, x)| &picture.rgb[(y * 224 + x) * 3..(y * 224 + x) * 3 + 3];
        places.flat_map(pixel).copied().collect()
    }

    fn gaps(found: &[u8], truth: &[i64]) -> Vec<i64> {
        assert_eq!(found.len(), truth.len());
        found.iter().zip(truth).map(|(a, b)| (i64::from(*a) - b).abs()).collect()
    }

    /// Mean, largest, and share within one level.
    fn summary(gaps: &[i64]) -> (f64, i64, f64) {
        let n = gaps.len() as f64;
        let mean = gaps.iter().map(|&g| g as f64).sum::<f64>() / n;
        let close = gaps.iter().filter(|g| **g <= 1).count() as f64 / n;
        (mean, gaps.iter().copied().max().unwrap_or(0), close)
    }

    /// Pillow's numbers, see `tests/fixtures/preprocess/README.md`.
    #[test]
    fn lossless_files_equal_pillow_in_every_bit() {
        let expected = foreign::read(&folder().join("expected.safetensors")).unwrap();
        for name in LOSSLESS {
            let small = square(&file(name), name, 32, Fit::Shortest).unwrap();
            let truth = levels(&expected[&format!("{name}.u8_32")]);
            assert_eq!(summary(&gaps(&small.rgb, truth)).1, 0, "{name}");
            let large = square(&file(name), name, 224, Fit::Shortest).unwrap();
            let truth = levels(&expected[&format!("{name}.u8_224_sample")]);
            assert_eq!(summary(&gaps(&sample(&large), truth)).1, 0, "{name} at 224");
            for (mode, fit) in [("longest", Fit::Longest), ("squash", Fit::Squash)] {
                let key = format!("{name}.{mode}.u8_32");
                if let Some(truth) = expected.get(&key) {
                    let found = square(&file(name), name, 32, fit).unwrap();
                    assert_eq!(summary(&gaps(&found.rgb, levels(truth))).1, 0, "{key}");
                }
            }
        }
    }

    #[test]
    fn normalised_tensors_equal_pytorch_in_every_bit() {
        let expected = foreign::read(&folder().join("expected.safetensors")).unwrap();
        for name in LOSSLESS {
            let picture = square(&file(name), name, 32, Fit::Shortest).unwrap();
            let Values::Floats(truth) = &expected[&format!("{name}.f32_32")].values
            else {
                panic!("integers")
            };
            assert!(Normalise::OPENAI.planes(&picture) == *truth, "{name}");
        }
    }

    #[test]
    fn lossy_files_are_within_the_tolerance_of_another_decoder() {
        let expected = foreign::read(&folder().join("expected.safetensors")).unwrap();
        for name in LOSSY {
            let (decoded, _) = decode_layers(&file(name), name).unwrap();
            let truth = &expected[&format!("{name}.decoded")];
            let (mean, largest, _) = summary(&gaps(&decoded.rgb, levels(truth)));
            assert!(mean <= 0.5 && largest <= 8, "{name}: {mean} {largest}");
            if Path::new(name).extension().is_some_and(|e| e == "webp") {
                assert_eq!(largest, 0, "{name}");
            }
            // From Pillow's own pixels, the resize is exact.
            let rgb = levels(truth).iter().map(|v| u8::try_from(*v).unwrap()).collect();
            let (height, width) = (truth.shape[0], truth.shape[1]);
            let small = fit_square(&Picture { width, height, rgb }, 32).unwrap();
            let truth = levels(&expected[&format!("{name}.u8_32")]);
            assert_eq!(summary(&gaps(&small.rgb, truth)).1, 0, "{name} resized");
            let small = square(&file(name), name, 32, Fit::Shortest).unwrap();
            let (mean, _, close) = summary(&gaps(&small.rgb, truth));
            assert!(mean <= 0.6 && close >= 0.9, "{name}: {mean} {close}");
        }
    }

    #[test]
    fn palettes_become_colours_first() {
        let expected = foreign::read(&folder().join("expected.safetensors")).unwrap();
        let found = square(&file("palette.png"), "p", 32, Fit::Shortest).unwrap();
        let truth = levels(&expected["palette.png.rgb_first.u8_32"]);
        assert_eq!(summary(&gaps(&found.rgb, truth)).1, 0);
    }

    #[test]
    fn a_needle_is_refused() {
        let needle = Picture::filled(1, 1_000_000, [0; 3]);
        let error = fit_square(&needle, 32).unwrap_err().to_string();
        assert!(error.contains("too thin"), "{error}");
    }
}
