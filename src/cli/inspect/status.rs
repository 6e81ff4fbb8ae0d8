//! Which nodes are fresh, and why the others are not.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Answer, View};
use crate::error::Result;
use crate::pipeline::{Node, Verdict, one_line};
use crate::stage;

/// One line per stage, and one for each of its nodes that is not fresh.
pub(super) fn status(view: &View) -> Result<Answer> {
    let survey = view.survey();
    let mut of_stage: BTreeMap<&str, Vec<(&Node, Verdict)>> = BTreeMap::new();
    let mut json = Vec::new();
    for node in &view.nodes {
        let verdict = survey.verdict(node)?;
        json.push(to_json(node, &verdict));
        of_stage.entry(node.stage).or_default().push((node, verdict));
    }

    // In the order of the pipeline: what is stale below is often so because of what is above.
    let mut lines = Vec::new();
    for stage in stage::names() {
        let Some(nodes) = of_stage.get(stage) else { continue };
        let fresh =
            nodes.iter().filter(|(_, verdict)| *verdict == Verdict::Fresh).count();
        // The plan gives all nodes of a stage one backend.
        let (count, backend) = (nodes.len(), nodes[0].0.backend);
        lines.push(format!("{stage:<12} {fresh:>3} of {count:>3} fresh   {backend}"));

        for (node, verdict) in nodes.iter().filter(|(_, v)| *v != Verdict::Fresh) {
            let run = node.place.run.as_deref().unwrap_or(stage);
            let (word, reasons) = words(verdict);
            lines.push(format!("  {run:<28} {word:<8} {}", one_line(&reasons)));
        }
    }
    Ok(Answer::new(lines, Value::Array(json)))
}

/// Every reason of every node that is not fresh.
pub(super) fn why(view: &View, name: Option<&str>) -> Result<Answer> {
    let nodes = match name {
        Some(name) => view.named(name)?,
        None => view.nodes.iter().collect(),
    };

    let survey = view.survey();
    let (mut lines, mut json) = (Vec::new(), Vec::new());
    for node in nodes {
        let verdict = survey.verdict(node)?;
        json.push(to_json(node, &verdict));
        if verdict == Verdict::Fresh {
            continue;
        }

        let (word, reasons) = words(&verdict);
        lines.push(format!("{}: {word}", node.place));
        lines.extend(reasons.into_iter().map(|reason| format!("  {reason}")));
    }
    if lines.is_empty() {
        lines.push("everything is fresh".to_owned());
    }
    Ok(Answer::new(lines, Value::Array(json)))
}

/// A verdict as one word and its reasons.
fn words(verdict: &Verdict) -> (&'static str, Vec<String>) {
    match verdict {
        Verdict::Fresh => ("fresh", Vec::new()),
        Verdict::Reusable(why) => ("reusable", why.clone()),
        Verdict::Runs(why) => ("stale", why.clone()),
        Verdict::Damaged(what) => ("damaged", what.clone()),
        Verdict::Waits(place) => ("waits", vec![format!("for {place}")]),
        Verdict::Blocked(why) => ("blocked", vec![why.clone()]),
    }
}

/// A verdict for programs.
fn to_json(node: &Node, verdict: &Verdict) -> Value {
    let (state, reasons) = words(verdict);
    json!({
        "node": node.place.to_string(), "backend": node.backend, "state": state,
        "reasons": reasons,
    })
}
