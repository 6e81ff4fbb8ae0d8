//! SVG drawings to small square pictures.
//!
//! Vendors leave different margins around their drawings; cutting to the drawing itself makes
//! its size independent of the vendor. The drawing is rendered [`OVERSAMPLING`] times larger
//! on white, cut to the box of everything not white plus a margin, made square, and reduced.

use std::panic::{AssertUnwindSafe, catch_unwind};

use resvg::{tiny_skia, usvg};

use super::{Picture, drawing, resize};
use crate::error::{Context, Error, Result};
use crate::num;

/// Rendered pixels per final pixel; beyond 4 the result hardly changes.
const OVERSAMPLING: usize = 4;

/// Margin around the drawing, as a fraction of its longer side.
const MARGIN: f64 = 0.03;

/// A channel this much below white belongs to the drawing.
const PAPER: u8 = 250;

/// Pictures whose levels deviate less than this are empty.
const BLANK: f64 = 3.0;

/// Renders an SVG document, cut to its drawing, to `side` x `side` pixels; `None` if nothing
/// shows.
///
/// Text in the document is not drawn and no file is opened. Deterministic.
pub fn rasterise(svg: &str, side: usize) -> Result<Option<Picture>> {
    let drawn = draw(svg, side * OVERSAMPLING)?;
    let Some(bounds) = bounds(&drawn) else { return Ok(None) };
    let small = resize(&squared(&drawn, &bounds), side, side);
    Ok((small.deviation() >= BLANK).then_some(small))
}

/// Renders a whole SVG document as it is, reduced to `side` x `side` pixels.
pub fn render(svg: &str, side: usize) -> Result<Picture> {
    Ok(resize(&draw(svg, side * OVERSAMPLING)?, side, side))
}

/// [`draw_unguarded`], whose panic is an error: drawings are other people's, and resvg asserts
/// where some of them are odd.
fn draw(svg: &str, extent: usize) -> Result<Picture> {
    catch_unwind(AssertUnwindSafe(|| draw_unguarded(svg, extent)))
        .unwrap_or_else(|_| Err(Error::corrupt("resvg panics at this SVG drawing")))
}

/// Renders on white with the longer side at `extent` pixels.
fn draw_unguarded(svg: &str, extent: usize) -> Result<Picture> {
    let document = drawing::parse(svg)?;
    let tree = usvg::Tree::from_xmltree(&document, &usvg::Options::default())
        .context(|| "parsing an SVG drawing".to_owned())?;

    let size = tree.size();
    let extent = num::index_u32(extent);
    let scale = extent as f32 / size.width().max(size.height());

    let mut canvas = tiny_skia::Pixmap::new(extent, extent)
        .ok_or_else(|| Error::failed(format!("cannot render at {extent} pixels")))?;
    canvas.fill(tiny_skia::Color::WHITE);

    resvg::render(
        &tree,
        tiny_skia::Transform::from_scale(scale, scale),
        &mut canvas.as_mut(),
    );

    // The canvas is opaque white, so its premultiplied values are the colors themselves.
    let extent = num::widen(extent);
    let rgb = canvas.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
    Ok(Picture { width: extent, height: extent, rgb })
}

/// The box of everything that is not paper: left, top, right, bottom, the last two exclusive.
fn bounds(picture: &Picture) -> Option<[usize; 4]> {
    let inked = |pixel: &[u8]| pixel.iter().any(|&level| level < PAPER);
    let mut found: Option<[usize; 4]> = None;
    for (y, row) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
        let mut pixels = row.chunks_exact(3);
        let Some(left) = pixels.position(inked) else { continue };
        let right = left + 1 + pixels.rposition(inked).map_or(0, |after| after + 1);
        let [l, t, r, _] = found.unwrap_or([left, y, right, y]);
        found = Some([l.min(left), t, r.max(right), y + 1]);
    }
    found
}

/// Cuts out the box with its margin, centered in a white square.
fn squared(picture: &Picture, &[left, top, right, bottom]: &[usize; 4]) -> Picture {
    let (width, height) = (right - left, bottom - top);

    let longer = width.max(height);
    let side = longer + 2 * num::truncate_usize((MARGIN * longer as f64).ceil());

    let start = |from: usize, extent: usize| {
        from.cast_signed() - ((side - extent) / 2).cast_signed()
    };
    picture.crop(start(left, width), start(top, height), side, side)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(body: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 64 64\">{body}</svg>"
        )
    }

    #[test]
    fn margins_of_the_vendor_do_not_matter() {
        let near =
            svg(r#"<rect x="2" y="2" width="60" height="60" fill="rgb(204,0,0)"/>"#);
        let far =
            svg(r#"<rect x="20" y="20" width="16" height="16" fill="rgb(204,0,0)"/>"#);
        let near = rasterise(&near, 16).unwrap().unwrap();
        let far = rasterise(&far, 16).unwrap().unwrap();
        let inside = |picture: &Picture| picture.crop(2, 2, 12, 12);
        assert_eq!(inside(&near), Picture::filled(12, 12, [204, 0, 0]));
        assert_eq!(inside(&far), inside(&near));
    }

    #[test]
    fn empty_drawings_are_recognized() {
        assert_eq!(rasterise(&svg(""), 16).unwrap(), None);
        let white = svg(r##"<rect width="64" height="64" fill="#fff"/>"##);
        assert_eq!(rasterise(&white, 16).unwrap(), None);
    }

    #[test]
    fn broken_documents_are_errors() {
        assert!(rasterise("<svg", 16).is_err());
        assert!(rasterise(&svg("<path"), 16).is_err());
    }
}
