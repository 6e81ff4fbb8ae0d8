//! Files and folders a person asked for by path: written beside their place, renamed there.
//!
//! The store of artifacts has its own, stricter way; this is for tools whose results leave
//! the pipeline. A killed tool leaves a hidden scratch sibling and never half a result.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// Writes one file through `write`, which is given a scratch path; an older file is replaced.
pub(super) fn file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.is_dir() {
        let place = path.display();
        return Err(Error::usage(format!("{place} is a folder, expected a file's name")));
    }
    let scratch = sibling(path)?;
    let result = write(&scratch).and_then(|()| keep(&scratch)).and_then(|()| {
        fs::rename(&scratch, path).context(|| format!("writing {}", path.display()))
    });
    if result.is_err() {
        // The error to report is that of the write.
        let _ = fs::remove_file(&scratch);
    }
    result
}

/// Makes a new folder through `fill`, which is given a scratch folder to write files into.
///
/// A folder that exists and is not empty is refused: nothing is ever mixed or overwritten.
pub(super) fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = path.display();
    match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            return Err(Error::usage(format!(
                "{place} exists and is not empty; give another --out"
            )));
        }
        Err(_) if path.exists() => {
            return Err(Error::usage(format!("{place} exists and is not a folder")));
        }
        _ => {}
    }

    let scratch = sibling(path)?;
    let made = fs::create_dir(&scratch).context(|| format!("creating {place}"));
    let result = made.and_then(|()| fill(&scratch)).and_then(|()| {
        let unreadable = || format!("listing {}", scratch.display());
        for entry in fs::read_dir(&scratch).context(unreadable)? {
            keep(&entry.context(unreadable)?.path())?;
        }
        sync(&scratch)?;
        fs::rename(&scratch, path).context(|| format!("creating {place}"))
    });

    if result.is_err() {
        // The error to report is that of the work.
        let _ = fs::remove_dir_all(&scratch);
    }
    result?;
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync)
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
    let (name, process) = (name.to_string_lossy(), std::process::id());
    Ok(path.with_file_name(format!(".{name}.{process}")))
}

/// Readable for all, as other tools write, and on the disk.
fn keep(path: &Path) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o644))
        .context(|| format!("setting the mode of {}", path.display()))?;
    sync(path)
}

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
