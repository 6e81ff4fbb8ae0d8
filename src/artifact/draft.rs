//! A result being made: a folder to write into and figures to keep.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files;
use crate::error::Result;

/// Where a stage writes. Whatever lies in the folder at the end is hashed and published; if
/// the stage fails, nothing is.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    /// Where resumable checkpoints go, if there are any.
    scratch: PathBuf,
    metrics: BTreeMap<String, Option<f64>>,
}

impl Draft {
    /// A draft that writes into `folder` and resumes from `scratch`; for tests of stages.
    /// The store makes its own.
    pub fn new(folder: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), scratch: scratch.into(), metrics: BTreeMap::new() }
    }

    /// The path of an output. Folders inside the name are created; a failure to do so shows
    /// when the file is written.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        if let Some(parent) = path.parent() {
            let _ = std::fs::create_dir_all(parent);
        }
        path
    }

    /// The folder of all outputs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps a figure in the manifest, for `diff` and `show`.
    pub fn metric(&mut self, name: &str, value: f64) {
        self.metrics.insert(name.to_owned(), value.is_finite().then_some(value));
    }

    /// A folder tied to this result's key that survives a kill: resumable checkpoints go
    /// there. It is removed once the result is published.
    pub fn scratch(&self) -> Result<PathBuf> {
        files::make_folder(&self.scratch)?;
        Ok(self.scratch.clone())
    }

    /// The figures that were kept.
    pub(super) fn into_metrics(self) -> BTreeMap<String, Option<f64>> {
        self.metrics
    }
}
