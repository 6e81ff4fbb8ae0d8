//! Digests of files that have not changed since they were last hashed.
//!
//! A file counts as unchanged when its device, inode, size, modification time *and change
//! time* are those of the entry; without the change time an edit followed by `touch -d` would
//! pass. An entry made within two seconds of the file's last change is not used, because a
//! later edit could have the same times (git's "racy" rule). A damaged cache file is an empty
//! cache, never an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Digest, files, lock};
use crate::error::Result;

/// First line of the cache file; another version counts as an empty cache.
const HEADER: &str = "upcycle stat cache 1";

/// With more entries than this, the cache starts anew: files of deleted results pile up.
const LIMIT: usize = 200_000;

/// How long after a change a file's times do not prove anything.
const RACY_NANOSECONDS: i64 = 2_000_000_000;

/// What the file system says about a file's content without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    device: u64,
    inode: u64,
    size: u64,
    modified: i64,
    changed: i64,
}

impl Stat {
    /// Reads the fields of interest; times in nanoseconds.
    pub fn of(metadata: &Metadata) -> Self {
        let nanoseconds =
            |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What names the file on this machine, whatever its content.
    fn file(&self) -> FileNumber {
        FileNumber { device: self.device, inode: self.inode }
    }
}

/// A file by the numbers that the file system gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FileNumber {
    device: u64,
    inode: u64,
}

/// A file that was hashed.
#[derive(Debug, Clone)]
struct Entry {
    stat: Stat,
    /// When the file was hashed.
    recorded: i64,
    digest: Digest,
}

impl Entry {
    /// Whether the file had been left alone long enough for its times to prove anything.
    fn is_settled(&self) -> bool {
        let last = self.stat.modified.max(self.stat.changed);
        self.recorded.saturating_sub(last) >= RACY_NANOSECONDS
    }
}

/// The cache, in memory.
#[derive(Debug, Default)]
pub(super) struct StatCache {
    entries: BTreeMap<FileNumber, Entry>,
    /// What was learned or unlearned since the cache file was read.
    changed: Vec<FileNumber>,
}

impl StatCache {
    /// Reads the cache file.
    pub(super) fn load(path: &Path) -> Self {
        let entries = fs::read_to_string(path).ok().and_then(|text| parse(&text));
        Self { entries: entries.unwrap_or_default(), changed: Vec::new() }
    }

    /// The digest of an unchanged file.
    pub(super) fn get(&self, stat: &Stat) -> Option<&Digest> {
        let entry = self.entries.get(&stat.file())?;
        (entry.stat == *stat).then_some(&entry.digest)
    }

    /// Remembers a digest, unless the file changed too recently to be sure of it.
    pub(super) fn put(&mut self, stat: Stat, digest: Digest) {
        let file = stat.file();
        let entry = Entry { stat, recorded: files::now_nanoseconds(), digest };

        // An entry that cannot be trusted must not leave an older one in its place.
        if entry.is_settled() {
            self.changed.push(file);
            self.entries.insert(file, entry);
        } else if self.entries.remove(&file).is_some() {
            self.changed.push(file);
        }
    }

    /// Adds what was learned to the cache file. A failure costs a later rehash and is not an
    /// error.
    pub(super) fn save(&mut self, path: &Path) {
        if !self.changed.is_empty() && self.try_save(path).is_ok() {
            self.changed.clear();
        }
    }

    /// [`StatCache::save`], with its error.
    fn try_save(&self, path: &Path) -> Result<()> {
        // Other processes save too: what they wrote since we read the file must stay.
        let _guard = lock::exclusive(&path.with_extension("lock"))?;
        let mut merged = Self::load(path).entries;

        if merged.len() > LIMIT {
            merged.clear();
        }

        for file in &self.changed {
            match self.entries.get(file) {
                Some(entry) => merged.insert(*file, entry.clone()),
                None => merged.remove(file),
            };
        }
        files::replace(path, render(&merged).as_bytes(), files::Durability::Cache)
    }
}

/// The text of the cache file: a line for each file.
fn render(entries: &BTreeMap<FileNumber, Entry>) -> String {
    let mut text = format!("{HEADER}\n");
    for Entry { stat, recorded, digest } in entries.values() {
        let Stat { device, inode, size, modified, changed } = stat;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{device} {inode} {size} {modified} {changed} {recorded} {digest}"
        );
    }
    text
}

/// Reads the cache file; `None` for another version, or for a line that is damaged.
fn parse(text: &str) -> Option<BTreeMap<FileNumber, Entry>> {
    let mut lines = text.lines();
    // A file that was cut ends without a newline, and its last number would be a wrong one.
    (lines.next()? == HEADER && text.ends_with('\n')).then_some(())?;

    let mut entries = BTreeMap::new();
    for line in lines {
        let mut words = line.split(' ');
        let mut word = || words.next();
        let stat = Stat {
            device: word()?.parse().ok()?,
            inode: word()?.parse().ok()?,
            size: word()?.parse().ok()?,
            modified: word()?.parse().ok()?,
            changed: word()?.parse().ok()?,
        };
        let recorded = word()?.parse().ok()?;
        let digest = Digest::parse(word()?)?;

        let entry = Entry { stat, recorded, digest };
        if entry.is_settled() {
            entries.insert(stat.file(), entry);
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(inode: u64) -> Stat {
        Stat { device: 1, inode, size: 10, modified: 5, changed: 6 }
    }

    #[test]
    fn any_differing_field_misses() {
        let mut cache = StatCache::default();
        cache.put(stat(7), Digest::of_bytes(b"x"));
        assert!(cache.get(&stat(7)).is_some());
        for other in [
            stat(8),
            Stat { device: 2, ..stat(7) },
            Stat { size: 11, ..stat(7) },
            Stat { modified: 6, ..stat(7) },
            Stat { changed: 7, ..stat(7) },
        ] {
            assert!(cache.get(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn a_file_changed_just_now_or_in_the_future_is_not_remembered() {
        let now = files::now_nanoseconds();
        for changed in [now, now - 1_000_000_000, now + 60_000_000_000] {
            let mut cache = StatCache::default();
            let young = Stat { changed, ..stat(1) };
            cache.put(young, Digest::of_bytes(b"x"));
            assert!(cache.get(&young).is_none());
        }
    }

    #[test]
    fn two_writers_both_keep_what_they_learned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statcache");
        let (mut a, mut b) = (StatCache::load(&path), StatCache::load(&path));
        a.put(stat(1), Digest::of_bytes(b"a"));
        b.put(stat(2), Digest::of_bytes(b"b"));
        a.save(&path);
        b.save(&path);
        let merged = StatCache::load(&path);
        assert!(merged.get(&stat(1)).is_some() && merged.get(&stat(2)).is_some());
    }

    #[test]
    fn every_truncation_is_a_cold_or_smaller_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("statcache");
        let mut cache = StatCache::default();
        cache.put(stat(1), Digest::of_bytes(b"a"));
        cache.put(stat(2), Digest::of_bytes(b"b"));
        cache.save(&path);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let read = StatCache::load(&path);
            for inode in [1, 2] {
                let digest = read.get(&stat(inode));
                assert!(digest.is_none_or(|d| Some(d) == cache.get(&stat(inode))));
            }
        }
    }
}
