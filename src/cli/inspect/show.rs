//! What a result contains, what it was made from, and how two results differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::{Answer, View};
use crate::artifact::{Key, Manifest, Place, changes};
use crate::error::{Context, Error, Result};
use crate::io::table::{Column, TableReader};
use crate::io::tensors;
use crate::pipeline::memory::size;

/// Characters of a cell of a printed table at most.
const CELL: usize = 40;

/// A result's manifest, or the head of one of its files.
pub(super) fn show(
    view: &View,
    name: &str,
    file: Option<&str>,
    rows: usize,
) -> Result<Answer> {
    let (place, manifest) = view.result(name)?;
    let Some(file) = file else { return manifest_answer(&place, &manifest) };

    if !manifest.outputs.iter().any(|output| output.path == file) {
        let known: Vec<&str> = manifest.outputs.iter().map(|o| o.path.as_str()).collect();
        let known = known.join(", ");
        return Err(Error::usage(format!(
            "{place} does not have a file {file}; it has: {known}"
        )));
    }

    // Each format is shown as people read it: rows, shapes, or text.
    let path = view.store.dir(&place, &manifest.key).join(file);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => table_head(&path, rows),
        Some("safetensors") => tensor_list(&path),
        _ => {
            let text = std::fs::read_to_string(&path)
                .context(|| format!("{} is not text", path.display()))?;
            let json = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
            Ok(Answer::new(text.lines().map(str::to_owned).collect(), json))
        }
    }
}

/// The manifest: how the result was made, its files and its figures.
fn manifest_answer(place: &Place, manifest: &Manifest) -> Result<Answer> {
    let provenance = &manifest.provenance;
    let mut lines = vec![
        format!("{place}  {}", manifest.key),
        format!(
            "made {} in {:.1} s on {} with {} threads, at most {}",
            provenance.finished,
            provenance.wall,
            provenance.device,
            provenance.threads,
            size(provenance.peak_rss)
        ),
        format!("by {}", provenance.processor),
        format!("from commit {}", provenance.git),
    ];

    for (input, result) in &provenance.inputs {
        lines.push(format!("  reads {input}: {result}"));
    }

    // A file of tensors counts its tensors where a table counts its rows.
    for output in &manifest.outputs {
        let unit = if output.kind == "safetensors" { "tensors" } else { "rows" };
        let rows = output.rows.map(|n| format!("{n} {unit}")).unwrap_or_default();
        let length = size(output.bytes);
        lines.push(format!("  {:<28} {length:>10}  {rows}", output.path));
        if let Some(schema) = &output.schema {
            lines.push(format!("    {}", schema.join(", ")));
        }
    }

    for (metric, value) in &manifest.metrics {
        let value = value.map_or_else(|| "not finite".to_owned(), |v| v.to_string());
        lines.push(format!("  {metric} = {value}"));
    }

    let json = serde_json::to_value(manifest)
        .context(|| "cannot write the manifest as JSON".to_owned())?;
    Ok(Answer::new(lines, json))
}

/// The first rows of a table.
fn table_head(path: &Path, rows: usize) -> Result<Answer> {
    // One batch of rows is read, however long the table is.
    let table = TableReader::open(path)?.next()?.unwrap_or_default();
    let table = table.slice(0, rows.min(table.rows()));

    // Column by column, the name on top: the widest cell decides about the column.
    let columns = table.columns();
    let cells: Vec<Vec<String>> = columns
        .iter()
        .map(|(name, column)| {
            let cells = (0..table.rows()).map(|row| cell(column, row));
            std::iter::once(name.clone()).chain(cells).collect()
        })
        .collect();

    let lines = (0..=table.rows()).map(|row| line(&cells, row)).collect();
    let json = cells
        .iter()
        .map(|column| (column[0].clone(), json!(column[1..])))
        .collect::<serde_json::Map<String, Value>>();
    Ok(Answer::new(lines, Value::Object(json)))
}

/// One row of a table, its cells padded to the width of their columns.
fn line(cells: &[Vec<String>], row: usize) -> String {
    let mut text = String::new();
    for column in cells {
        let width = column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        let pad = width - column[row].chars().count();
        text.push_str(&column[row]);
        text.push_str(&" ".repeat(pad + 2));
    }
    text.trim_end().to_owned()
}

