//! A writer of small inline SVG: escaped text, short numbers, colors by CSS class only.
//!
//! Colors live in the style sheet, so that one drawing serves the light theme, the dark theme
//! and paper. A class such as `c3` sets the variable `--c`, with which marks are drawn.

use std::fmt::Write as _;

/// One drawing under construction.
#[derive(Debug, Clone)]
pub(in crate::report) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Which part of a text lies on its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::report) enum Anchor {
    /// The text begins at the point.
    Start,
    /// The text is centered on the point.
    Middle,
    /// The text ends at the point.
    End,
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy)]
pub(in crate::report) struct Area {
    pub(in crate::report) left: f64,
    pub(in crate::report) top: f64,
    pub(in crate::report) width: f64,
    pub(in crate::report) height: f64,
}

impl Area {
    pub(in crate::report) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(in crate::report) fn bottom(&self) -> f64 {
        self.top + self.height
    }
}

impl Svg {
    pub(in crate::report) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub(in crate::report) fn line(
        &mut self,
        from: (f64, f64),
        to: (f64, f64),
        class: &str,
    ) {
        let (x1, y1, x2, y2) = (short(from.0), short(from.1), short(to.0), short(to.1));
        self.push(&format!(
            r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#
        ));
    }

    /// A line through the points, broken where one is not finite.
    pub(in crate::report) fn polyline(
        &mut self,
        points: &[(f64, f64)],
        class: &str,
        title: &str,
    ) {
        let mut path = String::new();

        // A point after a gap begins a new line instead of continuing the old one.
        let mut open = false;
        for &(x, y) in points {
            let finite = x.is_finite() && y.is_finite();
            if finite {
                let command = if open { 'L' } else { 'M' };
                let _ = write!(path, "{command}{} {}", short(x), short(y));
            }
            open = finite;
        }
        self.path(&path, class, title);
    }

    /// A closed band between two lines over the same finite x.
    pub(in crate::report) fn band(&mut self, edges: &[(f64, f64, f64)], class: &str) {
        let finite =
            edges.iter().filter(|(x, a, b)| [x, a, b].iter().all(|v| v.is_finite()));
        let finite: Vec<_> = finite.collect();
        if finite.len() < 2 {
            return;
        }

        // Along the lower edge, then back along the upper one.
        let mut path = String::new();
        let there = finite.iter().map(|(x, low, _)| (x, low));
        let back = finite.iter().rev().map(|(x, _, high)| (x, high));
        for (index, (x, y)) in there.chain(back).enumerate() {
            let command = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{} {}", short(*x), short(*y));
        }

        path.push('Z');
        self.path(&path, class, "");
    }

