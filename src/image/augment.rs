//! Random changes of training pictures and their normalization, from bytes to the batch.
//!
//! A picture comes as three planes of bytes and leaves as three planes of floats,
//! `(value / 255 - mean) / std`. Every draw comes from the stream that is handed in, so a
//! picture's variant is a function of the seed and its place in the run.

use super::Picture;
use super::resize::resize;
use crate::config::Augment;
use crate::num;
use crate::rng::{RngExt, Stream};

/// Mean and standard deviation of the channels, on the scale 0..1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalise {
    /// Mean of red, green, blue.
    pub mean: [f32; 3],
    /// Standard deviation of red, green, blue.
    pub std: [f32; 3],
}

impl Normalise {
    /// `OpenAI`'s constants, which nearly every published CLIP uses.
    pub const OPENAI: Self = Self {
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
    };

    /// Factor and summand that take a byte level of channel `c` to its normalised value.
    #[must_use]
    pub fn line(&self, c: usize) -> (f32, f32) {
        (1.0 / (255.0 * self.std[c]), -self.mean[c] / self.std[c])
    }

    /// A picture as three normalised planes [3, H, W], with PyTorch's arithmetic: divided
    /// by 255, mean subtracted, divided by the deviation, each rounded to f32.
    #[must_use]
    pub fn planes(&self, picture: &Picture) -> Vec<f32> {
        let mut planes = Vec::with_capacity(picture.rgb.len());
        for (c, (mean, std)) in self.mean.iter().zip(&self.std).enumerate() {
            let values = picture.rgb.iter().skip(c).step_by(3);
            planes.extend(values.map(|&v| (f32::from(v) / 255.0 - mean) / std));
        }
        planes
    }

    /// Normalises three planes of bytes.
    pub fn apply(&self, planes: &[u8], out: &mut [f32]) {
        let area = planes.len() / 3;
        for (c, (from, to)) in
            planes.chunks_exact(area).zip(out.chunks_exact_mut(area)).enumerate()
        {
            let (factor, summand) = self.line(c);
            for (value, &level) in to.iter_mut().zip(from) {
                *value = f32::from(level) * factor + summand;
            }
        }
    }
}

/// Changes pictures of `side` x `side` pixels at random.
#[derive(Debug, Clone, Copy)]
pub struct Augmenter {
    kind: Augment,
    side: usize,
    normalise: Normalise,
}

impl Augmenter {
    /// An augmenter of one kind.
    pub fn new(kind: Augment, side: usize, normalise: Normalise) -> Self {
        Self { kind, side, normalise }
    }

    /// Whether variants are levels 0..255, which [`Self::levels`] writes.
    #[must_use]
    pub fn keeps_levels(&self) -> bool {
        match self.kind {
            Augment::None | Augment::Crop => true,
            Augment::Affine => false,
        }
    }

    /// Writes one variant of `planes` [3, side, side] to `out` [3, side, side], normalised.
    pub fn apply(&self, planes: &[u8], stream: &mut Stream, out: &mut [f32]) {
        if self.kind == Augment::Affine {
            self.affine(planes, stream, out);
            return;
        }
        let mut levels = vec![0; planes.len()];
        self.levels(planes, stream, &mut levels);
        self.normalise.apply(&levels, out);
    }

    /// Writes one variant of `planes` [3, side, side] to `out` [3, side, side], as levels.
    ///
    /// # Panics
    /// Where variants are no levels ([`Self::keeps_levels`]).
    pub fn levels(&self, planes: &[u8], stream: &mut Stream, out: &mut [u8]) {
        match self.kind {
            Augment::None => out.copy_from_slice(planes),
            Augment::Crop => self.crop(planes, stream, out),
            Augment::Affine => panic!("an affine variant lies between two levels"),
        }
    }

    /// What takes levels to normalized values.
    pub fn normalise(&self) -> Normalise {
        self.normalise
    }

