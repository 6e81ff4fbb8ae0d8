//! Stage `dataset`: pictures and captions from their source to Parquet.

use std::path::Path;

use super::plan::Externals;
use super::{Job, Stage, Width};
use crate::config::DatasetConfig;
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
pub fn externals(_config: &DatasetConfig, _cache: &Path) -> Externals {
    Externals::None
}

/// The packages that must be fetched before this stage can run, one `name version file` a
/// line's worth each.
pub fn missing_packages(_config: &DatasetConfig, _cache: &Path) -> Result<Vec<String>> {
    Ok(Vec::new())
}
