//! What is written about a set: `CLIP_benchmark`'s JSON and the same as a table.
//!
//! The JSON has its six fields, so that its `build` and everybody's notebooks read it, and one
//! of ours: `upcycle`, with the key of what was measured. A result with the same key need not
//! be made again.

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

/// What `CLIP_benchmark` does not say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Details {
    /// Hash of the model, its tokenizer and every setting.
    pub key: String,
    pub split: String,
    pub pictures: usize,
    /// Pairs that could not be used.
    pub skipped: Vec<String>,
}

/// The two files of a set.
#[derive(Debug)]
pub(super) struct Place {
    json: PathBuf,
    parquet: PathBuf,
}

impl Place {
    pub(super) fn new(folder: &Path, slug: &str) -> Self {
        let file = |extension: &str| folder.join(format!("{slug}.{extension}"));
        Self { json: file("json"), parquet: file("parquet") }
    }

    /// The result that is there; `None` if there is none that can be read.
    pub(super) fn existing(&self) -> Option<Outcome> {
        let text = std::fs::read(&self.json).ok()?;
        self.parquet.is_file().then(|| serde_json::from_slice(&text).ok())?
    }

    /// Writes both files, the JSON last: it says that the result is there.
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
