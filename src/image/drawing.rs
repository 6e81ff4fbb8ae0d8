//! What may be drawn: SVG without the parts that grow or never end.
//!
//! SVG is a language. A drawing of a few lines can refer to itself twice, forty times over,
//! and a renderer then works until the power goes. The icon sets that this crate draws need
//! little of it, so that anything far beyond them is refused before it is rendered: long or
//! deep documents, style sheets, document types, references that multiply or lead back to
//! where they began, and arcs so large that their approximation by curves takes hours.

use std::collections::BTreeMap;

use std::str::FromStr as _;

use resvg::usvg::roxmltree::{Document, Node, ParsingOptions};
use svgtypes::{Length, PathParser, PathSegment};

use crate::error::{Context, Error, Result};

/// Longest document; the longest icon has 898,083 bytes.
const MOST_BYTES: usize = 2 << 20;

/// Most nodes of a document.
const MOST_NODES: u32 = 100_000;

/// Deepest nesting, references followed; icons have fewer than ten levels.
const MOST_LEVELS: usize = 100;

/// Most elements drawn, what is referred to counted every time.
const MOST_DRAWN: u64 = 100_000;

/// Largest radius of an arc or ellipse, in the drawing's units. An arc of radius r is
/// approximated by about `r^(1/6)` curves, which are then worked on in quadratic time.
const LARGEST_RADIUS: f64 = 1e9;

/// Attributes that refer to elements and hold for everything within.
const PAINTS: [&str; 7] =
    ["fill", "stroke", "marker", "marker-start", "marker-mid", "marker-end", "style"];

/// Parses a document, refusing what is no plain drawing.
pub(super) fn parse(svg: &str) -> Result<Document<'_>> {
    let context = || "parsing an SVG drawing".to_owned();
    let refuse = |why: String| Err(Error::corrupt(why)).context(context);

    if svg.len() > MOST_BYTES {
        return refuse(format!("{} bytes, accepted are {MOST_BYTES}", svg.len()));
    }

    let options = ParsingOptions { nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(svg, options).context(context)?;

    // Rules of a style sheet could refer to elements unseen by the count below.
    if document.descendants().any(|node| node.tag_name().name() == "style") {
        return refuse("it has a style sheet".to_owned());
    }

    for node in document.descendants() {
        let huge = node.attributes().any(|a| is_huge(a.name(), a.value()));
        if huge {
            return refuse(format!("an arc has a radius above {LARGEST_RADIUS}"));
        }
    }

    let mut count = Count::of(&document);
    count.drawn(document.root(), 0).map_err(Error::corrupt).context(context)?;
    Ok(document)
}

/// Whether an attribute makes an arc of an extreme radius.
fn is_huge(name: &str, value: &str) -> bool {
    match name {
        "d" => largest_radius(value) > LARGEST_RADIUS,
        "r" | "rx" | "ry" => {
            Length::from_str(value).is_ok_and(|length| length.number > LARGEST_RADIUS)
        }
        _ => false,
    }
}

/// An upper bound of the radii of a path's arcs. Radii that do not span the ends of their arc
/// are scaled up until they do; ends lie at most twice the path's reach apart.
fn largest_radius(path: &str) -> f64 {
    let (mut reach, mut largest) = (0.0_f64, 0.0_f64);
    // The renderer, too, draws what comes before an error.
    for segment in PathParser::from(path).map_while(Result::ok) {
        let (abs, x, y) = match segment {
            PathSegment::MoveTo { abs, x, y }
            | PathSegment::LineTo { abs, x, y }
            | PathSegment::CurveTo { abs, x, y, .. }
            | PathSegment::SmoothCurveTo { abs, x, y, .. }
            | PathSegment::Quadratic { abs, x, y, .. }
            | PathSegment::SmoothQuadratic { abs, x, y }
            | PathSegment::EllipticalArc { abs, x, y, .. } => (abs, x, y),
            PathSegment::HorizontalLineTo { abs, x } => (abs, x, 0.0),
            PathSegment::VerticalLineTo { abs, y } => (abs, 0.0, y),
            PathSegment::ClosePath { .. } => (true, 0.0, 0.0),
        };

        // How far from the origin the path may have come: relative steps add up.
        let step = x.abs() + y.abs();
        reach = if abs { reach.max(step) } else { reach + step };

        if let PathSegment::EllipticalArc { rx, ry, .. } = segment {
            let (less, more) = (rx.abs().min(ry.abs()), rx.abs().max(ry.abs()));
            // Without a radius the arc is a straight line.
            if less > 0.0 {
                largest = largest.max(more * (2.0 * reach / less).max(1.0));
            }
        }
    }
    largest
}

/// The elements that a renderer meets, counted once for every element.
struct Count<'a, 'input> {
    by_id: BTreeMap<&'a str, Node<'a, 'input>>,
    known: BTreeMap<usize, Option<u64>>,
}

