//! Stage `report`: one page for people, and its comparison as a table.
//!
//! Writes `report.html`, `report.md`, `comparison.parquet`, `sets.parquet`, `sweep.parquet`, `answer.json`,
//! and `pipeline.yaml`, the complete configuration that makes all of it again.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Config;
use crate::error::{Context as _, Result};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::report;
use crate::tables::{self, ComparisonRow, Row as _, SetComparisonRow, SweepRow};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "report",
    version: 1,
    width: Width::Whole,
    reach: Reach::Process,
    about: "Compares all runs in one report.",
    run,
};

/// Stands for the path of a checkpoint, which the report does not see.
pub const IMPORTED: &str = "(imported)";

/// Stage `report`: it shows the configuration, so it sees all of it but the paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportParams {
    /// The whole configuration.
    pub config: Config,
}

/// The report's answer for programs and for the last line of `make`.
pub const ANSWER: &str = "answer.json";

/// The content of [`ANSWER`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The verdict in one sentence.
    pub answer: String,
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let ReportParams { config } = job.params()?;

    // The plan names the inputs of the report after their places.
    let find = |stage: &str, run: &str| {
        let name =
            if run.is_empty() { stage.to_owned() } else { format!("{stage}/{run}") };
        job.inputs.dir(&name).map(Path::to_owned)
    };

    let rendered = report::render(&report::load(&config, &find)?)?;
    let answer = Answer { answer: rendered.answer };
    let answer = serde_json::to_string_pretty(&answer)
        .context(|| format!("describing {ANSWER}"))?;
    for (file, text) in [
        ("report.html", rendered.html),
        ("report.md", rendered.markdown),
        (ANSWER, answer + "\n"),
        (report::CONFIGURATION, configuration(job, &config)?),
    ] {
        let path = job.output(file);
        std::fs::write(&path, text)
            .context(|| format!("cannot write {}", path.display()))?;
    }
    tables::write(&job.output(SetComparisonRow::FILE), rendered.sets)?;
    tables::write(&job.output(SweepRow::FILE), rendered.sweep)?;
    tables::write(&job.output(ComparisonRow::FILE), rendered.comparison)
}

/// The configuration with its paths, as YAML. Paths are absolute, so that it may be read from
/// anywhere on this machine.
fn configuration(job: &Job<'_>, config: &Config) -> Result<String> {
    let describing = || "describing the configuration".to_owned();
    let mut tree = serde_json::to_value(config).context(describing)?;
    for (key, path) in &job.node.paths {
        let pointer = format!("/{}", key.replace('.', "/"));
        let place = tree.pointer_mut(&pointer);
        if let Some(place) = place.filter(|_| !path.as_os_str().is_empty()) {
            let absolute = std::path::absolute(path).context(describing)?;
            *place = Value::from(absolute.to_string_lossy().into_owned());
        }
    }
    let head =
        "# The complete configuration of this report, written by the stage `report`.\n";
    let mut out = head.to_owned();
    yaml(&tree, 0, &mut out);
    Ok(out)
}

/// Mappings as indented blocks, everything else as JSON, which is YAML too.
fn yaml(tree: &Value, depth: usize, out: &mut String) {
    for (key, value) in tree.as_object().into_iter().flatten() {
        let indent = "  ".repeat(depth);
        let key = Value::from(key.as_str());
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let _ = writeln!(out, "{indent}{key}:");
                yaml(value, depth + 1, out);
            }
            other => {
                let _ = writeln!(out, "{indent}{key}: {other}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load, load_default};

    #[test]
    fn the_written_configuration_says_the_same_as_the_one_it_came_from() {
        let set = [
            "seeds=[3]",
            "evaluate.pixels=0",
            "report.title='It''s: \"mine\" # and yours'",
        ];
        let set = set.iter().map(|&s| s.to_owned()).collect();
        let overrides = Overrides { profile: Some("full".to_owned()), set };
        let config = load_default(&overrides).unwrap();
        let mut text = String::new();
        yaml(&serde_json::to_value(&config).unwrap(), 0, &mut text);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipeline.yaml");
        std::fs::write(&path, text).unwrap();
        assert_eq!(load(&path, &Overrides::default()).unwrap(), config);
    }
}
