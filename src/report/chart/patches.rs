//! Pictures whose patches are colored by what became of them.

use std::collections::BTreeMap;

use super::svg::Svg;

/// One picture and the color classes of its patches.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct Patched {
    /// Name of the picture in the page.
    pub(in crate::report) picture: String,
    /// Expert of each patch, by column and row.
    pub(in crate::report) experts: BTreeMap<(usize, usize), u32>,
}

/// A sheet of pictures.
#[derive(Debug, Clone, Default)]
pub(in crate::report) struct PatchSheet {
    pub(in crate::report) title: String,
    pub(in crate::report) pictures: Vec<Patched>,
    /// Patches along a side of a picture.
    pub(in crate::report) patches: usize,
    /// Pictures in a row.
    pub(in crate::report) columns: usize,
}

/// Side of a picture, and the gap between two.
const SIDE: f64 = 100.0;
const GAP: f64 = 6.0;

/// The CSS class of an expert's color.
pub(in crate::report) fn expert_class(expert: u32) -> String {
    format!("e{}", expert % EXPERT_COLORS)
}

/// Colors of experts in the style sheet; further experts use them again.
const EXPERT_COLORS: u32 = 12;

impl PatchSheet {
    /// The drawing; `None` without a picture.
    pub(in crate::report) fn draw(&self) -> Option<String> {
        if self.pictures.is_empty() || self.patches == 0 {
            return None;
        }
        let columns = self.columns.clamp(1, self.pictures.len());
        let rows = self.pictures.len().div_ceil(columns);
        let length = |n: usize| (n as f64).mul_add(SIDE + GAP, -GAP);
        let mut svg = Svg::new(length(columns), length(rows));
        for (index, picture) in self.pictures.iter().enumerate() {
            let (column, row) = ((index % columns) as f64, (index / columns) as f64);
            self.draw_picture(
                &mut svg,
                picture,
                (column * (SIDE + GAP), row * (SIDE + GAP)),
            );
        }
        Some(svg.finish(&self.title))
    }

    fn draw_picture(&self, svg: &mut Svg, picture: &Patched, at: (f64, f64)) {
        svg.picture(&picture.picture, at, SIDE);

        // Rows first, so that neighbors come one after the other.
        let mut cells: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
        for row in 0..self.patches {
            for column in 0..self.patches {
                if let Some(&expert) = picture.experts.get(&(column, row)) {
                    cells.entry(expert).or_default().push((column, row));
                }
            }
        }
        let scale = SIDE / self.patches as f64;
        for (expert, cells) in cells {
            let class = format!("patch {}", expert_class(expert));
            let (n, all) = (cells.len(), self.patches.pow(2));
            let title = format!("expert {expert}: {n} of {all} patches");
            svg.cells(&cells, (at, scale), &class, &title);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_has_the_color_of_its_expert() {
        let experts = [((0, 0), 3), ((1, 0), 3), ((0, 1), 13)].into();
        let picture = Patched { picture: "p7".to_owned(), experts };
        let sheet = PatchSheet {
            title: "sheet".to_owned(),
            pictures: vec![picture],
            patches: 2,
            columns: 4,
        };
        let out = sheet.draw().unwrap();
        assert!(
            out.contains("class=\"patch e3\"") && out.contains("M0 0h2v1h-2z"),
            "{out}"
        );
        assert!(out.contains("class=\"patch e1\"") && out.contains("expert 13"), "{out}");
        assert!(out.contains("href=\"#p7\""), "{out}");
        assert!(PatchSheet::default().draw().is_none());
    }
}
