//! A folder of results that appears whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::artifact::remove_tree;
use crate::error::{Context as _, Error, Result};

/// A folder being written, beside the place where it is to be.
#[derive(Debug)]
pub(super) struct OutFolder {
    target: PathBuf,
    draft: PathBuf,
    replace: bool,
    done: bool,
}

impl OutFolder {
    /// Begins a folder; refuses a place that is taken, before any work, unless `replace`.
    pub(super) fn begin(target: &Path, replace: bool) -> Result<Self> {
        let shown = target.display();
        let name = target.file_name().ok_or_else(|| {
            Error::usage(format!(
                "--out {shown} is not a valid output path, expected the name of a folder"
            ))
        })?;
        if target.exists() && !replace {
            return Err(Error::usage(format!(
                "--out {shown} exists already: choose another name, or replace it with --force"
            )));
        }

        // What a crash of this process's id left behind is nobody's result.
        let name = name.to_string_lossy();
        let draft = target.with_file_name(format!(".{name}.{}", std::process::id()));
        remove_tree(&draft)?;
        fs::create_dir_all(&draft).context(|| format!("cannot create {shown}"))?;
        Ok(Self { target: target.to_owned(), draft, replace, done: false })
    }

    /// The path of a file to write.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.draft.join(name)
    }

    /// Puts the folder in its place, all files on disk first.
    pub(super) fn publish(mut self) -> Result<()> {
        let place = || format!("cannot publish {}", self.target.display());
        for entry in fs::read_dir(&self.draft).context(place)? {
            let file = File::open(entry.context(place)?.path()).context(place)?;
            file.sync_all().context(place)?;
        }

        if self.replace && self.target.exists() {
            // Two renames: no moment shows half a folder, one shows none.
            let old = self.draft.with_extension("old");
            remove_tree(&old)?;
            fs::rename(&self.target, &old).context(place)?;
            fs::rename(&self.draft, &self.target).context(place)?;
            remove_tree(&old)?;
        } else {
            fs::rename(&self.draft, &self.target).context(place)?;
        }

        self.done = true;
        Ok(())
    }
}

impl Drop for OutFolder {
    fn drop(&mut self) {
        if !self.done {
            // What failed says more than a folder that stays behind.
            let _ = remove_tree(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_folder_appears_whole_or_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let out = OutFolder::begin(&target, false).unwrap();
        fs::write(out.path("a"), "1").unwrap();
        assert!(!target.exists());
        drop(out);
        assert!(names(root.path()).is_empty());
        let out = OutFolder::begin(&target, false).unwrap();
        fs::write(out.path("a"), "1").unwrap();
        out.publish().unwrap();
        assert_eq!(names(root.path()), ["out"]);
        let error = OutFolder::begin(&target, false).unwrap_err();
        assert!(error.message().contains("--force"), "{error}");
        let out = OutFolder::begin(&target, true).unwrap();
        fs::write(out.path("b"), "2").unwrap();
        assert_eq!(names(&target), ["a"]);
        out.publish().unwrap();
        assert_eq!(
            (names(root.path()), names(&target)),
            (vec!["out".into()], vec!["b".into()])
        );
    }
}
