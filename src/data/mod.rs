//! Data sets: building them from their sources, and reading them back for the stages.
//!
//! ```text
//! emoji ─┐
//! shapes ┼─► Collection ─► write: Parquet, tokenizer, dataset.json ─► Dataset ─► Split ─► Batches
//! folder ┘
//! ```
//!
//! A source knows where pictures and captions come from and which split each belongs to; it
//! knows nothing of files written. Everything after [`Dataset::open`] knows nothing of
//! sources.

mod batches;
mod collection;
pub mod emoji;
mod folder;
mod prefetch;
mod read;
mod shapes;
mod splits;
mod write;

use std::path::Path;

pub use batches::{Batch, Batches, Plan};
pub use collection::{Layout, Meta};
pub use prefetch::Prefetch;
pub use read::{ConceptRow, Dataset, SampleRow, Split};
pub use write::Summary;

use crate::config::{DatasetConfig, Source};
use crate::error::Result;

/// Builds the data set of `config` in the existing folder `out` (docs/artifacts.md § dataset).
///
/// `cache` holds the packages of the emoji source (see [`emoji::missing`]); the other sources
/// do not look at it. `progress` is told pictures done and pictures in all. The bytes written
/// depend on the configuration, the source's files and `seed`, not on the thread count.
pub fn build(
    config: &DatasetConfig,
    cache: &Path,
    seed: u64,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Summary> {
    let collection = match config.source {
        Source::Emoji => emoji::collect(config, cache, seed, progress)?,
        Source::Shapes => shapes::collect(config, seed, progress)?,
        Source::Folder => folder::collect(config, progress)?,
    };
    write::write(&collection, config, out)
}
