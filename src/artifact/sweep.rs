//! Garbage collection: results that nothing current was made from.
//!
//! The results that `current` points to are marked and, through the provenance of their
//! manifests, everything that they were made from. The rest may go, except for what another
//! process has locked and for what has become current since the marking. A run keeps the locks
//! of what it reads until its own `current` is set, so whoever holds the lock of a result can
//! rely on the links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lock::{self, Try};
use super::{Key, MANIFEST, Manifest, Store, files};
use crate::error::Result;

/// One thing that may go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Garbage {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    key: String,
    /// The links it was marked by.
    links: Arc<Links>,
}

/// Every `current` with where it leads.
type Links = Vec<(PathBuf, PathBuf)>;

impl Store {
    /// Every directory of a result in the store, with its key.
    pub fn results(&self) -> Vec<(PathBuf, Key)> {
        let mut found = Vec::new();
        collect(self.root(), 0, &mut found);
        found.sort();
        found
    }

    /// What may go.
    pub fn garbage(&self) -> Vec<Garbage> {
        let results = self.results();
        let links = Arc::new(links(&results));

        let mut marked = BTreeSet::new();
        for (path, key) in &results {
            let target = (path.with_file_name("current"), PathBuf::from(key.as_str()));
            if links.binary_search(&target).is_ok() {
                self.mark(path, key, &mut marked);
            }
        }

        // What is not marked, and what unfinished runs left behind.
        let mut garbage: Vec<Garbage> = results
            .into_iter()
            .filter(|(path, _)| !marked.contains(path))
            .map(|(path, key)| weigh(path, key.as_str(), &links))
            .collect();
        garbage.extend(self.leftovers(&links));
        garbage
    }

    /// Marks a result and what it was made from.
    fn mark(&self, path: &Path, key: &Key, marked: &mut BTreeSet<PathBuf>) {
        if !marked.insert(path.to_owned()) {
            return;
        }

        // Through a damaged manifest nothing is marked: the result is made again in any case.
        let Ok(manifest) = Manifest::read(&path.join(MANIFEST), key) else { return };
        for input in manifest.provenance.inputs.values() {
            let path = self.root().join(input);
            let key = path.file_name().and_then(|name| Key::parse(name.to_str()?));
            if let Some(key) = key {
                self.mark(&path, &key, marked);
            }
        }
    }

    /// What killed runs left in `.tmp`: staging folders and resumable checkpoints.
    fn leftovers(&self, links: &Arc<Links>) -> Vec<Garbage> {
        let mut found = Vec::new();

        for stage in entries(self.root()) {
            for path in entries(&stage.join(".tmp")) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let name = name.trim_start_matches("scratch-");

                // The name of a run may stand before the key, a suffix behind it.
                let key = name
                    .split(['.', '-'])
                    .find(|part| Key::parse(part).is_some())
                    .unwrap_or_default()
                    .to_owned();
                found.push(weigh(path, &key, links));
            }
        }
        found
    }

    /// Removes one thing unless it is in use or has come into use; says whether it went.
    pub fn remove(&self, garbage: &Garbage) -> Result<bool> {
        // A leftover whose name has no key belongs to nobody, and needs no lock.
        lock::prepare(self.root())?;
        let _guard = match Key::parse(&garbage.key) {
            Some(key) => match lock::attempt(&lock::path_of(self.root(), &key))? {
                Try::Held(guard) => Some(guard),
                Try::Busy(_) => return Ok(false),
            },
            None => None,
        };

        // Under the lock nothing more can be built from it. If any link has moved since the
        // marking, the marking is done again before it is believed.
        let moved = *garbage.links != links(&self.results());
        if moved && !self.garbage().iter().any(|item| item.path == garbage.path) {
            return Ok(false);
        }

        files::remove_tree(&garbage.path)?;
        self.forget(&garbage.path);
        Ok(true)
    }
}

/// Where the links beside these results lead, in order.
fn links(results: &[(PathBuf, Key)]) -> Links {
    let mut beside: Vec<PathBuf> =
        results.iter().map(|(path, _)| path.with_file_name("current")).collect();
    beside.dedup();
    let target = |link: PathBuf| fs::read_link(&link).ok().map(|to| (link, to));
    let mut links: Links = beside.into_iter().filter_map(target).collect();
    links.sort();
    links
}

/// Describes what lies at `path` as garbage, with its size.
fn weigh(path: PathBuf, key: &str, links: &Arc<Links>) -> Garbage {
    let names = files::list(&path).unwrap_or_default();
    let size = |name: &String| fs::metadata(path.join(name)).map_or(0, |m| m.len());
    let bytes = names.iter().map(size).sum();
    Garbage { path, bytes, key: key.to_owned(), links: Arc::clone(links) }
}

/// The paths in a folder, sorted; none if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

/// Directories named by a key, at most stage/run/key deep; hidden folders aside.
fn collect(folder: &Path, depth: usize, found: &mut Vec<(PathBuf, Key)>) {
    for path in entries(folder) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || path.is_symlink() || !path.is_dir() {
            continue;
        }
        match Key::parse(&name) {
            Some(key) => found.push((path, key)),
            None if depth < 2 => collect(&path, depth + 1, found),
            None => {}
        }
    }
}
