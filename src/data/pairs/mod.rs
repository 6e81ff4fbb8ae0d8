//! Picture-text pairs as they stream out of other people's files, good ones and bad ones.
//!
//! ```text
//! table ──────┐
//! classes ────┤
//! parquet ────┼─► Pair | Skipped ─► gather: decode, tolerate, split ─► Collection
//! coco ───────┤
//! webdataset ─┘
//! ```
//!
//! A format is one file here and one [`Stream`]: it hands over bytes and captions and does not
//! decode. A bad pair is an ordinary event with a name and a reason; how many of them are
//! borne is decided once, in [`Tolerance`]. A file that is not what it was said to be at all
//! (no such column, a path that leads out of its folder) is an error at once.

mod classes;
mod coco;
mod columns;
mod evaluation;
mod files;
mod gather;
mod parquet;
mod picture;
mod table;
mod webdataset;

use std::path::{Path, PathBuf};

pub(super) use gather::collect;

use crate::config::{DatasetConfig, Source};
use crate::error::{Error, Result};
use classes::ClassFolders;
use webdataset::Shards;

pub use evaluation::{EvaluationSet, Task};

/// Bad pairs that an error names.
const NAMED: usize = 5;
/// Pairs below which the share of bad ones is not judged before the end.
const EARLY: usize = 1000;

/// One picture file with what is said about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Name for messages, unique within a source.
    pub key: String,
    /// Split it belongs to, where the source says so.
    pub split: Option<String>,
    /// The picture's file, not yet decoded.
    pub image: Vec<u8>,
    /// What is said about it; a class's name where nothing else is.
    pub captions: Vec<String>,
    /// The class's name, where there is one.
    pub class: Option<String>,
    /// The class's number, where there is one.
    pub label: Option<usize>,
    /// How often it is trained on, relative to the others (`dataset.weights`).
    pub weight: f64,
}

/// A pair that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a source comes upon.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// One that can be used.
    Pair(Pair),
    /// One that cannot.
    Bad(Skipped),
}

impl Found {
    fn bad(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Bad(Skipped { key: key.into(), reason: reason.into() })
    }
}

/// What is done with each pair.
pub type Visit<'a> = &'a mut dyn FnMut(Found) -> Result<()>;

/// A source of pairs in a fixed order. Memory: one picture at a time.
pub trait Stream: std::fmt::Debug {
    /// Hands every pair to `visit`, and stops at its first error.
    fn each(&self, visit: Visit<'_>) -> Result<()>;

    /// Every file that is read, by a name that does not depend on where it lies.
    fn files(&self) -> Vec<(String, PathBuf)>;

    /// Number of pairs, where it is known beforehand.
    fn total(&self) -> Option<usize> {
        None
    }
}

/// Opens the files that `config` names; `None` for a source that makes its own pictures.
pub fn open(config: &DatasetConfig) -> Result<Option<Box<dyn Stream>>> {
    let (folder, file) = (Path::new(&config.folder), config.file.as_str());
    let name = config.source.name();
    let needed = |keys: &str| Error::usage(format!("{keys}: needed for source: {name}"));
    let one_of_two = || match (config.folder.is_empty(), file.is_empty()) {
        (true, true) => Err(needed("dataset.file or dataset.folder")),
        (false, false) => Err(Error::usage(format!(
            "dataset.file and dataset.folder: source: {name} takes one of them"
        ))),
        _ => Ok(()),
    };
    if !config.folder.is_empty() && config.source.reads_pairs() && !folder.exists() {
        let place = folder.display();
        return Err(Error::failed(format!(
            "dataset.folder: the folder {place} does not exist"
        )));
    }
    let stream: Box<dyn Stream> = match config.source {
        Source::Emoji | Source::Shapes => return Ok(None),
        Source::Folder if config.folder.is_empty() => {
            return Err(needed("dataset.folder"));
        }
        Source::Folder if classes::is_layout(folder) => {
            Box::new(ClassFolders::splits(folder)?)
        }
        Source::Folder => Box::new(table::Tables::in_folder(folder)?),
        Source::Csv | Source::Coco if file.is_empty() => {
            return Err(needed("dataset.file"));
        }
        Source::Csv => {
            Box::new(table::Tables::open(&listed(config)?, folder, &config.columns)?)
        }
        Source::Coco => Box::new(coco::Annotations::open(&listed(config)?, folder)?),
        Source::Parquet => {
            one_of_two()?;
            let inputs = in_folder_or_listed(config, "parquet")?;
            Box::new(parquet::Parquets::open(inputs, &config.columns)?)
        }
        Source::Webdataset => {
            one_of_two()?;
            Box::new(Shards::open(in_folder_or_listed(config, "tar")?)?)
        }
    };
    Ok(Some(stream))
}

fn listed(config: &DatasetConfig) -> Result<Vec<files::Input>> {
    files::listed(&config.file, &config.weights)
}

fn in_folder_or_listed(
    config: &DatasetConfig,
    extension: &str,
) -> Result<Vec<files::Input>> {
    if config.file.is_empty() {
        return files::in_folder(Path::new(&config.folder), extension);
    }
    listed(config)
}

/// Counts pairs and bears bad ones up to a share of all.
#[derive(Debug)]
pub struct Tolerance {
    share: f64,
    key: &'static str,
    seen: usize,
    skipped: Vec<Skipped>,
}

impl Tolerance {
    /// Bears at most this share, 0 to 1; `key` is where the user set it.
    pub fn new(share: f64, key: &'static str) -> Self {
        Self { share, key, seen: 0, skipped: Vec::new() }
    }

