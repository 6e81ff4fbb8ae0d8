//! What is written about a set: `CLIP_benchmark`'s JSON, and the same numbers as a table.
//!
//! The JSON has the six fields of `CLIP_benchmark`, so that its `build` command and people's
//! notebooks can read it, and one field of ours: `upcycle`, with the key of what was measured.
//! A result with the same key need not be made again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::output;
use crate::error::{Context as _, Result};
use crate::tables::{self, Measurement, SetRow};

/// The content of `<set>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub dataset: String,
    pub model: String,
    pub pretrained: String,
    pub task: String,
    /// Absent values (acc5 below five classes) are null.
    pub metrics: BTreeMap<String, Option<f64>>,
    pub language: String,
    pub upcycle: Details,
}

/// What `CLIP_benchmark` has no field for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Details {
    /// Hash of the model, its tokenizer and every setting.
    pub key: String,
    pub split: String,
    pub pictures: usize,
    /// Keys of the pairs that could not be used.
    pub skipped: Vec<String>,
}

/// The two files with the results of one set.
#[derive(Debug)]
pub(super) struct ResultFiles {
    json: PathBuf,
    parquet: PathBuf,
}

impl ResultFiles {
    /// The files in `folder` of the set whose name without slashes is `slug`.
    pub(super) fn new(folder: &Path, slug: &str) -> Self {
        let file = |extension: &str| folder.join(format!("{slug}.{extension}"));
        Self { json: file("json"), parquet: file("parquet") }
    }

    /// The result that is there; `None` if there is none that can be read. A result that
    /// cannot be read is measured again, so the reason does not matter.
    pub(super) fn existing(&self) -> Option<Outcome> {
        let text = std::fs::read(&self.json).ok()?;
        self.parquet.is_file().then(|| serde_json::from_slice(&text).ok())?
    }

    /// Writes both files. The JSON comes last, because its presence says that the result is
    /// complete.
    pub(super) fn write(&self, outcome: &Outcome, found: &[Measurement]) -> Result<()> {
        let rows = rows(outcome, found);
        output::file(&self.parquet, |path| tables::write(path, rows))?;

        let text = serde_json::to_string_pretty(outcome)
            .context(|| format!("describing {}", outcome.dataset))?;
        output::file(&self.json, |path| {
            std::fs::write(path, text + "\n")
                .context(|| format!("writing {}", path.display()))
        })
    }
}

/// The measurements as rows of the table, each with the names it was measured under.
fn rows(outcome: &Outcome, found: &[Measurement]) -> Vec<SetRow> {
    let row = |m: &Measurement| SetRow {
        dataset: outcome.dataset.clone(),
        model: outcome.model.clone(),
        pretrained: outcome.pretrained.clone(),
        // The name by which the user knows the split, and not that of its role here.
        measured: Measurement { split: outcome.upcycle.split.clone(), ..m.clone() },
    };
    found.iter().map(row).collect()
}
