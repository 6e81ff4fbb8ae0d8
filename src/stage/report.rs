//! Stage `report`: one page for people, and its comparison as a table.
//!
//! Writes `report.html`, `report.md`, `comparison.parquet`, `sets.parquet` and `answer.json`.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Context as _, Result};
use crate::pipeline::{Job, Stage, Width};
use crate::report;
use crate::tables::{self, ComparisonRow, Row as _, SetComparisonRow};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "report",
    version: 1,
    width: Width::Whole,
    about: "Compares all runs in one report.",
    run,
};

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
        job.inputs.dir(&name).map(std::path::Path::to_owned)
    };

    let rendered = report::render(&report::load(&config, &find)?)?;
    let answer = Answer { answer: rendered.answer };
    let answer = serde_json::to_string_pretty(&answer)
        .context(|| format!("describing {ANSWER}"))?;
    for (file, text) in [
        ("report.html", rendered.html),
        ("report.md", rendered.markdown),
        (ANSWER, answer + "\n"),
    ] {
        let path = job.output(file);
        std::fs::write(&path, text)
            .context(|| format!("cannot write {}", path.display()))?;
    }
    tables::write(&job.output(SetComparisonRow::FILE), rendered.sets)?;
    tables::write(&job.output(ComparisonRow::FILE), rendered.comparison)
}