    /// CLIP's `RandomResizedCrop`: area (.9, 1), ratio (3/4, 4/3), bicubic, no flip.
    fn crop(&self, planes: &[u8], stream: &mut Stream, out: &mut [u8]) {
        let side = self.side;
        let [left, top, width, height] = crop_box(side, stream);

        let mut cut = Picture::filled(width, height, [0; 3]);
        for (y, row) in cut.rgb.chunks_exact_mut(width * 3).enumerate() {
            let from = (top + y) * side + left;
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = planes[c * side * side + from + x];
                }
            }
        }

        let resized = resize(&cut, side, side);
        for (c, plane) in out.chunks_exact_mut(side * side).enumerate() {
            for (level, pixel) in plane.iter_mut().zip(resized.rgb.chunks_exact(3)) {
                *level = pixel[c];
            }
        }
    }

    fn affine(&self, planes: &[u8], stream: &mut Stream, out: &mut [f32]) {
        let side = self.side;

        let draw = AffineDraw::new(stream);
        let paper = Paper::new(planes, side);
        let pixels = draw.warp(&paper, side);

        // Contrast is about the picture's mean grey, as in torchvision; the sum is kept
        // in f64.
        let grey: f64 = pixels.iter().map(|&pixel| f64::from(luma(pixel))).sum();
        let center = num::round_f32(grey / (side * side) as f64);

        let (area, contrast) = (side * side, draw.contrast);
        let lines = [0, 1, 2].map(|c| self.normalise.line(c));
        let (red, rest) = out.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        let planes = red.iter_mut().zip(green).zip(blue);

        for (&pixel, ((r, g), b)) in pixels.iter().zip(planes) {
            let grey = luma(pixel);
            let change = |c: usize| {
                let colored = draw.saturation * (pixel[c] - grey) + grey;
                let contrasted = contrast * (colored - center) + center;
                contrasted.clamp(0.0, 255.0) * lines[c].0 + lines[c].1
            };
            (*r, *g, *b) = (change(0), change(1), change(2));
        }
    }
}

