//! Drawings to pictures, many at a time and always in the same order.

use sha2::{Digest, Sha256};

use super::super::spool::{Spool, Stored};
use crate::error::Result;
use crate::image;
use crate::par;

/// Pictures rendered between two reports of progress.
const CHUNK: usize = 256;

/// A drawing that became a picture.
#[derive(Debug, Clone)]
pub(in crate::data) struct Drawing {
    /// The picture: PNG, RGB, square.
    pub png: Stored,
    /// The first half of the SHA-256 of its pixels: equal pictures have equal ones.
    pub pixels: u128,
}

/// Where pictures are drawn to.
pub(in crate::data) struct Canvas<'a> {
    /// Side of the pictures.
    pub side: usize,
    /// Where they wait.
    pub spool: &'a mut Spool,
}

/// Draws the documents that `svg` makes of `items`: in parallel, and stored in their order.
///
/// `None` is an empty drawing; the inner error is one that cannot be drawn. `told` hears how
/// many are done.
pub(in crate::data) fn draw<T: Sync>(
    items: &[T],
    svg: &(dyn Fn(&T) -> String + Sync),
    canvas: &mut Canvas<'_>,
    told: &mut dyn FnMut(usize),
) -> Result<Vec<Result<Option<Drawing>>>> {
    let side = canvas.side;
    let mut out = Vec::with_capacity(items.len());
    for chunk in items.chunks(CHUNK) {
        let drawn = par::map(chunk.len(), |i| {
            let Some(picture) = image::rasterise(&svg(&chunk[i]), side)? else {
                return Ok(None);
            };
            Ok(Some((image::encode_png(&picture)?, fingerprint(&picture.rgb))))
        });

        // The chunk is stored in the order of its items, whichever thread was first.
        for drawing in drawn {
            out.push(match drawing {
                Ok(Some((png, pixels))) => {
                    Ok(Some(Drawing { png: canvas.spool.store(&png)?, pixels }))
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            });
        }
        told(out.len());
    }
    Ok(out)
}

/// The first half of the SHA-256 of `pixels`.
fn fingerprint(pixels: &[u8]) -> u128 {
    let digest = Sha256::digest(pixels);
    digest[..16].iter().fold(0, |sum, &byte| (sum << 8) | u128::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_keep_their_order_and_a_broken_one_stops_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut canvas =
            Canvas { side: 8, spool: &mut Spool::beside(folder.path()).unwrap() };
        let document = |item: &usize| {
            let body = match item % 4 {
                0 => "",
                1 => "<path",
                2 => "<rect width=\"64\" height=\"64\"/>",
                _ => "<circle cx=\"32\" cy=\"32\" r=\"32\"/>",
            };
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 64 64\">{body}</svg>"
            )
        };
        let items: Vec<usize> = (0..600).collect();
        let mut heard = Vec::new();
        let drawn =
            draw(&items, &document, &mut canvas, &mut |done| heard.push(done)).unwrap();
        assert_eq!(heard, [256, 512, 600]);
        let pixels = |i: usize| drawn[i].as_ref().unwrap().as_ref().map(|d| d.pixels);
        for i in (0..600).step_by(4) {
            assert_eq!(pixels(i), None, "empty");
            assert!(drawn[i + 1].is_err(), "broken");
            assert_eq!(pixels(i + 2), pixels(2));
            assert_eq!(pixels(i + 3), pixels(3));
        }
        assert_ne!(pixels(2), pixels(3));
        let png = drawn[599].as_ref().unwrap().as_ref().unwrap().png.read().unwrap();
        let picture = image::decode(&png, "of the test").unwrap();
        assert_eq!(Some(fingerprint(&picture.rgb)), pixels(3));
    }
}
