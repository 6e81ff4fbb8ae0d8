//! The store: finding results and deciding whether one is fresh.
//!
//! The decision costs a few system calls per file: the manifest is read and checked, then
//! each output is looked up in the stat cache; only a file whose times or size changed is
//! hashed again. File modes prove nothing and are not looked at.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::statcache::StatCache;
use super::{
    Brief, Change, Digest, Expected, External, Key, MANIFEST, Manifest, Place, Stat,
    changes, files,
};
use crate::error::{Context, Error, Result};

/// What the process around the store knows and the store must not ask for itself.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Name of the crash point a test has armed.
    pub crash_at: Option<String>,
    /// The command line, for provenance.
    pub argv: Vec<String>,
    /// Compiler that built the binary, for provenance.
    pub rustc: String,
}

/// Whether a node must run.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// `current` points to a complete, undamaged result of the expected key.
    Fresh,
    /// Such a result exists; `current` points elsewhere.
    Reusable,
    /// There is no result of the expected key.
    Stale(Reason),
    /// The result of the expected key is damaged, file by file.
    Damaged(Vec<String>),
}

/// Why there is no result of the expected key.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// There never was any.
    First,
    /// The current one was made from something else.
    Changed(Vec<Change>),
}

/// The folder of all results.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    pub(super) options: Options,
    /// Digests of files that have not changed since they were hashed.
    stats: Mutex<StatCache>,
    /// Manifests that were read, by the directory of their result.
    briefs: Mutex<BTreeMap<PathBuf, Brief>>,
}

