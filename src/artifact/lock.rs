//! Locks that die with their process.
//!
//! The kernel releases `flock` however a process ends, so there is never a stale lock to clean
//! up. What stands in the file only tells people who holds it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::history::now_text;
use super::{Key, files};
use crate::error::{Context, Result};

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub(super) struct Guard {
    _file: File,
}

/// How an attempt to take a lock ended.
#[derive(Debug)]
pub(super) enum Try {
    /// We have it.
    Held(Guard),
    /// Another process has it: which one, as far as the file says.
    Busy(String),
}

/// Tries to take the lock at once.
pub(super) fn attempt(path: &Path) -> Result<Try> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Try::Held(sign(file))),

        // The holder may not have signed yet, and then it has no name.
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path).unwrap_or_default();
            let holder = holder.lines().next().unwrap_or_default();
            let known = !holder.is_empty();
            Ok(Try::Busy(if known { holder } else { "another process" }.to_owned()))
        }

        Err(TryLockError::Error(error)) => {
            Err(error).context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Takes the lock, waiting until it is free.
pub(super) fn exclusive(path: &Path) -> Result<Guard> {
    let file = open(path)?;
    file.lock().context(|| format!("cannot lock {}", path.display()))?;
    Ok(sign(file))
}

/// Keeps others from taking the lock exclusively; any number may share it.
pub(super) fn shared(path: &Path) -> Result<Guard> {
    let file = open(path)?;
    file.lock_shared().context(|| format!("cannot lock {}", path.display()))?;
    Ok(Guard { _file: file })
}

/// Opens the file of a lock, and creates it and its folder if they are missing.
fn open(path: &Path) -> Result<File> {
    let open = || OpenOptions::new().create(true).write(true).truncate(false).open(path);
    open()
        .or_else(|error| match path.parent() {
            Some(folder) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(folder).and_then(|()| open())
            }
            _ => Err(error),
        })
        .context(|| format!("cannot open the lock {}", path.display()))
}

/// Writes into a lock who holds it.
fn sign(mut file: File) -> Guard {
    // The text is for people: the lock works as well without it.
    let _ = file.set_len(0);
    let text = format!("process {} since {}\n", std::process::id(), now_text());
    let _ = file.write_all(text.as_bytes());
    Guard { _file: file }
}

/// The lock of a key.
pub(super) fn path_of(root: &Path, key: &Key) -> PathBuf {
    root.join(".locks").join(key.as_str())
}

/// Makes the folder of locks; reports an unwritable store early and clearly.
pub(super) fn prepare(root: &Path) -> Result<()> {
    files::make_folder(&root.join(".locks"))
}
