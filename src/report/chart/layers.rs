//! Figures per MoE layer: a column per layer, the towers apart, hollow marks before training
//! and filled marks after it (the paper's figures 4a and B.3).

use super::scale::{Scale, extent, spread};
use super::svg::{Anchor, Area, Svg, text_width};
use super::y_axis;
use crate::tables::Layer;

/// One run's values over layers at both points.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct LayerSeries {
    pub(in crate::report) label: String,
    pub(in crate::report) class: String,
    /// One value per layer of the chart before training, NaN where there is none.
    pub(in crate::report) init: Vec<f64>,
    /// The same after training.
    pub(in crate::report) end: Vec<f64>,
}

/// How far the marks of two series stand apart.
const DODGE: f64 = 5.0;

/// How many times the median the largest value must be for a logarithmic axis.
const SKEWED: f64 = 12.0;

/// Whether one value would flatten all others on a linear axis. Zero and below have no place
/// on a logarithmic one.
fn is_skewed(values: impl Iterator<Item = f64>) -> bool {
    let mut sorted: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (Some(&low), Some(&high)) = (sorted.first(), sorted.last()) else { return false };
    low > 0.0 && high > SKEWED * sorted[sorted.len() / 2]
}

/// A chart over layers.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct LayerChart {
    pub(in crate::report) title: String,
    pub(in crate::report) y_label: String,
    pub(in crate::report) layers: Vec<Layer>,
    pub(in crate::report) series: Vec<LayerSeries>,
    pub(in crate::report) size: (f64, f64),
}

impl LayerChart {
    /// The drawing; `None` without a finite value.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        let values =
            self.series.iter().flat_map(|s| s.init.iter().chain(&s.end).copied());
        let log = is_skewed(values.clone());
        let domain = extent(values, if log { 0.0 } else { 0.08 })?;

        // Labels stand to the right of the last column.
        let labels = self.series.iter().map(|s| text_width(&s.label)).fold(0.0, f64::max);
        let (width, height) = self.size;
        let (left, top) = (42.0, 22.0);
        let area = Area {
            left,
            top,
            width: width - left - labels - 30.0,
            height: height - 62.0,
        };
        let pixels = (area.bottom(), area.top);
        let y = if log {
            Scale::log((domain.0 * 0.8, domain.1 * 1.25), pixels)
        } else {
            Scale::linear(domain, pixels)
        };

        let mut svg = Svg::new(width, height);
        let unit = if log { ", log scale" } else { "" };
        y_axis(&mut svg, area, &y, &format!("{}{unit}", self.y_label));
        let columns = columns(&self.layers, area);
        self.draw_columns(&mut svg, area, &columns);

        // The first series are the important ones: they are drawn last, on top.
        for (index, series) in self.series.iter().enumerate().rev() {
            let own = self.dodged(&columns, index);
            self.draw_series(&mut svg, series, &own, &y);
        }
        self.draw_labels(&mut svg, area, &columns, &y);
        Some(svg.finish(&self.title))
    }

    /// The columns of one series, beside those of the others: values that agree would hide
    /// each other.
    fn dodged(&self, columns: &[f64], index: usize) -> Vec<f64> {
        let middle = (self.series.len() as f64 - 1.0) / 2.0;
        let shift = DODGE * (index as f64 - middle);
        columns.iter().map(|x| x + shift).collect()
    }

    fn draw_columns(&self, svg: &mut Svg, area: Area, columns: &[f64]) {
        svg.line((area.left, area.bottom()), (area.right(), area.bottom()), "axis");
        for (layer, x) in self.layers.iter().zip(columns) {
            let at = (*x, area.bottom() + 15.0);
            svg.text(at, Anchor::Middle, "tick", &layer.block.to_string());
        }
        draw_towers(svg, area, &self.layers, columns);
    }

    fn draw_series(
        &self,
        svg: &mut Svg,
        series: &LayerSeries,
        columns: &[f64],
        y: &Scale,
    ) {
        let class = &series.class;
        for (values, style, when) in
            [(&series.init, "hollow", "at init"), (&series.end, "dot", "after training")]
        {
            // Lines do not run from one tower into the other.
            for (_, indices) in towers(&self.layers) {
                let points: Vec<_> = indices
                    .iter()
                    .map(|&i| (columns[i], y_at(y, values.get(i).copied())))
                    .collect();
                let line = if style == "dot" { "line" } else { "line thin dashed" };
                svg.polyline(&points, &format!("{line} {class}"), "");
            }

            for (index, value) in values.iter().enumerate() {
                let Layer { tower, block } = &self.layers[index];
                let name = &series.label;
                let title = format!("{name}, {tower} block {block}, {when}: {value:.3}");
                let at = (columns[index], y_at(y, Some(*value)));
                svg.dot(at, 3.4, &format!("{style} {class}"), &title);
            }
        }
    }

    fn draw_labels(&self, svg: &mut Svg, area: Area, columns: &[f64], y: &Scale) {
        let Some(&last) = columns.last() else { return };

        // A label hangs on the last value after training, else on the last one before it.
        let ends: Vec<_> = self
            .series
            .iter()
            .filter_map(|s| {
                let value = s.end.last().copied().filter(|v| v.is_finite());
                let value = value.or_else(|| s.init.last().copied());
                value.filter(|v| v.is_finite()).map(|v| (s, y.at(v)))
            })
            .collect();

        // Values that lie close together must not print their labels over each other.
        let wanted: Vec<f64> = ends.iter().map(|end| end.1).collect();
        let placed = spread(&wanted, 13.0, (area.top, area.bottom() + 4.0));
        for ((series, at), place) in ends.into_iter().zip(placed) {
            let label = area.right() + 14.0;
            svg.line((last + 5.0, at), (label - 3.0, place), "leader");
            let key = format!("key {}", series.class);
            svg.line((label, place), (label + 9.0, place), &key);
            svg.text((label + 13.0, place + 3.5), Anchor::Start, "label", &series.label);
        }
    }
}

