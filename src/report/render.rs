//! From inputs to files: builds the document and renders it through two templates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment};
use sha2::{Digest as _, Sha256};

use super::chart::svg::escape;
use super::document::Document;
use super::headline::headlines;
use super::inputs::ReportInputs;
use super::section;
use super::study::Study;
use super::words;
use crate::config::Source;
use crate::error::{Context, Result};
use crate::tables::{ComparisonRow, SetComparisonRow, SweepRow};

const HTML: &str = include_str!("templates/report.html");
const MARKDOWN: &str = include_str!("templates/report.md");
const STYLE: &str = include_str!("templates/report.css");
const SCRIPT: &str = include_str!("templates/report.js");

/// The finished report.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// `report.html`: self-contained, no network, and no script but its own.
    pub html: String,
    /// `report.md`: the same words and tables without the drawings.
    pub markdown: String,
    /// The rows of `comparison.parquet`.
    pub comparison: Vec<ComparisonRow>,
    /// The rows of `sets.parquet`.
    pub sets: Vec<SetComparisonRow>,
    /// The rows of `sweep.parquet`.
    pub sweep: Vec<SweepRow>,
    /// The answer in one sentence.
    pub answer: String,
}

/// Renders the report: pure, and the same bytes for the same inputs.
pub fn render(inputs: &ReportInputs) -> Result<Rendered> {
    let study = Study::new(inputs)?;
    let document = document(&study);
    let context = || "rendering the report".to_owned();

    // Both templates are filled from the same tree, which only knows what is serialized.
    let tree = value(&serde_json::to_value(&document).context(context)?);

    let environment = environment().context(context)?;
    let fill = |name: &str| -> std::result::Result<String, minijinja::Error> {
        let template = environment.get_template(name)?;
        template.render(minijinja::context! {
            doc => &tree,
            style => STYLE,
            script => SCRIPT,
            script_hash => hash(SCRIPT),
        })
    };
    Ok(Rendered {
        html: fill("report.html").context(context)?,
        markdown: fill("report.md").context(context)?,
        comparison: super::comparison::comparison(&study),
        sets: super::sets::comparison(inputs),
        sweep: super::sweep::rows(inputs),
        answer: document.verdict.headline,
    })
}

/// How a content security policy names the one script that may run.
fn hash(script: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(script.as_bytes())))
}

/// The sections in their order; those that have nothing to show are left out.
fn document(study: &Study<'_>) -> Document {
    let headlines = headlines(study);
    let mut sections = vec![section::comparison::section(study, &headlines)];
    sections.extend(section::pictures::section(study));
    sections.extend(section::sets::section(study));
    sections.extend(section::ablation::section(study, &headlines));
    sections.push(section::training::section(study));
    sections.extend(section::sweep::section(study));
    sections.extend(section::experts::section(study));
    sections.extend(section::clusters::section(study));
    sections.extend(section::retrieval::section(study));
    sections.push(section::choices::section(study));
    sections.push(section::claims::section(study, &headlines));
    sections.push(section::paper::section());

    Document {
        title: title(study),
        pictures: section::pictures::pictures(study),
        subtitle: subtitle(study),
        verdict: section::verdict::verdict(study, &headlines),
        sections,
    }
}

/// The title: the configured one, else what is upcycled on what.
fn title(study: &Study<'_>) -> String {
    let title = &study.config().report.title;
    if !title.is_empty() {
        return title.clone();
    }
    let pictures = match study.config().dataset.source {
        Source::Emoji => "emoji",
        Source::Icons => "icons",
        Source::Shapes => "drawn shapes",
        _ => "your own pictures",
    };
    let what = if study.imported() { " of your checkpoint" } else { "" };
    format!("Cluster-aware Upcycling{what} on {pictures}")
}

/// The size of the study in a line.
fn subtitle(study: &Study<'_>) -> String {
    let config = study.config();
    let runs = words::count(study.runs.len(), "run");
    let seeds = words::count(study.most_seeds(), "seed");
    let steps = words::grouped(config.train.optim.steps as f64);
    let (experts, k) = (config.moe.experts, config.moe.top_k);
    let size = config.dataset.image_size;
    format!(
        "{runs} \u{d7} {seeds} \u{b7} {steps} steps each \u{b7} {experts} experts, {k} active \u{b7} pictures of {size}\u{d7}{size}"
    )
}

/// Both templates with their filters. Only HTML is escaped by itself.
fn environment() -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|name| {
        if name == "report.html" { AutoEscape::Html } else { AutoEscape::None }
    });

    // Tags stand on lines of their own, and these lines must not show in the output.
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?,
    );

    // `prose` escapes by itself, so its result must not be escaped a second time.
    environment.add_filter("prose", |text: String| Value::from_safe_string(prose(&text)));
    environment.add_filter("md", |text: String| markdown(&text));

    environment.add_template("report.html", HTML)?;
    environment.add_template("report.md", MARKDOWN)?;
    Ok(environment)
}

/// Escapes for HTML and turns `` `code` `` into `<code>`.
fn prose(text: &str) -> String {
    let escaped = escape(text);
    let mut out = String::with_capacity(escaped.len());

    let parts: Vec<&str> = escaped.split('`').collect();
    for (index, part) in parts.iter().enumerate() {
        // Odd parts lie between two marks, unless the second mark is missing.
        match index % 2 {
            1 if index + 1 < parts.len() => {
                out.push_str("<code>");
                out.push_str(part);
                out.push_str("</code>");
            }
            1 => {
                out.push('`');
                out.push_str(part);
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// Escapes for Markdown outside `` `code` ``; line breaks and pipes cannot break a table.
fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());

    // An odd number of marks opens code that nothing closes: then they are plain text.
    let mut code = false;
    let balanced = text.matches('`').count().is_multiple_of(2);
    for character in text.chars() {
        match character {
            '`' if balanced => {
                code = !code;
                out.push('`');
            }
            '|' => out.push_str("\\|"),
            '&' if !code => out.push_str("&amp;"),
            '<' if !code => out.push_str("&lt;"),
            '\\' | '*' | '_' | '[' | ']' | '`' | '#' if !code => {
                out.push('\\');
                out.push(character);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A JSON tree as template values.
fn value(tree: &serde_json::Value) -> Value {
    match tree {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),

        // Whole numbers stay whole: the template would print 3 as 3.0 otherwise.
        serde_json::Value::Number(number) => number.as_i64().map_or_else(
            || Value::from(number.as_f64().unwrap_or(f64::NAN)),
            Value::from,
        ),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => {
            Value::from(items.iter().map(value).collect::<Vec<_>>())
        }
        serde_json::Value::Object(map) => Value::from(
            map.iter()
                .map(|(key, item)| (key.clone(), value(item)))
                .collect::<std::collections::BTreeMap<String, Value>>(),
        ),
    }
}
