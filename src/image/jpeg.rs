//! JPEG by the strict mode of its decoder: a torn file is an error and not a gray picture.
//!
//! The decoder's lenient mode, which `image` uses, fills what is missing with gray. Pillow
//! refuses such files, and its verdict is the measure here: what ends before its end mark is
//! torn, and what is odd but complete (restart markers, inks of print, bytes between headers
//! or behind the end) is read.

use std::io::Cursor;

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Picture;
use super::stored::{Stored, check_size};
use crate::error::{Context, Error, Result};

/// The marker that ends a picture.
const END: [u8; 2] = [0xff, 0xd9];

/// Bytes put in the place of what may be missing; more than one block of pixels needs.
const TAIL: usize = 1 << 10;

/// Reads a JPEG file; `name` is for the error.
pub(super) fn read(bytes: &[u8], name: &str) -> Result<Stored> {
    let context = || format!("decoding picture {name}");
    let decoded = decode(bytes, name).context(context)?;
    if decoded.is_ended || is_complete(bytes, &decoded) {
        return Ok(pixels(decoded));
    }
    let why = "the file is cut short: it has no end mark, and rows may be missing";
    Err(Error::failed(why)).context(context)
}

/// An error of the decoder as one sentence without quotation marks and line breaks.
fn torn(error: &DecodeErrors) -> Error {
    let sentence = error.to_string();
    let words: Vec<&str> = sentence.trim_matches('"').split_whitespace().collect();
    Error::failed(words.join(" "))
}

fn options(is_strict: bool) -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(is_strict)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
}

/// Values of a file as its decoder hands them over.
struct Decoded {
    width: usize,
    height: usize,
    colors: ColorSpace,
    values: Vec<u8>,
    /// Whether the end mark was reached.
    is_ended: bool,
}

fn decode(bytes: &[u8], name: &str) -> Result<Decoded> {
    let mut source = Cursor::new(bytes);
    let mut decoder = JpegDecoder::new_with_options(&mut source, options(false));
    decoder.decode_headers().map_err(|e| torn(&e))?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    check_size([width as u64, height as u64], name)?;

    // Gray stays gray, and inks stay inks, because they are resized before they are mixed.
    let colors = match decoder.input_colorspace() {
        Some(colors @ (ColorSpace::Luma | ColorSpace::CMYK | ColorSpace::YCCK)) => colors,
        _ => ColorSpace::RGB,
    };
    // Strictness begins behind the headers: stray bytes between them are harmless.
    decoder.set_options(options(true).jpeg_set_out_colorspace(colors));
    let values = decoder.decode().map_err(|e| torn(&e))?;
    drop(decoder);

    let position = usize::try_from(source.position()).unwrap_or(usize::MAX);
    let is_ended = bytes[..position.min(bytes.len())].ends_with(&END);
    Ok(Decoded { width, height, colors, values, is_ended })
}

/// Whether every row is there although the end mark is not: some cameras pad with zeros in its
/// place. Zeros do not count as rows, and Pillow is content only with something behind the last
/// row; without both, nothing that could follow may change a pixel.
fn is_complete(bytes: &[u8], decoded: &Decoded) -> bool {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let end = end.min(bytes.len().saturating_sub(END.len()));
    let followed_by = |filler: u8| {
        let padded = [&bytes[..end], &[filler; TAIL], &END].concat();
        decode(&padded, "").is_ok_and(|other| other.values == decoded.values)
    };
    followed_by(0x00) && followed_by(0xaa)
}

fn pixels(decoded: Decoded) -> Stored {
    let Decoded { width, height, colors, values, .. } = decoded;
    let picture = |rgb: Vec<u8>| Picture { width, height, rgb };
    match colors {
        ColorSpace::Luma => {
            Stored::Color(picture(values.iter().flat_map(|&gray| [gray; 3]).collect()))
        }
        ColorSpace::CMYK | ColorSpace::YCCK => {
            // Files hold the paper that shows through, as Adobe writes them; in YCCK the three
            // colors are turned round once more.
            let inks = values.chunks_exact(4).flat_map(|p| match colors {
                ColorSpace::YCCK => rgb([p[0], p[1], p[2]]),
                _ => [255 - p[0], 255 - p[1], 255 - p[2]],
            });

            let black = values.chunks_exact(4).flat_map(|p| [255 - p[3]; 3]);
            Stored::Print {
                inks: picture(inks.collect()),
                black: picture(black.collect()),
            }
        }
        _ => Stored::Color(picture(values)),
    }
}

/// Luma and chroma as red, green and blue, in libjpeg's fixed point of 16 bits.
fn rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);

    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|level| u8::try_from(level.clamp(0, 255)).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::image::decode as picture;

    fn fixture(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pixels");
        std::fs::read(folder.join(name)).unwrap()
    }

    /// The files of the fixtures whose rows are coded each in another way.
    const SOUND: [&str; 6] = [
        "baseline.jpg",
        "progressive.jpg",
        "restarts.jpg",
        "gray.jpg",
        "cmyk.jpg",
        "thumbnail.jpg",
    ];

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        for name in SOUND {
            let bytes = fixture(name);
            assert!(picture(&bytes, name).is_ok(), "{name}");
            for length in 0..bytes.len() {
                let error = picture(&bytes[..length], "cut.jpg");
                let error = error.expect_err(&format!("{name} cut at {length}"));
                assert!(error.to_string().contains("cut.jpg"), "{error:?}");
            }
        }
    }

    #[test]
    fn a_file_whose_tail_was_never_written_is_refused() {
        for name in SOUND {
            let bytes = fixture(name);
            let start = bytes.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
            for length in (start..bytes.len() - 4).step_by(7) {
                let mut zeroed = bytes.clone();
                zeroed[length..].fill(0);
                // Where the file itself ends in zeros, nothing is lost but the end mark.
                if bytes[length..bytes.len() - 2].iter().any(|&byte| byte != 0) {
                    assert!(picture(&zeroed, "x").is_err(), "{name} zeroed at {length}");
                }
            }
        }
    }

    #[test]
    fn what_is_odd_but_complete_is_read_as_it_was() {
        for name in SOUND {
            let bytes = fixture(name);
            let expected = picture(&bytes, name).unwrap();
            let behind = [&bytes[..], b"\0\0bytes behind the end\xff\xff\xd8"].concat();
            let twice = [&bytes[..], &bytes[..]].concat();
            // Behind the first header, whose length stands in its bytes 4 and 5.
            let header = 4 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
            let stray = b"\0\0\0\0\0\xff\xff";
            let between = [&bytes[..header], stray, &bytes[header..]].concat();
            for odd in [behind, twice, between] {
                assert_eq!(picture(&odd, name).unwrap(), expected, "{name}");
            }
        }
        // Something else in the place of the end mark: the rows are all there.
        for name in ["baseline.jpg", "restarts.jpg", "gray.jpg"] {
            let bytes = fixture(name);
            let cut = &bytes[..bytes.len() - 2];
            for padding in [&[0; 100][..], b"no end mark"] {
                let found = picture(&[cut, padding].concat(), name).unwrap();
                assert_eq!(found, picture(&bytes, name).unwrap(), "{name}");
            }
            // A single byte there is less than the end mark: Pillow refuses it, too.
            assert!(picture(&[cut, b"\0"].concat(), name).is_err(), "{name}");
        }
    }
}