/// One value as text, cut where it would flood the line.
fn cell(column: &Column, row: usize) -> String {
    let text = match column {
        Column::U32(values) => values[row].to_string(),
        Column::F32(values) => values[row].to_string(),
        Column::F64(values) => values[row].to_string(),
        Column::Bool(values) => values[row].to_string(),
        Column::Text(values) => values[row].clone(),
        Column::TextList(values) => values[row].join(" | "),
        Column::Bytes(values) => format!("{} bytes", values[row].len()),
        Column::Vectors { width, data } => {
            let vector = &data[row * width..(row + 1) * width];
            let head: Vec<String> =
                vector.iter().take(4).map(|v| format!("{v:.3}")).collect();
            let more = if *width > 4 { ", …" } else { "" };
            format!("[{}{more}]", head.join(", "))
        }
    };

    match text.char_indices().nth(CELL) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

/// Shape, mean and root mean square of every tensor of a file.
fn tensor_list(path: &Path) -> Result<Answer> {
    let tensors = tensors::read(path)?;
    let mut lines = Vec::new();
    let mut json = serde_json::Map::new();

    for (name, tensor) in &tensors {
        // An empty tensor has a mean of 0 here, and not one of nothing.
        let (count, shape) = (tensor.data.len().max(1) as f64, &tensor.shape);
        let mean = crate::num::sum(&tensor.data) / count;
        let squares: f64 = tensor.data.iter().map(|&v| f64::from(v).powi(2)).sum();
        let rms = (squares / count).sqrt();
        lines.push(format!("{name:<56} {shape:?}  mean {mean:+.4}  rms {rms:.4}"));
        json.insert(name.clone(), json!({ "shape": shape, "mean": mean, "rms": rms }));
    }
    Ok(Answer::new(lines, Value::Object(json)))
}

/// What a result was made from, back to the data.
pub(super) fn lineage(view: &View, name: &str) -> Result<Answer> {
    let (place, manifest) = view.result(name)?;
    let mut lines = vec![format!("{place} {}", manifest.key.short())];
    let mut seen = BTreeSet::new();
    climb(view, &manifest, 1, &mut seen, &mut lines);
    let json = json!({ "result": lines[0], "made_from": seen });
    Ok(Answer::new(lines, json))
}

/// Adds what a result was made from, and what that was made from, each once.
fn climb(
    view: &View,
    manifest: &Manifest,
    depth: usize,
    seen: &mut BTreeSet<String>,
    lines: &mut Vec<String>,
) {
    for result in manifest.provenance.inputs.values() {
        let Some((place, key)) = result.rsplit_once('/') else { continue };
        let Some(key) = Key::parse(key) else { continue };

        let indent = "  ".repeat(depth);
        let again = !seen.insert(result.clone());
        let mark = if again { " (above)" } else { "" };
        lines.push(format!("{indent}{place} {}{mark}", key.short()));

        // A result that stands above was followed there.
        let place = match place.split_once('/') {
            Some((stage, run)) => Place::new(stage, Some(run.to_owned())),
            None => Place::new(place, None),
        };
        if !again && let Ok(Some(upstream)) = view.store.manifest(&place, &key) {
            climb(view, &upstream, depth + 1, seen, lines);
        }
    }
}

/// Parameters and figures of two results side by side.
pub(super) fn diff(view: &View, left: &str, right: &str) -> Result<Answer> {
    let (_, a) = view.result(left)?;
    let (_, b) = view.result(right)?;
    let found = changes(&a.key_preimage, &b.key_preimage);
    let changed: Vec<String> = found.iter().map(ToString::to_string).collect();
    let mut lines = changed.clone();

    // A metric that only one of them has is in the JSON, beside a null.
    let mut json = BTreeMap::new();
    let metrics: BTreeSet<&String> = a.metrics.keys().chain(b.metrics.keys()).collect();
    for metric in metrics {
        let value = |m: &Manifest| m.metrics.get(metric).copied().flatten();
        let (x, y) = (value(&a), value(&b));
        json.insert(metric.clone(), json!([x, y]));
        if let (Some(x), Some(y)) = (x, y) {
            lines.push(format!("{metric} {x} → {y} ({:+.4})", y - x));
        }
    }

    if lines.is_empty() {
        lines.push("the same".to_owned());
    }
    Ok(Answer::new(lines, json!({ "changes": changed, "metrics": json })))
}
