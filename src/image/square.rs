//! CLIP's way from a picture file to a square: `open_clip`'s evaluation transform.
//!
//! Equal to Pillow bit for bit for lossless files (`tests/fixtures/preprocess` and
//! `tests/fixtures/pixels`). `open_clip` resizes first and converts to RGB afterwards, which
//! other readers get wrong:
//!
//! * an alpha channel is multiplied in before the resize, divided out after it and then
//!   dropped, and a transparent color of a PNG or GIF is ignored;
//! * inks of print are resized as inks, and pictures of one bit per pixel by nearest
//!   neighbor;
//! * offsets are rounded half to even, and EXIF orientation is ignored.
//!
//! Two deliberate differences stand in `docs/checkpoints.md`: palettes become RGB first, and
//! gray of 16 bits keeps its upper 8 where Pillow makes nearly all of it white.

use serde::{Deserialize, Serialize};

use super::codec::open;
use super::resize::{Filter, resize_with};
use super::stored::{Origin, Stored, mixed, multiply};
use super::{MAX_PIXELS, Picture};
use crate::error::{Error, Result};
use crate::num;

/// How a picture that is not a square becomes one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The shorter side becomes the square's, the center is cut out (CLIP's default).
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
    /// Side to resize to, at least `side`; the center of what is larger is cut out.
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
        let pixels = open(bytes, name)?;
        match self.convention {
            Convention::OpenClip => self.fitted(&pixels),
            Convention::HuggingFace => {
                // transformers lays what is transparent over white before it resizes (5.24;
                // earlier releases dropped it).
                self.fitted(&Stored::Color(pixels.over_white().into_color()))
            }
        }
    }

    /// Resizes each form of pixels as Pillow does, and makes it colors afterwards.
    fn fitted(&self, pixels: &Stored) -> Result<Picture> {
        let extents = pixels.extents();
        let size = match self.fit {
            Fit::Shortest => shortest(extents, self.resized)?,
            Fit::Longest => longest(extents, self.resized),
            Fit::Squash => [self.resized; 2],
        };
        let framed = |resized: &Picture| match self.fit {
            Fit::Longest => self.cut(&pad(resized, self.resized, self.fill)),
            Fit::Shortest | Fit::Squash => self.cut(resized),
        };
        let [width, height] = size;
        let layer =
            |picture: &Picture| framed(&resize_with(picture, width, height, self.filter));

        Ok(match pixels {
            Stored::Color(color)
            | Stored::Alpha { color, origin: Origin::Colors, .. } => layer(color),
            Stored::Alpha { color, alpha, origin: Origin::Channel } => {
                framed(&resize_alpha(color, alpha, size, self.filter))
            }
            Stored::Print { inks, black } => mixed(&layer(inks), &layer(black)),
            Stored::Bilevel(picture) => framed(&nearest(picture, width, height)),
        })
    }

    fn cut(&self, picture: &Picture) -> Picture {
        match self.convention {
            Convention::OpenClip => center(picture, self.side),
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

/// Like [`square`] with [`Fit::Shortest`], but what is transparent is laid over white first:
/// the data set's drawings and cut-outs stand on paper.
pub fn square_over_white(bytes: &[u8], name: &str, side: usize) -> Result<Picture> {
    let pixels = open(bytes, name)?.over_white();
    Framing::new(side, Fit::Shortest).fitted(&pixels)
}

/// The extents after which the shorter side is `side`; the longer one is truncated to
/// `side * long / short`. Refuses pictures so thin that it would pass [`MAX_PIXELS`].
fn shortest([width, height]: [usize; 2], side: usize) -> Result<[usize; 2]> {
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
fn longest([width, height]: [usize; 2], side: usize) -> [usize; 2] {
    let ratio = width.max(height) as f64 / side as f64;
    [width, height].map(|extent| {
        num::truncate_usize((extent as f64 / ratio).round_ties_even()).max(1)
    })
}

/// Cuts the center out.
fn center(picture: &Picture, side: usize) -> Picture {
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

/// Resizes colors as Pillow does where there is an alpha channel: multiplied, resized, divided
/// again.
fn resize_alpha(
    color: &Picture,
    alpha: &[u8],
    [width, height]: [usize; 2],
    filter: Filter,
) -> Picture {
    if [color.width, color.height] == [width, height] {
        return color.clone();
    }

    let resized = |rgb: Vec<u8>| {
        let layer = Picture { width: color.width, height: color.height, rgb };
        resize_with(&layer, width, height, filter)
    };
    let pixels = color.rgb.chunks_exact(3).zip(alpha);
    let multiplied = pixels.flat_map(|(p, &a)| [0, 1, 2].map(|c| multiply(p[c], a)));
    let mut out = resized(multiplied.collect());

    let alpha = resized(alpha.iter().flat_map(|&a| [a; 3]).collect());

    // Pillow leaves a pixel as it is where there is nothing to divide by.
    for (value, &alpha) in out.rgb.iter_mut().zip(&alpha.rgb) {
        if !matches!(alpha, 0 | 255) {
            let level = 255 * u32::from(*value) / u32::from(alpha);
            *value = u8::try_from(level).unwrap_or(u8::MAX);
        }
    }
    out
}

/// Takes the pixel in which the center of each new one lies.
fn nearest(picture: &Picture, width: usize, height: usize) -> Picture {
    let columns = nearest_positions(picture.width, width);
    let rows = nearest_positions(picture.height, height);

    let mut out = Picture::filled(width, height, [0; 3]);
    for (to, y) in out.rgb.chunks_exact_mut(width * 3).zip(rows) {
        let from = &picture.rgb[y * picture.width * 3..(y + 1) * picture.width * 3];
        for (pixel, &x) in to.chunks_exact_mut(3).zip(&columns) {
            pixel.copy_from_slice(&from[x * 3..x * 3 + 3]);
        }
    }
    out
}

/// Positions along one axis. The scale is added up as Pillow adds it: a product would round
/// differently.
fn nearest_positions(from: usize, to: usize) -> Vec<usize> {
    let scale = from as f64 / to as f64;
    let mut center = scale * 0.5;
    let mut positions = Vec::with_capacity(to);
    for _ in 0..to {
        positions.push(num::truncate_usize(center).min(from - 1));
        center += scale;
    }
    positions
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
            let decoded = crate::image::decode(&file(name), name).unwrap();
            let truth = &expected[&format!("{name}.decoded")];
            let (mean, largest, _) = summary(&gaps(&decoded.rgb, levels(truth)));
            assert!(mean <= 0.5 && largest <= 8, "{name}: {mean} {largest}");
            if Path::new(name).extension().is_some_and(|e| e == "webp") {
                assert_eq!(largest, 0, "{name}");
            }
            // From Pillow's own pixels, the resize is exact.
            let rgb = levels(truth).iter().map(|v| u8::try_from(*v).unwrap()).collect();
            let (height, width) = (truth.shape[0], truth.shape[1]);
            let pixels = Stored::Color(Picture { width, height, rgb });
            let small = Framing::new(32, Fit::Shortest).fitted(&pixels).unwrap();
            let truth = levels(&expected[&format!("{name}.u8_32")]);
            assert_eq!(summary(&gaps(&small.rgb, truth)).1, 0, "{name} resized");
            let small = square(&file(name), name, 32, Fit::Shortest).unwrap();
            let (mean, _, close) = summary(&gaps(&small.rgb, truth));
            assert!(mean <= 0.6 && close >= 0.9, "{name}: {mean} {close}");
        }
    }

    #[test]
    fn palettes_become_colors_first() {
        let expected = foreign::read(&folder().join("expected.safetensors")).unwrap();
        let found = square(&file("palette.png"), "p", 32, Fit::Shortest).unwrap();
        let truth = levels(&expected["palette.png.rgb_first.u8_32"]);
        assert_eq!(summary(&gaps(&found.rgb, truth)).1, 0);
    }

    /// The results of `tests/fixtures/pixels/make.py`.
    fn pixels(name: &str) -> (Vec<u8>, Vec<i64>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pixels");
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let expected = foreign::read(&folder.join("expected.safetensors")).unwrap();
        (bytes, levels(&expected[name]).to_vec())
    }

    #[test]
    fn each_form_of_pixels_becomes_what_pillow_makes_of_it() {
        for name in [
            "rgb_trns.png",
            "gray_trns.png",
            "palette_trns.png",
            "gray2.png",
            "one_bit.png",
            "gray16.png",
            "rgb16.png",
            "rgba16.png",
            "la.png",
            "color.bmp",
            "bilevel.tif",
            "color.tif",
            "alpha.tif",
            "color.ppm",
            "gray.pgm",
            "animated.gif",
        ] {
            let (bytes, truth) = pixels(name);
            let found = square(&bytes, name, 16, Fit::Shortest).unwrap();
            assert_eq!(summary(&gaps(&found.rgb, &truth)).1, 0, "{name}");
        }
    }

    #[test]
    fn each_way_of_coding_jpeg_is_within_the_tolerance_of_another_decoder() {
        for name in [
            "baseline.jpg",
            "progressive.jpg",
            "restarts.jpg",
            "gray.jpg",
            "cmyk.jpg",
            "inks.jpg",
            "thumbnail.jpg",
        ] {
            let (bytes, truth) = pixels(name);
            let found = square(&bytes, name, 16, Fit::Shortest).unwrap();
            let (mean, largest, _) = summary(&gaps(&found.rgb, &truth));
            assert!(mean <= 0.6 && largest <= 8, "{name}: {mean} {largest}");
        }
    }

    #[test]
    fn only_the_data_set_lays_pictures_over_white() {
        let (bytes, _) = pixels("rgb_trns.png");
        let open_clip = square(&bytes, "x", 16, Fit::Shortest).unwrap();
        let paper = square_over_white(&bytes, "x", 16).unwrap();
        let at = (7 * 16 + 6) * 3;
        assert_eq!(open_clip.rgb[at..at + 3], [200, 30, 60]);
        assert_eq!(paper.rgb[at..at + 3], [255; 3]);
    }

    #[test]
    fn a_needle_is_refused() {
        let needle = Stored::Color(Picture::filled(1, 1_000_000, [0; 3]));
        let framing = Framing::new(32, Fit::Shortest);
        let error = framing.fitted(&needle).unwrap_err().to_string();
        assert!(error.contains("too thin"), "{error}");
    }
}
