//! Names: the folder of a node, and files from outside the store.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where the results of one node live: a stage and, for most stages, a run of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Name of the stage.
    pub stage: String,
    /// Name of the run, for stages that have several.
    pub run: Option<String>,
}

impl Place {
    /// Names a place.
    pub fn new(stage: impl Into<String>, run: Option<String>) -> Self {
        Self { stage: stage.into(), run }
    }

    /// The folder of all results of this place.
    pub fn folder(&self, root: &Path) -> PathBuf {
        let stage = root.join(&self.stage);
        match &self.run {
            Some(run) => stage.join(run),
            None => stage,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.run {
            Some(run) => write!(f, "{}/{run}", self.stage),
            None => f.write_str(&self.stage),
        }
    }
}

/// A file from outside the store. Its name and its content enter the key, its path does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Stable name, for example the path inside the user's folder.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}
