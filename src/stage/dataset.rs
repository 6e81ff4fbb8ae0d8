//! Stage `dataset`: pictures and captions from their source to Parquet.

use std::path::Path;

use super::plan::Externals;
use super::{Job, Stage, Width};
use crate::artifact::External;
use crate::config::{DatasetConfig, Source};
use crate::data::emoji;
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "dataset",
    version: 1,
    width: Width::Whole,
    about: "Builds the picture-text data set: samples, concepts, labels, tokenizer.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}

/// The files from outside that `source: emoji` reads: the package archives in `cache`.
pub fn externals(cache: &Path) -> Externals {
    let file = |package: &emoji::Package| External {
        name: package.file.clone(),
        path: cache.join(&package.file),
    };
    Externals::Files(emoji::packages().iter().map(file).collect())
}

/// The packages that must be fetched before this stage can run: `name version file` each.
pub fn missing_packages(config: &DatasetConfig, cache: &Path) -> Vec<String> {
    if config.source != Source::Emoji {
        return Vec::new();
    }
    let line = |p: emoji::Package| format!("{} {} {}", p.name, p.version, p.file);
    emoji::missing(cache).into_iter().map(line).collect()
}
