//! Picture files: PNG, JPEG and WebP in, PNG out.
//!
//! Sizes are read from the header and refused before memory is taken for the pixels: a small
//! file may declare a huge picture. EXIF orientation is ignored, as `open_clip` does; alpha
//! is laid over white, because the drawings and cut-outs this crate meets stand on paper.

use std::io::Cursor;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageReader, Limits};

use super::Picture;
use crate::error::{Context, Error, Result};
use crate::num;

/// Largest accepted picture, in pixels (`open_clip`'s limit against decompression bombs).
pub const MAX_PIXELS: u64 = 25_000_000;

/// Reads a PNG, JPEG or WebP file from memory; `name` is for the error.
pub fn decode(bytes: &[u8], name: &str) -> Result<Picture> {
    open(bytes, name).map(|image| flatten(&image))
}

/// Like [`decode`], but what the file holds: its colours, and its alpha [height, width] if it
/// has any, neither laid over anything.
pub fn decode_layers(bytes: &[u8], name: &str) -> Result<(Picture, Option<Vec<u8>>)> {
    let image = open(bytes, name)?;
    let (width, height) = (num::widen(image.width()), num::widen(image.height()));
    if !image.color().has_alpha() {
        return Ok((Picture { width, height, rgb: image.to_rgb8().into_raw() }, None));
    }
    let rgba = image.to_rgba8();
    let rgb = rgba.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect();
    let alpha = rgba.pixels().map(|p| p.0[3]).collect();
    Ok((Picture { width, height, rgb }, Some(alpha)))
}

/// Decodes a file whose header declares an acceptable size.
fn open(bytes: &[u8], name: &str) -> Result<DynamicImage> {
    let context = || format!("decoding picture {name}");
    let reader = || ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let (width, height) =
        reader().context(context)?.into_dimensions().context(context)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS {
        return Err(Error::failed(format!(
            "picture {name} is {width} x {height} pixels; accepted are 1 to {MAX_PIXELS}"
        )));
    }
    let mut decoder = reader().context(context)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * MAX_PIXELS);
    decoder.limits(limits);
    decoder.decode().context(context)
}

/// Lays the picture over white.
fn flatten(image: &DynamicImage) -> Picture {
    let (width, height) = (num::widen(image.width()), num::widen(image.height()));
    if !image.color().has_alpha() {
        return Picture { width, height, rgb: image.to_rgb8().into_raw() };
    }
    let over = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        let level = (value * alpha + 255 * (255 - alpha) + 127) / 255;
        u8::try_from(level).unwrap_or(u8::MAX)
    };
    let rgba = image.to_rgba8();
    let rgb =
        rgba.pixels().flat_map(|p| [0, 1, 2].map(|c| over(p.0[c], p.0[3]))).collect();
    Picture { width, height, rgb }
}

/// Writes an RGB PNG; the bytes depend on the pixels only.
pub fn encode_png(picture: &Picture) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let (width, height) = (num::index_u32(picture.width), num::index_u32(picture.height));
    PngEncoder::new_with_quality(&mut out, CompressionType::Best, FilterType::Adaptive)
        .write_image(&picture.rgb, width, height, ExtendedColorType::Rgb8)
        .context(|| format!("encoding a picture of {width} x {height} as PNG"))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_png_gives_back_its_pixels(
            width in 1_usize..20, height in 1_usize..20, seed in any::<u64>()
        ) {
            use crate::rng::RngExt;
            let mut stream = crate::rng::stream(seed, "test");
            let rgb = (0..width * height * 3).map(|_| stream.random()).collect();
            let picture = Picture { width, height, rgb };
            let bytes = encode_png(&picture).unwrap();
            prop_assert_eq!(decode(&bytes, "x").unwrap(), picture);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200), magic in 0_usize..4
        ) {
            let head: [&[u8]; 4] = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"];
            bytes.splice(0..0, head[magic].iter().copied());
            let _ = decode(&bytes, "noise");
        }
    }

    #[test]
    fn truncated_pictures_are_errors_that_name_the_file() {
        let bytes = encode_png(&Picture::filled(9, 9, [1, 2, 3])).unwrap();
        for len in 0..bytes.len() - 12 {
            let error = decode(&bytes[..len], "cut.png").unwrap_err().to_string();
            assert!(error.contains("cut.png"), "{error}");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bytes = encode_png(&Picture::filled(1, 1, [0; 3])).unwrap();
        bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = decode(&bytes, "bomb.png").unwrap_err().to_string();
        assert!(error.contains("60000 x 60000"), "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }
}
