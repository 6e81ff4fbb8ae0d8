//! Pixels as files store them, in the forms that Pillow resizes differently.
//!
//! What reads a file makes them and what frames a picture takes them; neither knows the
//! other.

use super::Picture;
use crate::error::{Error, Result};

/// Largest accepted picture, in pixels (`open_clip`'s limit against decompression bombs).
pub const MAX_PIXELS: u64 = 25_000_000;

/// What a file holds, in the forms that Pillow resizes differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    /// Colors; gray and palettes are colors already.
    Color(Picture),
    /// Colors and how opaque each pixel is [height, width].
    Alpha {
        /// The colors, laid over nothing.
        color: Picture,
        /// 0 is transparent.
        alpha: Vec<u8>,
        /// Where that stands in the file.
        origin: Origin,
    },
    /// Cyan, magenta and yellow as if they were red, green and blue; black three times.
    Print {
        /// 255 is full ink.
        inks: Picture,
        /// 255 is full ink.
        black: Picture,
    },
    /// Black and white, one bit per pixel in the file.
    Bilevel(Picture),
}

/// Where a file says that pixels are transparent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// In a channel of its own: Pillow resizes it with the colors.
    Channel,
    /// In a list of transparent colors (PNG's tRNS, GIF): Pillow's RGB does not know it.
    Colors,
}

/// Refuses a declared size [width, height] that is nothing or a decompression bomb.
pub(super) fn check_size([width, height]: [u64; 2], name: &str) -> Result<()> {
    let pixels = width.saturating_mul(height);
    if pixels == 0 || pixels > MAX_PIXELS {
        return Err(Error::failed(format!(
            "picture {name} is {width} x {height} pixels; accepted are 1 to {MAX_PIXELS}"
        )));
    }
    Ok(())
}

impl Stored {
    /// Width and height.
    pub(super) fn extents(&self) -> [usize; 2] {
        let (Self::Color(picture)
        | Self::Alpha { color: picture, .. }
        | Self::Print { inks: picture, .. }
        | Self::Bilevel(picture)) = self;
        [picture.width, picture.height]
    }

    /// Colors before any resize: transparency is dropped and inks are mixed.
    pub(super) fn into_color(self) -> Picture {
        match self {
            Self::Color(color) | Self::Alpha { color, .. } | Self::Bilevel(color) => {
                color
            }
            Self::Print { inks, black } => mixed(&inks, &black),
        }
    }

    /// The same without transparency, wherever it came from.
    pub(super) fn over_white(self) -> Self {
        let Self::Alpha { mut color, alpha, .. } = self else { return self };
        for (pixel, &alpha) in color.rgb.chunks_exact_mut(3).zip(&alpha) {
            for value in pixel {
                let (level, alpha) = (u32::from(*value), u32::from(alpha));
                let level = (level * alpha + 255 * (255 - alpha) + 127) / 255;
                *value = u8::try_from(level).unwrap_or(u8::MAX);
            }
        }
        Self::Color(color)
    }
}

/// Inks of print as colors: what neither an ink nor black takes away from white.
pub(super) fn mixed(inks: &Picture, black: &Picture) -> Picture {
    let pairs = inks.rgb.iter().zip(&black.rgb);
    let level = |(&ink, &black)| {
        let paper = 255 - black;
        paper - multiply(ink, paper)
    };
    let Picture { width, height, .. } = *inks;
    Picture { width, height, rgb: pairs.map(level).collect() }
}

/// a · b / 255, rounded as Pillow does.
pub(super) fn multiply(a: u8, b: u8) -> u8 {
    let t = u32::from(a) * u32::from(b) + 128;
    u8::try_from((t + (t >> 8)) >> 8).unwrap_or(u8::MAX)
}
