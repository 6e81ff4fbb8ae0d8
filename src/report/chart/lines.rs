//! Line charts with bands and labels at the lines' ends: curves over steps, spectra, k-means.

use super::scale::{Scale, extent, spread};
use super::svg::{Anchor, Area, Svg, text_width};
use super::{x_axis, y_axis};

/// One point of a series: x, and the middle and edges of the band.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::report) struct Point {
    pub(in crate::report) x: f64,
    pub(in crate::report) mean: f64,
    pub(in crate::report) low: f64,
    pub(in crate::report) high: f64,
}

impl Point {
    /// A point without a band.
    pub(in crate::report) fn bare(x: f64, mean: f64) -> Self {
        Self { x, mean, low: mean, high: mean }
    }
}

/// One line of a chart.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct Series {
    /// Printed at the line's end and shown as its tooltip; an empty label is not printed.
    pub(in crate::report) label: String,
    /// Tooltip, where it differs from the label.
    pub(in crate::report) title: String,
    /// CSS classes: the color and, if wanted, `dashed` or `quiet`.
    pub(in crate::report) class: String,
    pub(in crate::report) points: Vec<Point>,
    /// Index of a point to mark with a dot.
    pub(in crate::report) marked: Option<usize>,
}

/// A chart of lines.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct LineChart {
    pub(in crate::report) title: String,
    pub(in crate::report) x_label: String,
    pub(in crate::report) y_label: String,
    pub(in crate::report) series: Vec<Series>,
    /// Limits of y, where the data should not decide.
    pub(in crate::report) y_domain: Option<(f64, f64)>,
    /// Whether y is logarithmic.
    pub(in crate::report) y_log: bool,
    /// A labeled horizontal line.
    pub(in crate::report) rule: Option<(f64, String)>,
    /// Width and height.
    pub(in crate::report) size: (f64, f64),
}

impl LineChart {
    /// The drawing; `None` if no series has a finite point.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let x_domain = extent(points().filter(|p| p.mean.is_finite()).map(|p| p.x), 0.0)?;
        let values = points().flat_map(|p| [p.mean, p.low, p.high]);
        let rule = self.rule.iter().map(|(value, _)| *value);
        let found = extent(values.chain(rule), if self.y_log { 0.0 } else { 0.05 })?;
        let y_domain = self.y_domain.unwrap_or(found);

        let area = self.area();
        let x = Scale::linear(x_domain, (area.left, area.right()));
        let pixels = (area.bottom(), area.top);
        let y = if self.y_log {
            Scale::log(y_domain, pixels)
        } else {
            Scale::linear(y_domain, pixels)
        };

        let mut svg = Svg::new(self.size.0, self.size.1);
        y_axis(&mut svg, area, &y, &self.y_label);
        x_axis(&mut svg, area, &x, &self.x_label);
        if let Some((value, label)) = &self.rule {
            let at = y.at(*value);
            svg.line((area.left, at), (area.right(), at), "rule");
            svg.text((area.right() - 3.0, at - 5.0), Anchor::End, "tick", label);
        }

