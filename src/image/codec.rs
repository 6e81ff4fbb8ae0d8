//! Picture files in, PNG out.
//!
//! Read are PNG, JPEG, WebP, GIF, BMP, TIFF and PNM, told by their first bytes and not by
//! their names. Sizes are read from the header and refused before memory is taken for the
//! pixels: a small file may declare a huge picture. EXIF orientation is ignored, as `open_clip`
//! does; of an animation the first picture counts.

use std::io::Cursor;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{
    DynamicImage, ExtendedColorType, GrayImage, ImageDecoder, ImageEncoder, ImageFormat,
    ImageReader, Limits, RgbImage, RgbaImage,
};
use png::{BitDepth, ColorType};

use super::stored::{MAX_PIXELS, Origin, Stored, check_size};
use super::{Picture, jpeg};
use crate::error::{Context, Error, Result};
use crate::num;

/// Reads a picture file from memory and lays it over white: the drawings and cut-outs that
/// this crate meets stand on paper. `name` is for the error.
pub fn decode(bytes: &[u8], name: &str) -> Result<Picture> {
    Ok(open(bytes, name)?.over_white().into_color())
}

/// Decodes a file whose header declares an acceptable size.
pub(super) fn open(bytes: &[u8], name: &str) -> Result<Stored> {
    let context = || format!("decoding picture {name}");
    let format = image::guess_format(bytes).context(context)?;

    // `image` fills what is missing in a torn JPEG with gray, and so another decoder is
    // asked.
    if format == ImageFormat::Jpeg {
        return jpeg::read(bytes, name);
    }
    if format == ImageFormat::WebP {
        check_length(bytes).context(context)?;
    }

    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * MAX_PIXELS);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().context(context)?;
    let (width, height) = decoder.dimensions();
    check_size([u64::from(width), u64::from(height)], name)?;
    decoder.set_limits(limits).context(context)?;

    // `image` does not tell how a PNG stores its pixels: its header does.
    let stored = if format == ImageFormat::Png { stored(bytes) } else { None };
    let is_bilevel = match stored {
        Some(stored) => stored == (ColorType::Grayscale, BitDepth::One),
        // A bitmap's two colors need not be black and white.
        None => {
            format != ImageFormat::Bmp
                && decoder.original_color_type() == ExtendedColorType::L1
        }
    };
    let origin = match stored {
        Some((ColorType::GrayscaleAlpha | ColorType::Rgba, _)) => Origin::Channel,
        Some(_) => Origin::Colors,
        None if format == ImageFormat::Gif => Origin::Colors,
        None => Origin::Channel,
    };

    let image = eight_bits(DynamicImage::from_decoder(decoder).context(context)?);
    Ok(pixels(&image, is_bilevel, origin))
}

/// Refuses a WebP that is shorter than its first header says; the decoder does not look at it.
fn check_length(webp: &[u8]) -> Result<()> {
    let Some([.., a, b, c, d]) = webp.first_chunk::<8>() else { return Ok(()) };
    let declared = u64::from(u32::from_le_bytes([*a, *b, *c, *d])) + 8;
    if webp.len() as u64 >= declared {
        return Ok(());
    }
    let found = webp.len();
    Err(Error::failed(format!(
        "it has {found} bytes, expected {declared}: it is cut short"
    )))
}

/// How the header of a PNG says that its pixels are stored.
fn stored(png: &[u8]) -> Option<(ColorType, BitDepth)> {
    let mut decoder = png::Decoder::new(Cursor::new(png));
    let header = decoder.read_header_info().ok()?;
    Some((header.color_type, header.bit_depth))
}

/// Values of 16 bits become their upper 8, as Pillow has it for colors.
fn eight_bits(image: DynamicImage) -> DynamicImage {
    let (width, height) = (image.width(), image.height());
    let upper = |values: &[u16]| values.iter().map(|v| v.to_be_bytes()[0]).collect();

    let eight = match &image {
        DynamicImage::ImageLuma16(gray) => {
            GrayImage::from_raw(width, height, upper(gray.as_raw())).map(Into::into)
        }
        DynamicImage::ImageRgb16(rgb) => {
            RgbImage::from_raw(width, height, upper(rgb.as_raw())).map(Into::into)
        }
        DynamicImage::ImageRgba16(rgba) => {
            RgbaImage::from_raw(width, height, upper(rgba.as_raw())).map(Into::into)
        }
        DynamicImage::ImageLumaA16(gray) => {
            let values = upper(gray.as_raw());
            image::GrayAlphaImage::from_raw(width, height, values).map(Into::into)
        }
        _ => None,
    };

    eight.unwrap_or(image)
}

fn pixels(image: &DynamicImage, is_bilevel: bool, origin: Origin) -> Stored {
    let (width, height) = (num::widen(image.width()), num::widen(image.height()));
    let picture = |rgb| Picture { width, height, rgb };
    if is_bilevel {
        return Stored::Bilevel(picture(image.to_rgb8().into_raw()));
    }

    if !image.color().has_alpha() {
        return Stored::Color(picture(image.to_rgb8().into_raw()));
    }

    let rgba = image.to_rgba8();
    let color = picture(rgba.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect());
    let alpha = rgba.pixels().map(|p| p.0[3]).collect();
    Stored::Alpha { color, alpha, origin }
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
    use std::path::Path;

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
    fn files_of_every_format_are_refused_where_pixels_are_cut_off() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for (name, may_lack) in [
            ("pixels/color.bmp", 0),
            ("pixels/color.tif", 0),
            ("pixels/color.ppm", 0),
            ("pixels/gray.pgm", 0),
            ("preprocess/images/lossy.webp", 0),
            ("preprocess/images/lossless.webp", 0),
            // The first picture of an animation is whole without the others.
            ("pixels/animated.gif", 360),
            ("pixels/rgb16.png", 12),
        ] {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            assert!(decode(&bytes, name).is_ok(), "{name}");
            for len in (0..bytes.len() - may_lack).rev().step_by(3) {
                assert!(decode(&bytes[..len], name).is_err(), "{name} cut at {len}");
            }
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