/// ITU-R 601 luma, as Pillow's and torchvision's grey.
#[inline]
fn luma(pixel: [f32; 4]) -> f32 {
    0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

/// Left, top, width, height of a random crop; ten tries, then the whole picture.
fn crop_box(side: usize, stream: &mut Stream) -> [usize; 4] {
    for _ in 0..10 {
        let area = uniform(stream, 0.9, 1.0) * (side * side) as f32;

        // The ratio is uniform on a logarithmic scale: wide and tall crops are as likely.
        let log_ratio = (4.0_f32 / 3.0).ln();
        let ratio = uniform(stream, -log_ratio, log_ratio).exp();
        let width = num::truncate_usize(f64::from((area * ratio).sqrt()).round());
        let height = num::truncate_usize(f64::from((area / ratio).sqrt()).round());

        if (1..=side).contains(&width) && (1..=side).contains(&height) {
            let left = stream.random_range(0..=side - width);
            let top = stream.random_range(0..=side - height);
            return [left, top, width, height];
        }
    }
    [0, 0, side, side]
}

fn uniform(stream: &mut Stream, low: f32, high: f32) -> f32 {
    (high - low) * stream.random::<f32>() + low
}

/// One draw of the affine and color parameters.
struct AffineDraw {
    /// Rows of the map from output to input offsets about the center.
    matrix: [[f32; 2]; 2],
    /// Shift as a fraction of the side.
    shift: [f32; 2],
    saturation: f32,
    contrast: f32,
}

impl AffineDraw {
    fn new(stream: &mut Stream) -> Self {
        let scale = uniform(stream, 0.87, 1.1);
        let angle = uniform(stream, -7.0, 7.0).to_radians();
        let shift = [uniform(stream, -0.07, 0.07), uniform(stream, -0.07, 0.07)];
        let stretch = uniform(stream, 0.88, 1.12).sqrt();
        let saturation = uniform(stream, 0.4, 1.3);
        let grey = stream.random::<f32>() < 0.2;
        let contrast = uniform(stream, 0.7, 1.15);

        // The matrix is the inverse of the change: it takes a place of the output to its
        // source.
        let (sin, cos) = angle.sin_cos();
        let (across, down) = (scale * stretch, scale / stretch);
        Self {
            matrix: [[cos / across, sin / across], [-sin / down, cos / down]],
            shift,
            saturation: if grey { 0.0 } else { saturation },
            contrast,
        }
    }

    /// Samples bilinearly; the paper around the picture is white.
    fn warp(&self, paper: &Paper, side: usize) -> Vec<[f32; 4]> {
        let extent = side as f32;
        let center = 0.5 * (extent - 1.0);
        let [dx, dy] = self.shift.map(|share| share * extent);
        let [[xx, xy], [yx, yy]] = self.matrix;

        let mut out = Vec::with_capacity(side * side);
        for row in 0..side {
            let v = row as f32 - center - dy;
            let (from_x, from_y) = (xy * v + center, yy * v + center);
            for column in 0..side {
                let u = column as f32 - center - dx;
                out.push(paper.sample(xx * u + from_x, yx * u + from_y));
            }
        }
        out
    }
}

/// The picture on white paper with a border that every affine draw stays inside of.
struct Paper {
    border: f32,
    width: usize,
    pixels: Vec<[f32; 4]>,
}

impl Paper {
    fn new(planes: &[u8], side: usize) -> Self {
        let border = side / 3 + 2;
        let width = side + 2 * border;
        let mut pixels = vec![[255.0; 4]; width * width];

        let (red, rest) = planes.split_at(side * side);
        let (green, blue) = rest.split_at(side * side);

        for row in 0..side {
            let to = &mut pixels[(row + border) * width + border..][..side];
            let from = row * side..(row + 1) * side;
            let channels =
                red[from.clone()].iter().zip(&green[from.clone()]).zip(&blue[from]);
            for (pixel, ((&r, &g), &b)) in to.iter_mut().zip(channels) {
                *pixel = [f32::from(r), f32::from(g), f32::from(b), 0.0];
            }
        }
        Self { border: border as f32, width, pixels }
    }

    #[inline]
    fn sample(&self, x: f32, y: f32) -> [f32; 4] {
        let limit = (self.width - 2) as f32;
        let (x, y) =
            ((x + self.border).clamp(0.0, limit), (y + self.border).clamp(0.0, limit));
        let (column, row) = (num::truncate_i32(x), num::truncate_i32(y));
        let (fx, fy) = (x - column as f32, y - row as f32);
        let at =
            row.unsigned_abs() as usize * self.width + column.unsigned_abs() as usize;

        let upper = &self.pixels[at..at + 2];
        let lower = &self.pixels[at + self.width..at + self.width + 2];
        let mut out = [0.0; 4];
        for c in 0..4 {
            let high = fx * (upper[1][c] - upper[0][c]) + upper[0][c];
            let low = fx * (lower[1][c] - lower[0][c]) + lower[0][c];
            out[c] = fy * (low - high) + high;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    const PLAIN: Normalise = Normalise { mean: [0.0; 3], std: [1.0 / 255.0; 3] };

    fn noise(side: usize) -> Vec<u8> {
        let mut stream = rng::stream(1, "noise");
        (0..3 * side * side).map(|_| stream.random()).collect()
    }

    #[test]
    fn white_stays_white_under_every_draw() {
        let white = vec![255_u8; 3 * 16 * 16];
        for kind in [Augment::None, Augment::Crop, Augment::Affine] {
            let augmenter = Augmenter::new(kind, 16, PLAIN);
            for seed in 0..50 {
                let mut out = vec![0.0; white.len()];
                augmenter.apply(&white, &mut rng::stream(seed, "a"), &mut out);
                assert!(out.iter().all(|v| (v - 255.0).abs() < 0.01), "{kind:?} {seed}");
            }
        }
    }

    #[test]
    fn variants_differ_and_repeat_with_their_stream() {
        let planes = noise(16);
        for kind in [Augment::Crop, Augment::Affine] {
            let augmenter = Augmenter::new(kind, 16, PLAIN);
            let variant = |name: &str| {
                let mut out = vec![0.0; planes.len()];
                augmenter.apply(&planes, &mut rng::stream(3, name), &mut out);
                out
            };
            assert_eq!(variant("a"), variant("a"));
            assert_ne!(variant("a"), variant("b"));
            assert!(variant("c").iter().all(|v| (-0.01..=255.01).contains(v)));
        }
    }

    #[test]
    fn the_identity_map_gives_the_picture_back() {
        let planes = noise(12);
        let draw = AffineDraw {
            matrix: [[1.0, 0.0], [0.0, 1.0]],
            shift: [0.0; 2],
            saturation: 1.0,
            contrast: 1.0,
        };
        let out = draw.warp(&Paper::new(&planes, 12), 12);
        for (i, pixel) in out.iter().enumerate() {
            for c in 0..3 {
                assert!((pixel[c] - f32::from(planes[c * 144 + i])).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn crops_keep_most_of_the_area() {
        let mut stream = rng::stream(5, "crop");
        for _ in 0..500 {
            let [left, top, width, height] = crop_box(32, &mut stream);
            assert!(left + width <= 32 && top + height <= 32);
            assert!(width * height > 870, "{width} x {height}");
        }
    }

    #[test]
    fn normalizing_is_the_line_of_its_definition() {
        let normalise = Normalise { mean: [0.5, 0.25, 0.1], std: [0.2, 0.3, 0.4] };
        let planes = noise(4);
        let mut out = vec![0.0; planes.len()];
        normalise.apply(&planes, &mut out);
        for (i, (&level, &value)) in planes.iter().zip(&out).enumerate() {
            let c = i / 16;
            let truth = (f32::from(level) / 255.0 - normalise.mean[c]) / normalise.std[c];
            assert!((truth - value).abs() < 1e-5);
        }
    }
}
