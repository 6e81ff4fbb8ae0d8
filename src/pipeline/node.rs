//! A node of the graph: one stage for one run, what it reads and where its results live.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::artifact::{External, Place};
use crate::config::{Compute, DatasetConfig};
use crate::error::{Context as _, Error, Result};

/// Lists the files that a source of pairs reads. A node holds it as a value, because the
/// pipeline does not know the stage that has it.
pub type ListPairs = fn(&DatasetConfig) -> Result<Vec<External>>;

/// Which files of an upstream result a node reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// All of them.
    All,
    /// These, all of which must exist.
    Listed(&'static [&'static str]),
}

/// One upstream node of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// What the reader calls it: the stage's name, with the run's where it reads several.
    pub name: String,
    /// Whose result is read.
    pub place: Place,
    /// Which of its files.
    pub files: Files,
}

/// Files from outside that a node reads.
#[derive(Debug, Clone)]
pub enum Externals {
    /// None.
    None,
    /// These files.
    Files(Vec<External>),
    /// Every file below a folder, and these.
    Folder(PathBuf, Vec<External>),
    /// Every file that a source of pairs reads, and these.
    Pairs(Box<DatasetConfig>, ListPairs, Vec<External>),
}

/// One stage for one run.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name of the stage.
    pub stage: &'static str,
    /// Where its results live.
    pub place: Place,
    /// The stage's slice of the configuration; it enters the key.
    pub params: Value,
    /// The name of what computes; it enters the key.
    pub backend: &'static str,
    /// The device and the precision that `backend` was chosen by.
    pub compute: Compute,
    /// What it reads from the store.
    pub inputs: Vec<Upstream>,
    /// What it reads from outside.
    pub externals: Externals,
    /// Paths it needs that do not enter the key.
    pub paths: BTreeMap<String, PathBuf>,
}

impl Externals {
    /// The files, sorted by name. A folder is walked and a table of pairs is read at each call.
    pub fn list(&self) -> Result<Vec<External>> {
        match self {
            Self::None => Ok(vec![]),
            Self::Files(files) => Ok(files.clone()),

            Self::Folder(folder, files) => {
                // The order of a folder's entries is up to the file system.
                let mut found = files.clone();
                walk(folder, "", &mut found)?;
                found.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(found)
            }

            // The source knows its files: a table names them, or a pattern matches them.
            Self::Pairs(config, list, files) => {
                let mut found = files.clone();
                found.extend(list(config)?);
                found.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(found)
            }
        }
    }
}

/// Adds every file below a folder to `found`, each named with `prefix` in front. Links are
/// followed, and hidden files are left out.
fn walk(folder: &Path, prefix: &str, found: &mut Vec<External>) -> Result<()> {
    let unreadable = || format!("cannot list the folder {}", folder.display());
    if !folder.exists() {
        return Err(Error::failed(format!(
            "the folder {} does not exist",
            folder.display()
        )));
    }

    for entry in std::fs::read_dir(folder).context(unreadable)? {
        let path = entry.context(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }

        // Names have slashes on every system, because they enter the key.
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            walk(&path, &format!("{name}/"), found)?;
        } else {
            found.push(External { name, path });
        }
    }
    Ok(())
}
