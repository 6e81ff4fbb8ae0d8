//! Heat maps of expert-by-expert similarity: rows are points in time, columns are layers.

use super::svg::{Anchor, Area, Svg};
use crate::tables::Layer;

/// A square matrix, row by row; NaN where a pair is missing.
pub(in crate::report) type Cells = Vec<Vec<f64>>;

/// A sheet of small matrices.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct HeatSheet {
    pub(in crate::report) title: String,
    /// CSS class of the color.
    pub(in crate::report) class: String,
    pub(in crate::report) layers: Vec<Layer>,
    /// Named rows of matrices, one matrix per layer.
    pub(in crate::report) rows: Vec<(String, Vec<Cells>)>,
    /// Value that is drawn without color; 1 is drawn in full color.
    pub(in crate::report) floor: f64,
}

impl HeatSheet {
    /// The drawing; `None` without a matrix.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        let experts = self.rows.iter().flat_map(|r| &r.1).map(Vec::len).max()?;
        if experts == 0 {
            return None;
        }

        // Many experts get smaller cells, so that the sheet keeps its size.
        let cell = (116.0 / experts as f64).clamp(7.0, 29.0);
        let (side, gap, left, top) = (cell * experts as f64, 20.0, 52.0, 22.0);
        let width = (side + gap).mul_add(self.layers.len() as f64, left);
        let height = (side + gap).mul_add(self.rows.len() as f64, top);
        let mut svg = Svg::new(width, height);

        for (column, Layer { tower, block }) in self.layers.iter().enumerate() {
            let x = (side + gap).mul_add(column as f64, left);
            let name = format!("{tower} block {block}");
            svg.text((x + side / 2.0, 12.0), Anchor::Middle, "unit", &name);
        }

        for (row, (name, matrices)) in self.rows.iter().enumerate() {
            let y = (side + gap).mul_add(row as f64, top);
            svg.text((left - 10.0, y + side / 2.0 + 4.0), Anchor::End, "unit", name);
            for (column, cells) in matrices.iter().enumerate() {
                let x = (side + gap).mul_add(column as f64, left);
                self.draw_matrix(&mut svg, cells, (x, y), cell);
            }
        }
        Some(svg.finish(&self.title))
    }

    fn draw_matrix(&self, svg: &mut Svg, cells: &Cells, (x, y): (f64, f64), cell: f64) {
        for (i, row) in cells.iter().enumerate() {
            for (j, &value) in row.iter().enumerate() {
                let left = cell.mul_add(j as f64, x);
                let top = cell.mul_add(i as f64, y);
                let area = Area { left, top, width: cell - 1.0, height: cell - 1.0 };

                if !value.is_finite() {
                    svg.rect(area, "cell none", "no value");
                    continue;
                }

                // An empty cell below keeps faint colors apart from the page.
                let shade = ((value - self.floor) / (1.0 - self.floor)).clamp(0.0, 1.0);
                let title = format!("experts {i} and {j}: {value:.3}");
                svg.rect(area, "cell none", "");
                let class = format!("cell {}", self.class);
                svg.shaded(area, &class, &title, shade.mul_add(0.9, 0.04).min(0.999));

                // Smaller cells have no room for a number.
                if cell >= 24.0 {
                    let ink = if shade > 0.55 { "number on" } else { "number" };
                    let at = (left + cell / 2.0 - 0.5, top + cell / 2.0 + 3.0);
                    svg.text(at, Anchor::Middle, ink, &two_decimals(value));
                }
            }
        }
    }
}

/// A cosine in four characters: `.93`, `1.0`, `−.12`.
fn two_decimals(value: f64) -> String {
    let text = format!("{:.2}", value.abs());
    let sign = if value <= -0.005 { "\u{2212}" } else { "" };

    match text.strip_prefix('0') {
        Some(rest) => format!("{sign}{rest}"),
        None => format!("{sign}1.0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_printed_in_little_room() {
        assert_eq!(two_decimals(0.934), ".93");
        assert_eq!(two_decimals(0.999), "1.0");
        assert_eq!(two_decimals(-0.12), "\u{2212}.12");
        assert_eq!(two_decimals(-0.001), ".00");
    }
}