impl<'a, 'input> Count<'a, 'input> {
    fn of(document: &'a Document<'input>) -> Self {
        let named = document.descendants().filter_map(|n| Some((n.attribute("id")?, n)));
        Self { by_id: named.collect(), known: BTreeMap::new() }
    }

    /// What an element is painted with because an element around it says so. Gradients refer to
    /// gradients only and are left out.
    fn inherited(&self, node: Node<'a, 'input>) -> Vec<Node<'a, 'input>> {
        let around = node.ancestors().skip(1).flat_map(|node| node.attributes());
        around
            .filter(|a| PAINTS.contains(&a.name()) && a.value().contains("url("))
            .flat_map(|a| references(a.name(), a.value()))
            .filter_map(|id| self.by_id.get(id).copied())
            .filter(|found| !found.tag_name().name().ends_with("Gradient"))
            .collect()
    }

    fn drawn(&mut self, node: Node<'a, 'input>, level: usize) -> Result<u64, String> {
        if level > MOST_LEVELS {
            return Err(format!("it is nested deeper than {MOST_LEVELS} levels"));
        }

        match self.known.get(&node.id().get_usize()) {
            Some(Some(drawn)) => return Ok(*drawn),
            // The element is being counted. usvg ignores some circles, and ends in others.
            Some(None) => return Err("it refers to itself".to_owned()),
            None => {}
        }

        self.known.insert(node.id().get_usize(), None);
        let mut drawn = 1_u64;

        let own = node.attributes();
        let own = own.flat_map(|a| references(a.name(), a.value()));
        let referred: Vec<_> = own
            .filter_map(|id| self.by_id.get(id).copied())
            .chain(self.inherited(node))
            .collect();

        for part in node.children().filter(Node::is_element).chain(referred) {
            drawn = drawn.saturating_add(self.drawn(part, level + 1)?);
        }

        if drawn > MOST_DRAWN {
            return Err(format!("its references draw more than {MOST_DRAWN} elements"));
        }

        self.known.insert(node.id().get_usize(), Some(drawn));
        Ok(drawn)
    }
}

/// The ids that an attribute refers to: `href="#id"`, and `url(#id)` anywhere.
fn references<'a>(name: &str, value: &'a str) -> Vec<&'a str> {
    let mut ids: Vec<&str> = value
        .split("url(")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter_map(|inner| inner.trim_matches(['"', '\'', ' ']).strip_prefix('#'))
        .collect();
    if name == "href" {
        ids.extend(value.trim().strip_prefix('#'));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const RADIUS: &str = "radius above";

    fn refused(body: &str, why: &str) -> bool {
        let open = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 64 64\">";
        match parse(&format!("{open}{body}</svg>")) {
            Ok(_) => false,
            Err(error) => format!("{error:?}").contains(why),
        }
    }

    #[test]
    fn arcs_of_extreme_radii_are_refused_and_of_usual_ones_not() {
        for d in [
            "M0 0A1e30 1e30 0 0 1 9 9",
            "M0 0A5 5 0 0 1 9 55555555555555555555",
            "M1 2h5e29a5 5 0 0 1 9 9A5 5 0 0 1 9 9",
            // Radii that the ends pull apart: 2e7 / 1e-7 times the larger one.
            "M1e7 0A1e-7 1e7 0 0 1 9 9",
        ] {
            assert!(refused(&format!("<path d=\"{d}\"/>"), RADIUS), "{d}");
        }
        for d in [
            "M1 2h30v9q3 4 5 6A5 5 0 0 1 9 9z",
            "M0 0a.01.5 0 0110 10",
            "M0 0A0 1e30 0 0 1 9 9",
        ] {
            assert!(!refused(&format!("<path d=\"{d}\"/>"), RADIUS), "{d}");
        }
        assert!(refused("<ellipse cx=\"1\" cy=\"1\" rx=\"1e30mm\" ry=\"2\"/>", RADIUS));
        assert!(refused("<circle r=\"55555555555555555\"/>", RADIUS));
        assert!(!refused("<circle r=\"50%\"/>", RADIUS));
    }

    /// The first was found by `tests/fuzz`: usvg followed it until the stack was full.
    #[test]
    fn drawings_that_lead_back_to_themselves_are_refused() {
        let why = "it refers to itself";
        let pattern = |inside: &str| format!("<pattern id=\"q\">{inside}</pattern>");
        let path = "<path d=\"M0 0h9v9z\"/>";
        assert!(refused(
            &format!("<g fill=\"url(#q)\">{}{path}</g>", pattern(path)),
            why
        ));
        assert!(refused(&pattern("<path fill=\"url(#q)\" d=\"M0 0h9v9z\"/>"), why));
        assert!(refused("<g id=\"a\"><use href=\"#a\"/></g>", why));
        let other = format!("{}<g fill=\"url(#q)\">{path}{path}</g>", pattern(path));
        assert!(!refused(&other, why));
    }
}