fn y_at(y: &Scale, value: Option<f64>) -> f64 {
    value.filter(|v| v.is_finite()).map_or(f64::NAN, |v| y.at(v))
}

/// Centers of the layers' columns, with a wider gap between towers.
pub(super) fn columns(layers: &[Layer], area: Area) -> Vec<f64> {
    // Between towers the gap is wider by 0.6 of a column.
    let changes = layers.windows(2).filter(|pair| pair[0].tower != pair[1].tower).count();
    let slots = layers.len() as f64 + 0.6 * changes as f64;
    let slot = area.width / slots.max(1.0);

    let mut at = area.left - slot / 2.0;
    let mut before: Option<&str> = None;
    layers
        .iter()
        .map(|layer| {
            let gap = if before.is_some_and(|t| t != layer.tower) { 1.6 } else { 1.0 };
            before = Some(&layer.tower);
            at += gap * slot;
            at
        })
        .collect()
}

/// Writes each tower's name below its columns.
pub(super) fn draw_towers(svg: &mut Svg, area: Area, layers: &[Layer], columns: &[f64]) {
    for (tower, indices) in towers(layers) {
        let ends = indices.first().zip(indices.last());
        let Some((&first, &last)) = ends else { continue };
        let at = (f64::midpoint(columns[first], columns[last]), area.bottom() + 31.0);
        svg.text(at, Anchor::Middle, "unit", &format!("{tower} block"));
    }
}

/// The indices of consecutive layers of one tower.
fn towers(layers: &[Layer]) -> Vec<(&str, Vec<usize>)> {
    let mut out: Vec<(&str, Vec<usize>)> = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        match out.last_mut() {
            Some((name, indices)) if *name == layer.tower => indices.push(index),
            _ => out.push((&layer.tower, vec![index])),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_makes_the_axis_logarithmic() {
        assert!(is_skewed([1.0, 1.2, 0.9, 80.0].into_iter()));
        assert!(!is_skewed([1.0, 1.2, 0.9, 4.0].into_iter()));
        assert!(!is_skewed([0.0, 0.1, 0.2, 80.0].into_iter()));
        assert!(!is_skewed(std::iter::empty()));
    }

    #[test]
    fn columns_ascend_inside_the_area_with_a_gap_between_towers() {
        let layers = [("vision", 1), ("vision", 3), ("text", 1)];
        let layers = layers.map(|(tower, block)| Layer::new(tower, block));
        let area = Area { left: 40.0, top: 0.0, width: 300.0, height: 100.0 };
        let x = columns(&layers, area);
        assert!(x[0] > 40.0 && x[2] < 340.0);
        assert!(x[2] - x[1] > 1.5 * (x[1] - x[0]));
        assert_eq!(towers(&layers)[0], ("vision", vec![0, 1]));
    }
}
