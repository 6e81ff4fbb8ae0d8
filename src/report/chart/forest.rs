//! Paired differences with their intervals on one axis: the figure beside the verdict.

use super::scale::{Scale, extent};
use super::svg::{Anchor, Area, Svg, text_width};
use crate::report::stats::{Difference, Sign};

/// One line of the figure.
#[derive(Debug, Clone)]
pub(in crate::report) struct ForestRow {
    pub(in crate::report) label: String,
    pub(in crate::report) class: String,
    pub(in crate::report) difference: Difference,
}

/// Rows of differences in groups, each under a heading.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct Forest {
    pub(in crate::report) title: String,
    pub(in crate::report) x_label: String,
    pub(in crate::report) groups: Vec<(String, Vec<ForestRow>)>,
    pub(in crate::report) width: f64,
}

/// Height of a row in pixels.
const ROW: f64 = 21.0;

impl Forest {
    /// The drawing; `None` without rows.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        let rows = || self.groups.iter().flat_map(|g| &g.1);

        // Zero is always on the axis: a difference is read from its distance to it.
        let ends = rows().flat_map(|r| {
            let (low, high) = r.difference.interval.unwrap_or((r.difference.mean, 0.0));
            [low, high, r.difference.mean, 0.0]
        });
        let domain = extent(ends, 0.04)?;

        // Names stand to the left of the axis, differences in words to its right.
        let names = rows().map(|r| text_width(&r.label)).fold(0.0, f64::max);
        let lines = rows().count() as f64 + 1.3 * self.groups.len() as f64;
        let area = Area {
            left: names + 20.0,
            top: 4.0,
            width: self.width - names - 20.0 - 150.0,
            height: lines * ROW,
        };

        let x = Scale::linear(domain, (area.left, area.right()));
        let mut svg = Svg::new(self.width, area.height + 44.0);
        axis(&mut svg, area, &x, &self.x_label);

        let mut y = area.top;
        for (heading, rows) in &self.groups {
            svg.text((0.0, y + 18.0), Anchor::Start, "heading", heading);
            y += 1.3 * ROW;

            // Lines stop at headings, which need the whole width.
            let span = (y, ROW.mul_add(rows.len() as f64, y));
            for (value, _) in x.ticks(6) {
                svg.line((x.at(value), span.0), (x.at(value), span.1), "grid");
            }
            svg.line((x.at(0.0), span.0), (x.at(0.0), span.1), "zero");

            for row in rows {
                draw_row(&mut svg, row, &x, (y + ROW / 2.0, self.width));
                y += ROW;
            }
        }
        Some(svg.finish(&self.title))
    }
}

fn axis(svg: &mut Svg, area: Area, x: &Scale, label: &str) {
    for (value, text) in x.ticks(6) {
        let at = x.at(value);
        svg.text((at, area.bottom() + 15.0), Anchor::Middle, "tick", &text);
    }
    let middle = area.left + area.width / 2.0;
    svg.text((middle, area.bottom() + 32.0), Anchor::Middle, "unit", label);
}

fn draw_row(svg: &mut Svg, row: &ForestRow, x: &Scale, (y, width): (f64, f64)) {
    let Difference { mean, interval, .. } = row.difference;
    let text = crate::report::words::points(&row.difference);
    let covered = matches!(row.difference.sign(), Sign::Covered | Sign::Unknown);

    let style = if covered { "hollow" } else { "dot" };

    svg.text((10.0, y + 4.0), Anchor::Start, "label", &row.label);
    if let Some((low, high)) = interval {
        svg.line((x.at(low), y), (x.at(high), y), &format!("whisker {}", row.class));
    }

    svg.dot((x.at(mean), y), 4.2, &format!("{style} {}", row.class), &text);
    let ink = if covered { "tick" } else { "label strong" };
    svg.text((width, y + 4.0), Anchor::End, ink, &text);
}
