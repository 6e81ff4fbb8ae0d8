//! Pictures for the page: small PNG files as `data:` URIs.
//!
//! Bytes that are not a PNG file are not put into the page: they come from outside.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::image::{Picture, decode, encode_png, resize};

/// What every PNG file begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The file as it is; `None` if it is not a PNG.
pub(super) fn whole(file: &[u8]) -> Option<String> {
    let uri = || format!("data:image/png;base64,{}", STANDARD.encode(file));
    file.starts_with(PNG).then(uri)
}

/// The file, made smaller where its sides are longer than `side` pixels.
pub(super) fn shrunk(file: &[u8], side: usize) -> Option<String> {
    let picture = read(file)?;
    if picture.width.max(picture.height) <= side {
        return whole(file);
    }
    written(&resize(&picture, side, side))
}

/// The part around a patch of a square picture, the patch in its middle and its neighbors
/// around it; `patches` stand along a side.
pub(super) fn around(
    file: &[u8],
    patches: usize,
    (column, row): (usize, usize),
) -> Option<String> {
    /// The longest side of the part, in pixels.
    const SIDE: usize = 72;

    let picture = read(file)?;
    let patch = picture.width.checked_div(patches)?;
    let before = |index: usize| {
        Some(isize::try_from(index * patch).ok()? - isize::try_from(patch).ok()?)
    };
    let part = picture.crop(before(column)?, before(row)?, 3 * patch, 3 * patch);
    if 3 * patch <= SIDE { written(&part) } else { written(&resize(&part, SIDE, SIDE)) }
}

fn read(file: &[u8]) -> Option<Picture> {
    file.starts_with(PNG).then(|| decode(file, "of the report").ok()).flatten()
}

fn written(picture: &Picture) -> Option<String> {
    encode_png(picture).ok().and_then(|file| whole(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_holds_the_patch_in_its_middle_and_white_beyond_the_edge() {
        let mut picture = Picture::filled(8, 8, [10, 20, 30]);
        picture.rgb[..3].copy_from_slice(&[200, 0, 0]);
        let file = encode_png(&picture).unwrap();
        let uri = around(&file, 4, (0, 0)).unwrap();
        let bytes = STANDARD.decode(uri.split(',').nth(1).unwrap()).unwrap();
        let part = decode(&bytes, "part").unwrap();
        assert_eq!((part.width, part.height), (6, 6));
        let pixel = |x: usize, y: usize| &part.rgb[(y * 6 + x) * 3..][..3];
        assert_eq!(pixel(0, 0), [255, 255, 255]);
        assert_eq!(pixel(2, 2), [200, 0, 0]);
        assert_eq!(pixel(5, 5), [10, 20, 30]);
    }

    #[test]
    fn other_files_are_left_out() {
        assert!(whole(b"<svg onload=1>").is_none() && shrunk(b"GIF89a", 9).is_none());
        assert!(around(PNG, 4, (0, 0)).is_none(), "a torn file");
        let large = encode_png(&Picture::filled(40, 40, [1, 2, 3])).unwrap();
        assert!(shrunk(&large, 40).unwrap() == whole(&large).unwrap());
        assert!(shrunk(&large, 8).unwrap().len() < whole(&large).unwrap().len());
    }
}