impl Store {
    /// Opens the store at `root`. Nothing is created until something is written.
    pub fn open(root: &Path, options: Options) -> Self {
        Self {
            root: root.to_owned(),
            options,
            stats: Mutex::new(StatCache::load(&statcache_path(root))),
            briefs: Mutex::default(),
        }
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The key `current` points to, if it points to a key.
    pub fn current(&self, place: &Place) -> Option<Key> {
        let target = fs::read_link(place.folder(&self.root).join("current")).ok()?;
        Key::parse(target.to_str()?)
    }

    /// The directory of a result.
    pub fn dir(&self, place: &Place, key: &Key) -> PathBuf {
        place.folder(&self.root).join(key.as_str())
    }

    /// The checked manifest of a result; `None` if there is no such directory.
    pub fn manifest(&self, place: &Place, key: &Key) -> Result<Option<Manifest>> {
        let dir = self.dir(place, key);
        present(&dir, Manifest::read(&dir.join(MANIFEST), key))
    }

    /// The files of a result by its checked manifest, which is read once; `None` if there is
    /// no such directory.
    pub fn brief(&self, place: &Place, key: &Key) -> Result<Option<Brief>> {
        let dir = self.dir(place, key);
        if let Some(known) = hold(&self.briefs).get(&dir) {
            return Ok(Some(known.clone()));
        }

        // Absence is not remembered: another process may be making the result.
        let brief = present(&dir, Brief::read(&dir.join(MANIFEST), key))?;
        if let Some(brief) = &brief {
            hold(&self.briefs).insert(dir, brief.clone());
        }
        Ok(brief)
    }

    /// Decides whether a node must run, looking at every file of its result.
    pub fn check(&self, expected: &Expected) -> Result<State> {
        let dir = self.dir(&expected.place, &expected.key);
        let brief = match self.brief(&expected.place, &expected.key) {
            Ok(Some(brief)) => brief,
            Ok(None) => return Ok(State::Stale(self.reason(expected))),
            Err(error) => return Ok(State::Damaged(vec![error.message().to_owned()])),
        };

        // Damage comes first: a result that `current` points to is not fresh if it is broken.
        let damage = self.damage(&dir, &brief.files)?;
        Ok(if !damage.is_empty() {
            State::Damaged(damage)
        } else if self.current(&expected.place).as_ref() == Some(&expected.key) {
            State::Fresh
        } else {
            State::Reusable
        })
    }

    /// Why there is no result of the expected key: what differs from the current one.
    pub fn reason(&self, expected: &Expected) -> Reason {
        let current = self.current(&expected.place);
        let manifest =
            current.and_then(|key| self.manifest(&expected.place, &key).ok()?);
        match manifest {
            Some(old) => {
                Reason::Changed(changes(&old.key_preimage, &expected.preimage.to_json()))
            }
            None => Reason::First,
        }
    }

    /// What is wrong with the files of a result: missing, wrong and extra ones.
    pub fn damage(
        &self,
        dir: &Path,
        files: &BTreeMap<String, Digest>,
    ) -> Result<Vec<String>> {
        let mut wrong = Vec::new();

        for (name, expected) in files {
            let path = dir.join(name);
            // That a file cannot be read at all, for want of rights say, is no damage.
            match self.digest(&path, Some(expected)) {
                Ok(digest) if digest == *expected => {}
                Ok(_) => wrong.push(format!("{name} was changed")),
                Err(_) if !path.exists() => wrong.push(format!("{name} is missing")),
                Err(_) if !path.is_file() => {
                    wrong.push(format!("{name} is not a regular file"));
                }
                Err(error) => return Err(error),
            }
        }

        // A file that nobody wrote is damage too: a reader might take it for a result.
        match files::list(dir) {
            Ok(present) => {
                let known = |name: &String| name == MANIFEST || files.contains_key(name);
                let extra = present.iter().filter(|name| !known(name));
                wrong.extend(extra.map(|name| format!("{name} does not belong here")));
            }
            Err(error) => wrong.push(error.message().to_owned()),
        }
        Ok(wrong)
    }

    /// The digest of a file, from the stat cache if it did not change. A cached digest that
    /// is not the expected one is not believed: the file is hashed.
    pub fn digest(&self, path: &Path, expected: Option<&Digest>) -> Result<Digest> {
        let stat = stat_of(path)?;
        if let Some(known) = hold(&self.stats).get(&stat)
            && expected.is_none_or(|expected| expected == known)
        {
            return Ok(known.clone());
        }

        let digest = Digest::of_file(path)?;
        self.remember(path, stat, &digest);
        Ok(digest)
    }

    /// Digests of files from outside with the stats they were taken at.
    pub fn externals(&self, externals: &[External]) -> Result<Vec<(Stat, Digest)>> {
        externals
            .iter()
            .map(|external| {
                let stat = stat_of(&external.path)?;
                Ok((stat, self.digest(&external.path, None)?))
            })
            .collect()
    }

    /// Writes what was learned about files; call it once at the end.
    pub fn save(&self) {
        if self.root.is_dir() {
            hold(&self.stats).save(&statcache_path(&self.root));
        }
    }

    /// Keeps a digest if the file did not change while it was hashed.
    pub(super) fn remember(&self, path: &Path, before: Stat, digest: &Digest) {
        if stat_of(path).is_ok_and(|after| after == before) {
            hold(&self.stats).put(before, digest.clone());
        }
    }

    /// Forgets the manifest of a directory that is no longer there.
    pub(super) fn forget(&self, dir: &Path) {
        hold(&self.briefs).remove(dir);
    }

    /// Moves a damaged result out of the way and says where to.
    pub(super) fn quarantine(&self, expected: &Expected) -> Result<PathBuf> {
        let dir = self.dir(&expected.place, &expected.key);
        let folder = self.root.join(".corrupt");
        files::make_folder(&folder)?;

        // The same result may be damaged more than once, and each is kept.
        let name = format!("{}-{}", expected.place, expected.key).replace('/', "-");
        let target = folder.join(format!("{name}.{}", files::unique()));
        fs::rename(&dir, &target)
            .context(|| format!("cannot move the damaged {} aside", dir.display()))?;
        self.forget(&dir);
        Ok(target)
    }
}

/// A manifest that cannot be read because its directory is not there is not damage.
fn present<T>(dir: &Path, read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(_) if !dir.exists() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The stat of a regular file.
pub(super) fn stat_of(path: &Path) -> Result<Stat> {
    let metadata =
        fs::metadata(path).context(|| format!("cannot find {}", path.display()))?;
    if !metadata.is_file() {
        return Err(Error::failed(format!("{} is not a file", path.display())));
    }
    Ok(Stat::of(&metadata))
}

/// Where the cache of digests is kept.
fn statcache_path(root: &Path) -> PathBuf {
    root.join(".state").join("statcache")
}

/// Locks a mutex of plain data: a panic elsewhere cannot leave it half-changed.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
