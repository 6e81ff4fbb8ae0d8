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
//! tolerated is decided once, in [`Tolerance`]. A file that is not what it was said to be at
//! all (no such column, a path that leads out of its folder, a compression that is not
//! supported) is an error at once. What lies in a folder and is not read is counted by kind.

mod census;
mod classes;
mod coco;
mod columns;
mod detect;
mod evaluation;
mod files;
mod gather;
mod parquet;
mod picture;
mod quotes;
mod table;
mod webdataset;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) use gather::collect;

use crate::config::{DatasetConfig, Source};
use crate::error::{Context as _, Error, Result};
use classes::ClassFolders;
use webdataset::Shards;

pub use census::Census;
pub use detect::{Detected, detect};
pub use evaluation::{EvaluationSet, Task};

/// Bad pairs that an error names.
const NAMED: usize = 5;
/// Pairs below which the fraction of bad ones is not judged before the end.
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

/// What kind of thing is wrong with a pair; the counts of a data set are made by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// There is a picture that nothing is said about.
    NoCaption,
    /// Something is said about a picture that is not there.
    NoPicture,
    /// The picture's file cannot be decoded.
    TornPicture,
    /// The picture's file or its pixels are too many.
    TooLarge,
    /// The class is not one of those that are named.
    UnknownClass,
    /// Members of one key are there twice.
    Duplicate,
    /// A row, an annotation or a member is not what its format says.
    Malformed,
    /// A file cannot be read from some place on.
    DamagedFile,
}

impl Fault {
    /// Its name in counts.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCaption => "no caption",
            Self::NoPicture => "no picture",
            Self::TornPicture => "torn picture",
            Self::TooLarge => "too large",
            Self::UnknownClass => "unknown class",
            Self::Duplicate => "duplicate members",
            Self::Malformed => "malformed entry",
            Self::DamagedFile => "damaged file",
        }
    }
}

/// How many of what, by its name.
pub type Counts = BTreeMap<String, usize>;

/// A pair that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub key: String,
    /// What kind of thing is wrong with it.
    pub fault: Fault,
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
    fn bad(fault: Fault, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Bad(Skipped { key: key.into(), fault, reason: reason.into() })
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

    /// What lies beside these files and is not read, by kind.
    fn left_out(&self) -> Counts {
        Counts::new()
    }

    /// Number of pairs, where it is known beforehand.
    fn total(&self) -> Option<usize> {
        None
    }
}

/// Opens the files that `config` names; `None` for a source that makes its own pictures.
pub fn open(config: &DatasetConfig) -> Result<Option<Box<dyn Stream>>> {
    let (folder, file) = (Path::new(&config.folder), config.file.as_str());
    let name = config.source.name();

    let needed = |keys: &str| {
        Error::usage(format!("source: {name} needs {keys}, which is not set"))
    };

    let one_of_two = || match (config.folder.is_empty(), file.is_empty()) {
        (true, true) => Err(needed("dataset.file or dataset.folder")),
        (false, false) => Err(Error::usage(format!(
            "source: {name} takes either dataset.file or dataset.folder, but both are set"
        ))),
        _ => Ok(()),
    };

    if !config.folder.is_empty() && config.source.reads_pairs() {
        files::require_folder(folder).context(|| "dataset.folder".to_owned())?;
    }

    let stream: Box<dyn Stream> = match config.source {
        Source::Emoji | Source::Icons | Source::Shapes => return Ok(None),
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
            let found = in_folder_or_listed(config, &["parquet"])?;
            Box::new(parquet::Parquets::open(found, &config.columns)?)
        }
        Source::Webdataset => {
            one_of_two()?;
            Box::new(Shards::open(in_folder_or_listed(config, &webdataset::SHARDS)?)?)
        }
    };

    Ok(Some(stream))
}

fn listed(config: &DatasetConfig) -> Result<Vec<files::Input>> {
    files::listed(&config.file, &config.weights)
}

fn in_folder_or_listed(
    config: &DatasetConfig,
    extensions: &[&str],
) -> Result<files::Inputs> {
    if config.file.is_empty() {
        return files::in_folder(Path::new(&config.folder), extensions);
    }
    Ok(files::Inputs { inputs: listed(config)?, left_out: Counts::new() })
}

/// What a tolerated reading came upon.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Pairs that were looked at, good and bad.
    pub read: usize,
    /// The bad ones.
    pub skipped: Vec<Skipped>,
}

impl Tally {
    /// How many bad pairs there are of each kind.
    pub fn by_fault(&self) -> Counts {
        let mut counts = Counts::new();
        for bad in &self.skipped {
            *counts.entry(bad.fault.name().to_owned()).or_insert(0) += 1;
        }
        counts
    }
}

/// Counts pairs and tolerates bad ones up to a fraction of all.
#[derive(Debug)]
pub struct Tolerance {
    share: f64,
    key: &'static str,
    seen: usize,
    skipped: Vec<Skipped>,
}

impl Tolerance {
    /// Tolerates at most this fraction, 0 to 1; `key` is where the user set it.
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

    /// What was looked at, if the bad pairs among it are few enough.
    pub fn finish(self) -> Result<Tally> {
        self.judge(self.seen)?;
        Ok(Tally { read: self.seen, skipped: self.skipped })
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
        let (fault, reason) = (Fault::TornPicture, "torn".to_owned());
        Skipped { key: format!("k{key}"), fault, reason }
    }

    #[test]
    fn a_fraction_of_bad_pairs_is_tolerated_and_not_one_more() {
        let mut tolerance = Tolerance::new(0.1, "share");
        for key in 0..3 {
            tolerance.reject(bad(key)).unwrap();
        }
        (0..27).for_each(|_| tolerance.accept());
        let tally = tolerance.finish().unwrap();
        assert_eq!((tally.read, tally.skipped.len()), (30, 3));
        assert_eq!(tally.by_fault(), [("torn picture".to_owned(), 3)].into());
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
