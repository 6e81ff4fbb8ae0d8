//! Pictures: bytes to pixels, SVG to pixels, resizing, and the random changes of training.
//!
//! A [`Picture`] is 8-bit RGB, rows from the top, and nothing else. What else a file may hold
//! (alpha, inks of print, one bit a pixel) ends in [`square()`], which needs it because
//! `open_clip`'s transform does, so that no later step has to know about it.

mod augment;
mod batch;
mod codec;
mod drawing;
mod jpeg;
mod stored;

mod raster;
mod resize;
mod square;

pub use augment::{Augmenter, Normalise};
pub use batch::{PixelBuffer, Pixels};
pub use codec::{decode, encode_png};
pub use raster::{rasterise, render};
pub use resize::{Filter, cubic, resize};
pub use square::{Convention, Fit, Framing, square, square_over_white};
pub use stored::MAX_PIXELS;

/// An 8-bit RGB picture: `rgb` holds `height` rows of `width` pixels of 3 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// A picture of one color.
    #[must_use]
    pub fn filled(width: usize, height: usize, color: [u8; 3]) -> Self {
        Self { width, height, rgb: color.repeat(width * height) }
    }

    /// The part that starts at (`left`, `top`); what lies outside is white.
    #[must_use]
    pub fn crop(&self, left: isize, top: isize, width: usize, height: usize) -> Self {
        let mut out = Self::filled(width, height, [255; 3]);
        for y in 0..height {
            for x in 0..width {
                let from_x = left.checked_add_unsigned(x);
                let from_y = top.checked_add_unsigned(y);
                if let Some(pixel) = self.pixel(from_x, from_y) {
                    let at = (y * width + x) * 3;
                    out.rgb[at..at + 3].copy_from_slice(pixel);
                }
            }
        }
        out
    }

    fn pixel(&self, x: Option<isize>, y: Option<isize>) -> Option<&[u8]> {
        let x = usize::try_from(x?).ok().filter(|&x| x < self.width)?;
        let y = usize::try_from(y?).ok().filter(|&y| y < self.height)?;
        let at = (y * self.width + x) * 3;
        self.rgb.get(at..at + 3)
    }

    /// Appends the picture as three planes, red first: the layout of a batch.
    pub fn push_planes(&self, out: &mut Vec<u8>) {
        for channel in 0..3 {
            out.extend(self.rgb.iter().skip(channel).step_by(3));
        }
    }

    /// Standard deviation of all values, in levels: near 0 for an empty drawing.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        let n = self.rgb.len().max(1) as f64;
        let mean = self.rgb.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let squares = self.rgb.iter().map(|&v| (f64::from(v) - mean).powi(2));
        (squares.sum::<f64>() / n).sqrt()
    }
}
