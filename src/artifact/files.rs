//! Small file-system steps that must be right: replace, sync, walk, the clock.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Context, Error, Result};

/// Whether a file must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// Synced before it is renamed into place.
    Kept,
    /// Derived data that may be lost.
    Cache,
}

/// Writes a file beside its final path and renames it there, so that no reader ever sees half
/// of it.
pub(super) fn replace(path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    let scratch = sibling(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&scratch)?;
        file.write_all(bytes)?;
        if durability == Durability::Kept {
            file.sync_all()?;
        }
        fs::rename(&scratch, path)
    };

    let result = write();
    if result.is_err() {
        // The error to report is that of the write.
        let _ = fs::remove_file(&scratch);
    }
    result.context(|| format!("cannot write {}", path.display()))
}

/// A name beside `path` that no other process or thread uses.
pub(super) fn sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", unique()))
}

/// A suffix that differs between processes, threads and calls.
pub(super) fn unique() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    format!("{}.{:x}", std::process::id(), call ^ (now_nanoseconds().unsigned_abs() << 8))
}

/// Points the symbolic link `link` at `target`, in one step.
pub(super) fn point(link: &Path, target: &str) -> Result<()> {
    let scratch = sibling(link);
    std::os::unix::fs::symlink(target, &scratch)
        .and_then(|()| fs::rename(&scratch, link))
        .context(|| format!("cannot point {} at {target}", link.display()))
}

/// Asks the file system to keep a file or a folder's entries.
pub(super) fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .context(|| format!("cannot sync {}", path.display()))
}

/// Creates a folder and its parents.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .context(|| format!("cannot create the folder {}", path.display()))
}

/// The regular files below a folder, as sorted relative names with `/`.
///
/// Refuses links, sockets and names that are not text: a result holds files only.
pub(super) fn list(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    walk(folder, "", &mut found)?;
    found.sort_unstable();
    Ok(found)
}

/// Adds the files below `folder` to `found`, each named with `prefix` in front.
fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    let unreadable = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).context(unreadable)? {
        let entry = entry.context(unreadable)?;
        let name = entry.file_name().into_string().map_err(|name| {
            let (folder, name) = (folder.display(), name.display());
            Error::corrupt(format!("the name of {folder}/{name} is not valid UTF-8"))
        })?;
        let name = format!("{prefix}{name}");

        let kind = entry.file_type().context(unreadable)?;
        if kind.is_dir() {
            walk(&entry.path(), &format!("{name}/"), found)?;
        } else if kind.is_file() {
            found.push(name);
        } else {
            let path = entry.path();
            let path = path.display();
            return Err(Error::corrupt(format!("{path} is not a regular file")));
        }
    }
    Ok(())
}

/// Takes the write permission away: a result is never edited.
pub(super) fn make_read_only(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))
        .context(|| format!("cannot set the mode of {}", path.display()))
}

/// Removes a folder and all below it; a missing one is fine.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Nanoseconds since 1970; for cache entries and provenance only, never for a key.
#[expect(
    clippy::disallowed_methods,
    reason = "provenance and the stat cache need a clock"
)]
pub(super) fn now_nanoseconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
