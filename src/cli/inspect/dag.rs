//! The graph of stages, drawn from the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::json;

use super::Answer;
use crate::pipeline::Node;
use crate::stage;

/// How the graph is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Lines for a terminal.
    Ascii,
    /// Graphviz.
    Dot,
    /// Mermaid, for Markdown.
    Mermaid,
}

/// Draws the stages that the plan has.
pub(super) fn draw(nodes: &[Node], format: Format) -> Answer {
    let edges = edges(nodes);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry(node.stage).or_default() += 1;
    }

    let mut text = String::new();
    match format {
        Format::Ascii => ascii(&edges, &counts, &mut text),
        Format::Dot => {
            text.push_str("digraph upcycle {\n  rankdir=LR;\n  node [shape=box];\n");
            each(&edges, |from, to| format!("  {from} -> {to};"), &mut text);
            text.push('}');
        }
        Format::Mermaid => {
            text.push_str("flowchart LR\n");
            each(&edges, |from, to| format!("  {from} --> {to}"), &mut text);
        }
    }

    let lines = text.lines().map(str::to_owned).collect();
    Answer::new(lines, json!({ "edges": edges, "nodes": counts }))
}

/// Which stages each stage reads.
fn edges(nodes: &[Node]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in nodes {
        let reads = edges.entry(node.stage).or_default();
        reads.extend(node.inputs.iter().map(|upstream| upstream.place.stage.as_str()));
    }
    edges
}

/// Writes one line per edge, in the order of the pipeline.
fn each(
    edges: &BTreeMap<&str, BTreeSet<&str>>,
    line: impl Fn(&str, &str) -> String,
    text: &mut String,
) {
    for to in stage::names() {
        for from in stage::names().filter(|from| reads(edges, to).contains(from)) {
            text.push_str(&line(from, to));
            text.push('\n');
        }
    }
}

/// One column per stage: `●` where a stage stands, `│` where its result is still read further
/// down, `├` where it is read.
fn ascii(
    edges: &BTreeMap<&str, BTreeSet<&str>>,
    counts: &BTreeMap<&str, usize>,
    text: &mut String,
) {
    // The order of the stages is that of the pipeline, so every edge leads down.
    let present: Vec<&str> = stage::names().filter(|s| counts.contains_key(s)).collect();
    for (row, stage) in present.iter().enumerate() {
        let mut line = String::new();
        for (column, other) in present.iter().enumerate().take(row + 1) {
            let read_here = reads(edges, stage).contains(other);
            let read_later = present[row + 1..]
                .iter()
                .any(|later| reads(edges, later).contains(other));
            line.push_str(match (column == row, read_here, read_later) {
                (true, ..) => "●",
                (_, true, true) => "├─",
                (_, true, false) => "└─",
                (_, false, true) => "│ ",
                (_, false, false) => "  ",
            });
        }

        // The lines of what is read here run on to the stage's own column.
        let line = carry(&line);

        // Two columns for each stage; the names stand below each other.
        let width = 2 * present.len();
        let count = counts.get(stage).copied().unwrap_or(0);
        let pad = " ".repeat(width.saturating_sub(line.chars().count()));
        let plural = if count == 1 { "node" } else { "nodes" };

        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}{pad} {stage:<12} {count:>3} {plural}");
    }
}

/// Turns the blanks and crossings after the first branch into a line towards the stage.
fn carry(line: &str) -> String {
    let mut branched = false;
    line.chars()
        .map(|c| {
            let drawn = match (branched, c) {
                (true, ' ') => '─',
                (true, '│' | '├') => '┼',
                (true, '└') => '┴',
                (_, c) => c,
            };
            branched |= "├└".contains(c);
            drawn
        })
        .collect()
}

/// The stages that a stage reads.
fn reads<'a>(
    edges: &'a BTreeMap<&str, BTreeSet<&'a str>>,
    stage: &str,
) -> BTreeSet<&'a str> {
    edges.get(stage).cloned().unwrap_or_default()
}
