//! Charts as inline SVG: each is a function from numbers to a string.
//!
//! They are home-made because plotting crates write fixed colors, fonts and sizes into their
//! SVG. These take all three from the style sheet, so that one drawing suits the light theme,
//! the dark theme and the printer.

pub(super) mod bars;
pub(super) mod forest;
pub(super) mod grid;
pub(super) mod heat;
pub(super) mod layers;
pub(super) mod lines;
pub(super) mod patches;
pub(super) mod scale;
pub(super) mod scatter;
pub(super) mod svg;

use scale::Scale;
use svg::{Anchor, Area, Svg};

/// Draws horizontal grid lines and their numbers to the left of `area`.
fn y_axis(svg: &mut Svg, area: Area, y: &Scale, label: &str) {
    for (value, text) in y.ticks(5) {
        let at = y.at(value);
        svg.line((area.left, at), (area.right(), at), "grid");
        svg.text((area.left - 6.0, at + 3.5), Anchor::End, "tick", &text);
    }
    svg.text((0.0, 11.0), Anchor::Start, "unit", label);
}

/// Draws the base line, tick numbers and the name of the x axis.
fn x_axis(svg: &mut Svg, area: Area, x: &Scale, label: &str) {
    let base = area.bottom();
    svg.line((area.left, base), (area.right(), base), "axis");
    for (value, text) in x.ticks(5) {
        let at = x.at(value);
        svg.line((at, base), (at, base + 4.0), "axis");
        svg.text((at, base + 16.0), Anchor::Middle, "tick", &text);
    }
    let middle = area.left + area.width / 2.0;
    svg.text((middle, base + 31.0), Anchor::Middle, "unit", label);
}
