//! Grouped bars: in every layer one bar per expert (the paper's figures B.1 and B.4).

use super::layers::{columns, draw_towers};
use super::scale::Scale;
use super::svg::{Anchor, Area, Svg};
use super::y_axis;
use crate::tables::Layer;

/// Bars of experts in layers.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct BarChart {
    pub(in crate::report) title: String,
    pub(in crate::report) y_label: String,
    /// CSS class of the color.
    pub(in crate::report) class: String,
    pub(in crate::report) layers: Vec<Layer>,
    /// One list of experts' values per layer.
    pub(in crate::report) groups: Vec<Vec<f64>>,
    /// Largest value of y, so that charts side by side share it.
    pub(in crate::report) top: f64,
    /// A labelled horizontal line.
    pub(in crate::report) rule: Option<(f64, String)>,
    pub(in crate::report) size: (f64, f64),
}

impl BarChart {
    /// The drawing; `None` without a finite value.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        if !self.groups.iter().flatten().any(|v| v.is_finite()) {
            return None;
        }
        let (width, height) = self.size;

        let area =
            Area { left: 42.0, top: 22.0, width: width - 54.0, height: height - 62.0 };
        let y = Scale::linear((0.0, self.top), (area.bottom(), area.top));
        let mut svg = Svg::new(width, height);
        y_axis(&mut svg, area, &y, &self.y_label);

        // A group is as wide as the narrowest gap allows, so that all bars are equally wide.
        let centers = columns(&self.layers, area);
        let slot = centers.windows(2).map(|p| p[1] - p[0]).fold(area.width, f64::min);
        let width = (slot * 0.78).min(150.0);
        for ((layer, group), &center) in
            self.layers.iter().zip(&self.groups).zip(&centers)
        {
            let left = center - width / 2.0;
            self.draw_group(&mut svg, &y, &Group { layer, values: group, left, width });
            let at = (center, area.bottom() + 15.0);
            svg.text(at, Anchor::Middle, "tick", &layer.block.to_string());
        }

        svg.line((area.left, area.bottom()), (area.right(), area.bottom()), "axis");
        draw_towers(&mut svg, area, &self.layers, &centers);
        if let Some((value, label)) = &self.rule {
            let at = y.at(*value);
            svg.line((area.left, at), (area.right(), at), "rule");
            svg.text((area.right(), at - 4.0), Anchor::End, "tick halo", label);
        }
        Some(svg.finish(&self.title))
    }

    fn draw_group(&self, svg: &mut Svg, y: &Scale, group: &Group<'_>) {
        let Layer { tower, block } = group.layer;
        let slot = group.width / group.values.len().max(1) as f64;

        // A missing bar keeps its slot, so that ranks line up between layers.
        let finite = group.values.iter().enumerate().filter(|(_, v)| v.is_finite());
        for (index, value) in finite {
            let left = slot.mul_add(index as f64, group.left);
            let top = y.at(*value);

            let bar = Area { left, top, width: slot - 1.5, height: y.at(0.0) - top };

            let rank = index + 1;
            let title = format!("{tower} block {block}, rank {rank}: {value:.3}");
            svg.rect(bar, &format!("bar {}", self.class), &title);
        }
    }
}

/// The bars of one layer.
struct Group<'a> {
    layer: &'a Layer,
    values: &'a [f64],
    left: f64,
    width: f64,
}
