//! Points in the plane without axes: maps, of which only the neighborhoods mean something.

use super::scale::{Scale, extent};
use super::svg::Svg;

/// One point.
#[derive(Debug, Clone)]
pub(in crate::report) struct Dot {
    pub(in crate::report) x: f64,
    pub(in crate::report) y: f64,
    /// CSS classes: `dot` or `hollow`, and a color.
    pub(in crate::report) class: String,
    pub(in crate::report) title: String,
}

/// A map of points.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct Scatter {
    pub(in crate::report) title: String,
    pub(in crate::report) dots: Vec<Dot>,
    pub(in crate::report) size: (f64, f64),
}

impl Scatter {
    /// The drawing; `None` without a finite point.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        let finite = |v: f64| Some(v).filter(|v| v.is_finite());
        let horizontal = extent(self.dots.iter().filter_map(|d| finite(d.x)), 0.04)?;
        let vertical = extent(self.dots.iter().filter_map(|d| finite(d.y)), 0.04)?;

        // One scale for both directions: distances are what a map shows.
        let (width, height) = self.size;
        let span = |(low, high): (f64, f64), pixels: f64| (high - low) / pixels;
        let unit = span(horizontal, width).max(span(vertical, height)).max(1e-12);
        let domain = |(low, high): (f64, f64), pixels: f64| {
            let (middle, half) = (f64::midpoint(low, high), unit * pixels / 2.0);
            (middle - half, middle + half)
        };
        let x = Scale::linear(domain(horizontal, width), (0.0, width));
        let y = Scale::linear(domain(vertical, height), (height, 0.0));

        let mut svg = Svg::new(width, height);
        let (left, right) = ((0.0, y.at(0.0)), (width, y.at(0.0)));
        svg.line(left, right, "grid");
        svg.line((x.at(0.0), 0.0), (x.at(0.0), height), "grid");
        for dot in &self.dots {
            svg.dot((x.at(dot.x), y.at(dot.y)), 2.6, &dot.class, &dot.title);
        }
        Some(svg.finish(&self.title))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_have_one_scale() {
        let dot = |x, y| Dot { x, y, class: "dot".to_owned(), title: String::new() };
        let map = Scatter {
            title: "map".to_owned(),
            dots: vec![dot(-10.0, 0.0), dot(10.0, 0.0), dot(0.0, 1.0), dot(0.0, -1.0)],
            size: (216.0, 216.0),
        };
        let out = map.draw().unwrap();
        // The height of 2 takes a tenth of the width of 20, both with their margins.
        assert!(out.contains("cx=\"108\" cy=\"98\""), "{out}");
        assert!(out.contains("cx=\"8\" cy=\"108\""), "{out}");
        assert!(Scatter::default().draw().is_none());
    }
}