        // Labels come last, because nothing may lie on top of them.
        self.draw_series(&mut svg, &x, &y);
        self.draw_labels(&mut svg, area, &x, &y);
        Some(svg.finish(&self.title))
    }

    fn area(&self) -> Area {
        let labels = self.series.iter().map(|s| text_width(&s.label)).fold(0.0, f64::max);
        let right = if labels > 0.0 { labels + 28.0 } else { 12.0 };
        let (width, height) = self.size;
        Area { left: 42.0, top: 22.0, width: width - 42.0 - right, height: height - 60.0 }
    }

    fn draw_series(&self, svg: &mut Svg, x: &Scale, y: &Scale) {
        for series in &self.series {
            // A series of one seed has a band of no height, which is not drawn.
            if series.points.iter().any(|p| p.high > p.low) {
                let edges = series.points.iter();
                let edges: Vec<_> =
                    edges.map(|p| (x.at(p.x), y.at(p.low), y.at(p.high))).collect();
                svg.band(&edges, &format!("band {}", series.class));
            }
        }

        // Later series lie on top; the first ones are the important ones.
        for series in self.series.iter().rev() {
            let points: Vec<_> =
                series.points.iter().map(|p| (x.at(p.x), y.at(p.mean))).collect();
            let title =
                if series.title.is_empty() { &series.label } else { &series.title };

            // A line under its twin is drawn wider, so that both are seen.
            let earlier = self.series.iter().take_while(|s| !std::ptr::eq(*s, series));
            let hidden = earlier.filter(|s| is_twin(s, series, y)).count();
            let wide = if hidden > 0 { " under" } else { "" };
            svg.polyline(&points, &format!("line {}{wide}", series.class), title);
            if let Some(&at) = series.marked.and_then(|index| points.get(index)) {
                svg.dot(at, 3.2, &format!("dot {}", series.class), title);
            }
        }
    }

    fn draw_labels(&self, svg: &mut Svg, area: Area, x: &Scale, y: &Scale) {
        let ends: Vec<_> = self
            .series
            .iter()
            .filter(|s| !s.label.is_empty())
            .filter_map(|s| {
                let last = s.points.iter().rev().find(|p| p.mean.is_finite())?;
                Some((s, x.at(last.x), y.at(last.mean)))
            })
            .collect();

        // Lines that end close together must not print their labels over each other.
        let wanted: Vec<f64> = ends.iter().map(|end| end.2).collect();
        let placed = spread(&wanted, 13.0, (area.top, area.bottom() + 4.0));
        for ((series, from, at), place) in ends.into_iter().zip(placed) {
            svg.dot((from, at), 2.4, &format!("dot {}", series.class), "");
            direct_label(svg, (from + 3.0, at), (area.right() + 12.0, place), series);
        }
    }
}

/// Whether two lines lie on each other, to within half the width of a line, at most points.
fn is_twin(a: &Series, b: &Series, y: &Scale) -> bool {
    let pairs = || a.points.iter().zip(&b.points);
    let near = pairs().filter(|(p, q)| (y.at(p.mean) - y.at(q.mean)).abs() < 1.0).count();
    !a.points.is_empty() && a.points.len() == b.points.len() && 2 * near > a.points.len()
}

/// A label beside the end of its line, with a stroke in the line's color before it.
fn direct_label(svg: &mut Svg, from: (f64, f64), to: (f64, f64), series: &Series) {
    svg.line(from, (to.0 - 2.0, to.1), "leader");
    svg.line(to, (to.0 + 9.0, to.1), &format!("key {}", series.class));
    svg.text((to.0 + 13.0, to.1 + 3.5), Anchor::Start, "label", &series.label);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_of_nothing_is_not_drawn() {
        let nan =
            Series { points: vec![Point::bare(0.0, f64::NAN)], ..Series::default() };
        let chart =
            LineChart { series: vec![nan], size: (300.0, 200.0), ..LineChart::default() };
        assert!(chart.draw().is_none());
        assert!(LineChart::default().draw().is_none());
    }

    #[test]
    fn a_line_under_its_twin_is_wider() {
        let series = |class: &str, y: f64| Series {
            class: class.to_owned(),
            points: vec![Point::bare(0.0, y), Point::bare(1.0, 2.0 * y)],
            ..Series::default()
        };
        let chart = LineChart {
            series: vec![series("c1", 1.0), series("c2", 1.0), series("c3", 5.0)],
            size: (300.0, 200.0),
            ..LineChart::default()
        };
        let out = chart.draw().unwrap();
        assert!(out.contains("line c2 under") && !out.contains("line c1 under"), "{out}");
        assert!(!out.contains("line c3 under"), "{out}");
    }

    #[test]
    fn a_single_point_and_gaps_are_drawn_without_nan() {
        let points = vec![Point::bare(0.0, 1.0), Point::bare(1.0, f64::NAN)];
        let series = Series { label: "a<b".into(), points, ..Series::default() };
        let chart = LineChart {
            series: vec![series],
            size: (300.0, 200.0),
            ..LineChart::default()
        };
        let out = chart.draw().unwrap();
        assert!(out.contains("a&lt;b") && !out.contains("NaN") && !out.contains("inf"));
    }
}