    /// Counts a good pair.
    pub fn accept(&mut self) {
        self.seen += 1;
    }

    /// Counts a bad pair; an error once there are too many.
    pub fn reject(&mut self, bad: Skipped) -> Result<()> {
        self.seen += 1;
        self.skipped.push(bad);
        self.judge(self.seen.max(if self.share > 0.0 { EARLY } else { 0 }))
    }

    /// The bad pairs, if they are few enough.
    pub fn finish(self) -> Result<Vec<Skipped>> {
        self.judge(self.seen)?;
        Ok(self.skipped)
    }

    fn judge(&self, of: usize) -> Result<()> {
        let bad = self.skipped.len();
        if bad as f64 <= self.share * of as f64 {
            return Ok(());
        }
        let named = self.skipped.iter().take(NAMED);
        let named: Vec<String> =
            named.map(|bad| format!("{}: {}", bad.key, bad.reason)).collect();
        let (seen, share, key) = (self.seen, self.share, self.key);
        let named = named.join("; ");
        Err(Error::failed(format!(
            "{bad} of {seen} pairs are unusable, more than {key} = {share} allows: {named}"
        )))
    }
}

#[cfg(test)]
pub(in crate::data) mod tests {
    use super::*;
    use crate::data::collection::Collection;
    use crate::data::spool::Spool;

    /// [`collect`] into a spool of its own.
    pub(super) fn collected(
        config: &DatasetConfig,
    ) -> Result<(Collection, Vec<Skipped>)> {
        let folder = tempfile::tempdir().unwrap();
        collect(config, &mut Spool::beside(folder.path())?, &mut |_, _| ())
    }

    fn bad(key: usize) -> Skipped {
        Skipped { key: format!("k{key}"), reason: "torn".to_owned() }
    }

    #[test]
    fn a_share_of_bad_pairs_is_borne_and_not_one_more() {
        let mut tolerance = Tolerance::new(0.1, "share");
        for key in 0..3 {
            tolerance.reject(bad(key)).unwrap();
        }
        (0..27).for_each(|_| tolerance.accept());
        assert_eq!(tolerance.finish().unwrap().len(), 3);
        let mut tolerance = Tolerance::new(0.1, "share");
        (0..3).for_each(|key| tolerance.reject(bad(key)).unwrap());
        (0..26).for_each(|_| tolerance.accept());
        let error = tolerance.finish().unwrap_err().to_string();
        assert!(error.contains("3 of 29") && error.contains("k0: torn"), "{error}");
    }

    #[test]
    fn without_tolerance_the_first_bad_pair_stops() {
        let mut tolerance = Tolerance::new(0.0, "share");
        tolerance.accept();
        assert!(tolerance.reject(bad(7)).unwrap_err().to_string().contains("k7"));
    }
}
