//! Heat maps of categories by experts, one block of columns per layer.

use super::patches::expert_class;
use super::svg::{Anchor, Area, Svg, text_width};
use crate::tables::Layer;

/// Fractions in 0..1 of named rows, layer by layer and expert by expert.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct Grid {
    pub(in crate::report) title: String,
    pub(in crate::report) rows: Vec<String>,
    pub(in crate::report) layers: Vec<Layer>,
    /// By layer, row and expert; NaN where there is nothing.
    pub(in crate::report) values: Vec<Vec<Vec<f64>>>,
}

/// Width and height of a cell.
const CELL: (f64, f64) = (30.0, 22.0);

impl Grid {
    /// The drawing; `None` without a value.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        let all = || self.values.iter().flatten().flatten().copied();
        let highest = all().filter(|v| v.is_finite()).fold(f64::NAN, f64::max);
        if !highest.is_finite() {
            return None;
        }
        let experts = self.values.iter().flatten().map(Vec::len).max()? as f64;
        let names = self.rows.iter().map(|n| text_width(n)).fold(0.0, f64::max) + 10.0;
        let (block, gap, top) = (CELL.0 * experts, 16.0, 36.0);
        let width = (block + gap).mul_add(self.layers.len() as f64, names - gap);
        let mut svg = Svg::new(width, CELL.1.mul_add(self.rows.len() as f64, top));

        // Names to the left of their rows, then a block of columns per layer.
        for (row, name) in self.rows.iter().enumerate() {
            let y = CELL.1.mul_add(row as f64, top) + 15.0;
            svg.text((names - 8.0, y), Anchor::End, "label", name);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let left = (block + gap).mul_add(index as f64, names);
            let Layer { tower, block: number } = layer;
            let at = (left + block / 2.0, 11.0);
            svg.text(at, Anchor::Middle, "unit", &format!("{tower} block {number}"));
            self.draw_layer(&mut svg, index, (left, top), highest);
        }
        Some(svg.finish(&self.title))
    }

    fn draw_layer(&self, svg: &mut Svg, layer: usize, at: (f64, f64), highest: f64) {
        let Layer { tower, block } = &self.layers[layer];
        let experts = self.values[layer].first().map_or(0, Vec::len);
        for expert in 0..crate::num::index_u32(experts) {
            let left = CELL.0.mul_add(f64::from(expert), at.0);
            let key = Area { left, top: at.1 - 5.0, width: CELL.0 - 1.0, height: 3.0 };
            svg.rect(key, &format!("swatch {}", expert_class(expert)), "");
            let middle = left + CELL.0 / 2.0;
            let number = expert.to_string();
            svg.text((middle, at.1 - 9.0), Anchor::Middle, "tick", &number);
        }

        // Shades are relative to the highest fraction of the sheet.
        for (row, values) in self.values[layer].iter().enumerate() {
            for (expert, value) in values.iter().enumerate() {
                let left = CELL.0.mul_add(expert as f64, at.0);
                let top = CELL.1.mul_add(row as f64, at.1);
                let (width, height) = (CELL.0 - 1.0, CELL.1 - 1.0);
                let area = Area { left, top, width, height };
                svg.rect(area, "cell none", "");
                if !value.is_finite() {
                    continue;
                }

                let percent = format!("{:.0}", 100.0 * value);
                let name = &self.rows[row];
                let title = format!(
                    "{tower} block {block}: {percent} % of the tokens of {name} go to expert {expert}"
                );

                let shade = value / highest.max(1e-9);
                svg.shaded(area, "cell heat", &title, 0.9 * shade);
                let ink = if shade > 0.6 { "number on" } else { "number" };
                let middle = (left + width / 2.0, top + 14.5);
                svg.text(middle, Anchor::Middle, ink, &percent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_prints_percent_and_leaves_gaps() {
        let grid = Grid {
            title: "grid".to_owned(),
            rows: vec!["cats".to_owned(), "dogs".to_owned()],
            layers: vec![Layer::new("vision", 1)],
            values: vec![vec![vec![0.25, 0.75], vec![f64::NAN, f64::NAN]]],
        };
        let out = grid.draw().unwrap();
        assert!(out.contains(">75<") && !out.contains("NaN"), "{out}");
        assert!(out.contains("25 % of the tokens of cats go to expert 0"), "{out}");
        assert!(Grid::default().draw().is_none());
    }
}
