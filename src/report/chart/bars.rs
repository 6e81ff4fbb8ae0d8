//! Grouped bars: one bar an expert in every layer (the paper's figures B.1 and B.4).

use super::layers::{Layer, columns, towers};
use super::scale::Scale;
use super::svg::{Anchor, Area, Svg};
use super::y_axis;

/// Bars of experts in layers.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct BarChart {
    pub(in crate::report) title: String,
    pub(in crate::report) y_label: String,
    /// CSS class of the colour.
    pub(in crate::report) class: String,
    pub(in crate::report) layers: Vec<Layer>,
    /// One list of experts' values a layer.
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
        let centres = columns(&self.layers, area);
        let slot = centres.windows(2).map(|p| p[1] - p[0]).fold(area.width, f64::min);
        for ((layer, group), centre) in self.layers.iter().zip(&self.groups).zip(&centres)
        {
            self.draw_group(
                &mut svg,
                layer,
                group,
                (*centre, (slot * 0.78).min(150.0), &y),
            );
            let at = (*centre, area.bottom() + 15.0);
            svg.text(at, Anchor::Middle, "tick", &layer.1.to_string());
        }
        svg.line((area.left, area.bottom()), (area.right(), area.bottom()), "axis");
        for (tower, indices) in towers(&self.layers) {
            let ends = indices.first().zip(indices.last());
            let Some((&first, &last)) = ends else { continue };
            let at = (f64::midpoint(centres[first], centres[last]), area.bottom() + 31.0);
            svg.text(at, Anchor::Middle, "unit", &format!("{tower} block"));
        }
        if let Some((value, label)) = &self.rule {
            let at = y.at(*value);
            svg.line((area.left, at), (area.right(), at), "rule");
            svg.text((area.right(), at - 4.0), Anchor::End, "tick halo", label);
        }
        Some(svg.finish(&self.title))
    }

    fn draw_group(
        &self,
        svg: &mut Svg,
        (tower, layer): &Layer,
        group: &[f64],
        (centre, width, y): (f64, f64, &Scale),
    ) {
        let slot = width / group.len().max(1) as f64;
        for (index, value) in group.iter().enumerate().filter(|(_, v)| v.is_finite()) {
            let left = slot.mul_add(index as f64, centre - width / 2.0);
            let top = y.at(*value);
            let bar = Area { left, top, width: slot - 1.5, height: y.at(0.0) - top };
            let place = index + 1;
            let title = format!("{tower} block {layer}, place {place}: {value:.3}");
            svg.rect(bar, &format!("bar {}", self.class), &title);
        }
    }
}
