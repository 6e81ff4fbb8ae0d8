//! Files and folders that a person asked for by path: written beside their place, then
//! renamed into it.
//!
//! The store of artifacts has its own, stricter way; this is for tools whose results leave
//! the pipeline. A killed tool leaves a hidden scratch sibling and never half a result.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::artifact::remove_tree;
use crate::error::{Context, Error, Result};

/// Writes one file through `write`, which is given a scratch path; an older file is replaced.
pub(super) fn file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.is_dir() {
        let place = path.display();
        return Err(Error::usage(format!(
            "{place} is a folder, expected the name of a file"
        )));
    }

    // A reader sees the old file or the new one, and never a part.
    let scratch = sibling(path)?;
    let result = write(&scratch).and_then(|()| keep(&scratch)).and_then(|()| {
        fs::rename(&scratch, path).context(|| format!("writing {}", path.display()))
    });

    if result.is_err() {
        // The error to report is that of the write, and not one of cleaning up after it.
        let _ = fs::remove_file(&scratch);
    }
    result
}

/// Makes a new folder through `fill`, which is given a scratch folder to write files into.
pub(super) fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let draft = Folder::begin(path, Existing::Refuse)?;
    fill(&draft.scratch)?;
    draft.publish()
}

/// What becomes of a folder that is in the place of the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// It is refused unless it is empty: nothing is mixed or overwritten.
    Refuse,
    /// The same, for a command whose option `--force` would replace it.
    RefuseUnlessForced,
    /// It is replaced, whole, when the new one is complete.
    Replace,
}

/// A folder being written beside its place. Dropped before it is published, it leaves nothing.
#[derive(Debug)]
pub(super) struct Folder {
    target: PathBuf,
    scratch: PathBuf,
    existing: Existing,
}

impl Folder {
    /// Begins a folder. A place that is taken is refused here, before any work.
    pub(super) fn begin(target: &Path, existing: Existing) -> Result<Self> {
        let place = target.display();
        match fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
            Ok(true) if existing != Existing::Replace => {
                let can_force = existing == Existing::RefuseUnlessForced;
                let or_force =
                    if can_force { ", or replace it with --force" } else { "" };
                return Err(Error::usage(format!(
                    "{place} exists and is not empty; give another --out{or_force}"
                )));
            }
            Err(_) if target.exists() => {
                return Err(Error::usage(format!("{place} exists and is not a folder")));
            }
            _ => {}
        }

        // A killed process of the same id may have left a scratch folder of this name.
        let scratch = sibling(target)?;
        remove_tree(&scratch)?;
        fs::create_dir(&scratch).context(|| format!("creating {place}"))?;
        Ok(Self { target: target.to_owned(), scratch, existing })
    }

    /// The path of a file to write.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Puts the folder in its place, with all files on disk first.
    pub(super) fn publish(self) -> Result<()> {
        let place = || format!("creating {}", self.target.display());
        for entry in fs::read_dir(&self.scratch).context(place)? {
            keep(&entry.context(place)?.path())?;
        }
        sync(&self.scratch)?;

        // A folder cannot be renamed onto one that is not empty. Of the two renames no moment
        // shows half a folder, though one shows none.
        if self.existing == Existing::Replace && self.target.exists() {
            let old = self.scratch.with_extension("old");
            remove_tree(&old)?;
            fs::rename(&self.target, &old).context(place)?;
            fs::rename(&self.scratch, &self.target).context(place)?;
            remove_tree(&old)?;
        } else {
            fs::rename(&self.scratch, &self.target).context(place)?;
        }

        let parent = self.target.parent();
        parent.filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After publishing there is nothing left to remove. Before it, the error of the work
        // says more than one about its leftovers.
        let _ = remove_tree(&self.scratch);
    }
}

/// A hidden name beside `path`, in a folder that is made if it does not exist.
fn sibling(path: &Path) -> Result<PathBuf> {
    let place = path.display();
    let Some(name) = path.file_name() else {
        return Err(Error::usage(format!("{place} is not a valid output path")));
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .context(|| format!("creating {}", parent.display()))?;
    }

    // In the same folder, so that a rename stays within one file system; the process's id keeps
    // two tools that write the same path apart.
    let (name, process) = (name.to_string_lossy(), std::process::id());
    Ok(path.with_file_name(format!(".{name}.{process}")))
}

/// Makes a file readable for all, as the files of other tools are, and waits until it is on the
/// disk.
fn keep(path: &Path) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o644))
        .context(|| format!("setting the mode of {}", path.display()))?;
    sync(path)
}

/// Waits until a file or a folder is on the disk.
fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .context(|| format!("syncing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_fill_leaves_nothing_behind() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("a/b");
        let failed = folder(&out, |scratch| {
            fs::write(scratch.join("half"), "x").unwrap();
            Err(Error::failed("no more"))
        });
        assert_eq!(failed.unwrap_err().message(), "no more");
        assert_eq!(fs::read_dir(base.path().join("a")).unwrap().count(), 0);
        let failed = file(&out, |_| Err(Error::failed("no more")));
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(base.path().join("a")).unwrap().count(), 0);
    }

    #[test]
    fn an_old_folder_stays_whole_until_the_new_one_replaces_it() {
        let base = tempfile::tempdir().unwrap();
        let target = base.path().join("out");
        let names = |folder: &Path| -> Vec<String> {
            let entries = fs::read_dir(folder).unwrap();
            let name = |e: fs::DirEntry| e.file_name().to_string_lossy().into_owned();
            entries.map(|entry| name(entry.unwrap())).collect()
        };

        let first = Folder::begin(&target, Existing::RefuseUnlessForced).unwrap();
        fs::write(first.path("a"), "1").unwrap();
        assert!(!target.exists());
        first.publish().unwrap();
        assert_eq!(
            (names(base.path()), names(&target)),
            (vec!["out".into()], vec!["a".into()])
        );
        let error = Folder::begin(&target, Existing::RefuseUnlessForced).unwrap_err();
        assert!(error.message().contains("--force"), "{error}");

        let dropped = Folder::begin(&target, Existing::Replace).unwrap();
        fs::write(dropped.path("b"), "2").unwrap();
        drop(dropped);
        assert_eq!(
            (names(base.path()), names(&target)),
            (vec!["out".into()], vec!["a".into()])
        );

        let second = Folder::begin(&target, Existing::Replace).unwrap();
        fs::write(second.path("b"), "2").unwrap();
        assert_eq!(names(&target), ["a"]);
        second.publish().unwrap();
        assert_eq!(
            (names(base.path()), names(&target)),
            (vec!["out".into()], vec!["b".into()])
        );
    }

    #[test]
    fn what_is_there_is_never_mixed_with_what_is_new() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("out");
        let fill = |scratch: &Path| {
            fs::write(scratch.join("new"), "x").context(|| "x".to_owned())
        };
        fs::create_dir(&out).unwrap();
        folder(&out, fill).unwrap();
        assert_eq!(fs::read_to_string(out.join("new")).unwrap(), "x");
        let error = folder(&out, fill).unwrap_err();
        assert!(error.message().contains("not empty"), "{error}");
        let taken = base.path().join("taken");
        fs::write(&taken, "x").unwrap();
        assert!(folder(&taken, fill).is_err());
        assert!(file(&out, |_| Ok(())).unwrap_err().message().contains("is a folder"));
    }
}