    fn path(&mut self, path: &str, class: &str, title: &str) {
        if path.is_empty() {
            return;
        }
        let title = tooltip(title);
        self.push(&format!(r#"<path class="{class}" d="{path}">{title}</path>"#));
    }

    pub(in crate::report) fn rect(&mut self, area: Area, class: &str, title: &str) {
        self.shaded(area, class, title, 1.0);
    }

    /// A rectangle whose fill has the given opacity in 0..1.
    pub(in crate::report) fn shaded(
        &mut self,
        area: Area,
        class: &str,
        title: &str,
        opacity: f64,
    ) {
        let (x, y) = (short(area.left), short(area.top));
        let (width, height) = (short(area.width.max(0.0)), short(area.height.max(0.0)));

        let title = tooltip(title);
        let shade = if opacity < 1.0 {
            format!(r#" fill-opacity="{:.3}""#, opacity.max(0.0))
        } else {
            String::new()
        };

        self.push(&format!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"{shade}>{title}</rect>"#
        ));
    }

    pub(in crate::report) fn dot(
        &mut self,
        at: (f64, f64),
        radius: f64,
        class: &str,
        title: &str,
    ) {
        if !at.0.is_finite() || !at.1.is_finite() {
            return;
        }
        let (x, y, r, title) = (short(at.0), short(at.1), short(radius), tooltip(title));
        self.push(&format!(
            r#"<circle class="{class}" cx="{x}" cy="{y}" r="{r}">{title}</circle>"#
        ));
    }

    pub(in crate::report) fn text(
        &mut self,
        at: (f64, f64),
        anchor: Anchor,
        class: &str,
        content: &str,
    ) {
        let (x, y, content) = (short(at.0), short(at.1), escape(content));

        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };

        self.push(&format!(
            r#"<text class="{class}" x="{x}" y="{y}"{anchor}>{content}</text>"#
        ));
    }

    /// A picture that [`defined`] put into the page, drawn into a square.
    pub(in crate::report) fn picture(&mut self, name: &str, at: (f64, f64), side: f64) {
        let (x, y, side, name) = (short(at.0), short(at.1), short(side), escape(name));
        self.push(&format!(
            r##"<use href="#{name}" transform="translate({x} {y}) scale({side})"/>"##
        ));
    }

    /// Cells of a grid of unit squares, drawn into the square at `at`; each is (column, row),
    /// in the order of rows.
    pub(in crate::report) fn cells(
        &mut self,
        cells: &[(usize, usize)],
        (at, scale): ((f64, f64), f64),
        class: &str,
        title: &str,
    ) {
        let mut path = String::new();
        let mut rest = cells;
        while let Some(&(x, y)) = rest.first() {
            // Neighbors in a row are one rectangle: the page stays small.
            let run = rest.iter().enumerate();
            let length = run.take_while(|(i, cell)| **cell == (x + i, y)).count();
            let _ = write!(path, "M{x} {y}h{length}v1h-{length}z");
            rest = &rest[length..];
        }
        if path.is_empty() {
            return;
        }
        let (x, y, title) = (short(at.0), short(at.1), tooltip(title));
        self.push(&format!(
            r#"<path class="{class}" transform="translate({x} {y}) scale({scale:.4})" d="{path}">{title}</path>"#
        ));
    }

    /// The finished drawing; `label` is what a screen reader says.
    pub(in crate::report) fn finish(self, label: &str) -> String {
        let (width, height, label) =
            (short(self.width), short(self.height), escape(label));
        let body = self.body;
        format!(
            r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" style="max-width:{width}px">{body}</svg>"#
        )
    }

    fn push(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }
}

/// Pictures, each a name and a `data:` URI, for [`Svg::picture`] anywhere in the page.
pub(in crate::report) fn defined(pictures: &[(String, String)]) -> String {
    let mut out = String::from(
        r#"<svg class="defined" width="0" height="0" aria-hidden="true"><defs>"#,
    );
    for (name, uri) in pictures {
        let (name, uri) = (escape(name), escape(uri));
        let _ = write!(out, r#"<image id="{name}" width="1" height="1" href="{uri}"/>"#);
    }
    out + "</defs></svg>"
}

fn tooltip(title: &str) -> String {
    if title.is_empty() {
        String::new()
    } else {
        format!("<title>{}</title>", escape(title))
    }
}

/// A coordinate with one decimal and no needless zero, for small files and stable bytes.
fn short(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{value:.1}");

    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Text made safe for element content and quoted attributes; control characters are blanked.
pub(in crate::report) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The approximate width of a text in the charts' 11 px sans serif.
pub(in crate::report) fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * 5.9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_cannot_leave_its_element() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text((0.0, 0.0), Anchor::Start, "t", "</text><script>\u{1}");
        svg.dot((1.0, 1.0), 2.0, "d", "\"><b>");
        let out = svg.finish("' onload='x");
        assert!(!out.contains("<script>") && !out.contains("<b>"), "{out}");
        assert!(!out.contains("' onload='"), "{out}");
    }

    #[test]
    fn neighboring_cells_are_one_rectangle() {
        let mut svg = Svg::new(10.0, 10.0);
        let cells = [(0, 0), (1, 0), (3, 0), (0, 1)];
        svg.cells(&cells, ((1.0, 2.0), 4.0), "e1", "");
        let out = svg.finish("x");
        assert!(out.contains("M0 0h2v1h-2zM3 0h1v1h-1zM0 1h1v1h-1z"), "{out}");
    }

    #[test]
    fn lines_break_at_values_that_are_not_numbers() {
        let mut svg = Svg::new(10.0, 10.0);
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 4.25)];
        svg.polyline(&points, "line", "");
        let out = svg.finish("x");
        assert!(out.contains("M0 1M2 3L3 4.2"), "{out}");
        assert!(!out.contains("NaN"));
    }
}
