//! What may be drawn: SVG without the parts that grow or never end.
//!
//! SVG is a language. A drawing of a few lines can refer to itself twice, forty times over,
//! and a renderer then works until the power goes. The icon sets that this crate draws need
//! little of it, so that anything far beyond them is refused before it is rendered: long or
//! deep documents, style sheets, document types, and references that multiply.

use std::collections::BTreeMap;

use resvg::usvg::roxmltree::{Document, Node, ParsingOptions};

use crate::error::{Context, Error, Result};

/// Longest document; the longest icon has 898,083 bytes.
const MOST_BYTES: usize = 2 << 20;

/// Most nodes of a document.
const MOST_NODES: u32 = 100_000;

/// Deepest nesting, references followed; icons have fewer than ten levels.
const MOST_LEVELS: usize = 100;

/// Most elements drawn, what is referred to counted every time.
const MOST_DRAWN: u64 = 100_000;

/// Parses a document, refusing what is no plain drawing.
pub(super) fn parse(svg: &str) -> Result<Document<'_>> {
    let context = || "parsing an SVG drawing".to_owned();
    let refuse = |why: String| Err(Error::corrupt(why)).context(context);
    if svg.len() > MOST_BYTES {
        return refuse(format!("{} bytes, accepted are {MOST_BYTES}", svg.len()));
    }
    let options = ParsingOptions { nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(svg, options).context(context)?;
    if document.descendants().any(|node| node.tag_name().name() == "style") {
        return refuse("it has a style sheet".to_owned());
    }
    let mut count = Count::of(&document);
    count.drawn(document.root(), 0).map_err(Error::corrupt).context(context)?;
    Ok(document)
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

    fn drawn(&mut self, node: Node<'a, 'input>, level: usize) -> Result<u64, String> {
        if level > MOST_LEVELS {
            return Err(format!("it is nested deeper than {MOST_LEVELS} levels"));
        }
        match self.known.get(&node.id().get_usize()) {
            Some(Some(drawn)) => return Ok(*drawn),
            // The element is being counted: it refers to itself, which usvg ignores.
            Some(None) => return Ok(0),
            None => {}
        }
        self.known.insert(node.id().get_usize(), None);
        let mut drawn = 1_u64;
        let referred: Vec<_> = node
            .attributes()
            .flat_map(|attribute| references(attribute.name(), attribute.value()))
            .filter_map(|id| self.by_id.get(id).copied())
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
