//! Data sets: building them from their sources, and reading them back for the stages.
//!
//! ```text
//! emoji ─┐
//! icons ─┤
//! shapes ┼─► Collection ─► write: Parquet, tokenizer, dataset.json ─► Dataset ─► Split ─► Batches
//! pairs ─┘   (folder, csv, parquet, coco, webdataset)
//! ```
//!
//! A source knows where pictures and captions come from and which split each belongs to; it
//! knows nothing of files written. Everything after [`Dataset::open`] knows nothing of
//! sources.

mod batches;
mod captions;
mod collection;
mod emoji;
mod icons;
pub mod packages;
pub mod pairs;
mod prefetch;
mod read;
mod sampler;
mod shapes;
mod splits;
mod spool;
mod write;

use std::path::Path;

pub use batches::{Batch, BatchSettings, Batches, Share};
pub use collection::{Layout, Meta, Reading};
pub use pairs::Skipped;
pub use prefetch::Prefetch;
pub use read::{Dataset, Split};
pub use sampler::{Concepts, Grouped, Sampler, Shuffled, refined};
pub use write::{Summary, adopt};

use crate::config::{DatasetConfig, Source};
use crate::error::{Context, Result};
use spool::Spool;

/// Builds the data set of `config` in the existing folder `out` (docs/artifacts.md § dataset).
///
/// `cache` holds the packages of the sources `emoji` and `icons` (see [`packages::missing`]);
/// the other sources do not look at it. `progress` is told pictures done and pictures in all. The bytes written
/// depend on the configuration, the source's files and `seed`, not on the thread count.
/// Memory grows with the number of captions and not with the pictures.
pub fn build(
    config: &DatasetConfig,
    cache: &Path,
    seed: u64,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Summary> {
    let mut skipped = Vec::new();
    let mut spool = Spool::beside(out)?;

    let collection = match config.source {
        Source::Emoji => emoji::collect(config, cache, seed, (&mut spool, progress))?,
        Source::Icons => {
            let (collection, bad) =
                icons::collect(config, cache, seed, (&mut spool, progress))?;
            skipped = bad;
            collection
        }
        Source::Shapes => shapes::collect(config, seed, (&mut spool, progress))?,
        Source::Folder
        | Source::Csv
        | Source::Parquet
        | Source::Coco
        | Source::Webdataset => {
            let (collection, bad) = pairs::collect(config, &mut spool, progress)?;
            skipped = bad;
            collection
        }
    };

    let summary = write::write(&collection, config, out).context(|| {
        let from = if config.folder.is_empty() { "" } else { " from " };
        format!("building the data set{from}{}", config.folder)
    })?;
    Ok(Summary { skipped, ..summary })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, LazyLock};

    use super::*;
    use crate::config::{Overrides, load_default};

    /// The shapes' tokenizer and training split, read once for all tests.
    pub(super) static TRAINING: LazyLock<(crate::text::Tokenizer, Arc<Split>)> =
        LazyLock::new(|| {
            let (_folder, dataset) = shapes();
            let split = Arc::new(dataset.split("train").unwrap());
            (dataset.tokenizer, split)
        });

    /// Builds and opens the shapes of the smoke profile.
    pub(super) fn shapes() -> (tempfile::TempDir, Dataset) {
        let folder = tempfile::tempdir().unwrap();
        build_shapes(folder.path(), 7);
        let dataset = Dataset::open(folder.path()).unwrap();
        (folder, dataset)
    }

    fn build_shapes(out: &Path, seed: u64) -> Summary {
        let overrides = Overrides { profile: Some("smoke".to_owned()), set: Vec::new() };
        let config = load_default(&overrides).unwrap().dataset;
        build(&config, Path::new("/nowhere"), seed, out, &mut |_, _| ()).unwrap()
    }

    fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn the_bytes_depend_on_the_seed_and_not_on_the_threads() {
        let built = |threads: usize, seed: u64| {
            let folder = tempfile::tempdir().unwrap();
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| build_shapes(folder.path(), seed));
            files(folder.path())
        };
        let one = built(1, 7);
        assert_eq!(one.len(), 8 + 4, "eight splits, two tables, tokenizer, description");
        assert!(one == built(3, 7));
        assert!(one != built(1, 8));
    }

    #[test]
    fn what_was_written_is_what_is_read() {
        let (_folder, dataset) = shapes();
        let meta = &dataset.meta;
        assert_eq!((meta.image_size, meta.context, meta.vocabulary), (16, 16, 300));
        let mut samples = BTreeSet::new();
        for (name, &count) in &meta.splits {
            let split = dataset.split(name).unwrap();
            assert_eq!(split.len(), count, "{name}");
            assert!(count > 0, "{name} is empty");
            for row in &split.rows {
                assert!(samples.insert(row.sample), "sample numbers are unique");
                let concept = &dataset.concepts[num(row.concept)];
                assert_eq!((row.group, row.subgroup), (concept.group, concept.subgroup));
                assert_eq!(row.names[0], concept.label);
            }
        }
        let total: usize = meta.splits.values().sum();
        assert_eq!(samples.len(), total);
        assert_eq!(samples.last().copied(), u32::try_from(total - 1).ok());
    }

    fn num(index: u32) -> usize {
        crate::num::widen(index)
    }

    #[test]
    fn no_test_picture_and_no_held_out_concept_is_trained_on() {
        let (_folder, dataset) = shapes();
        let planes = |name: &str| -> BTreeSet<Vec<u8>> {
            let split = dataset.split(name).unwrap();
            (0..split.len()).map(|i| split.planes(i).unwrap().into_owned()).collect()
        };
        let train = dataset.split("train").unwrap();
        assert!(train.rows.iter().all(|r| !dataset.concepts[num(r.concept)].held_out));
        let held_out = dataset.split("heldout").unwrap();
        assert!(held_out.rows.iter().all(|r| dataset.concepts[num(r.concept)].held_out));
        let trained = planes("train");
        let validated = planes("val");
        assert!(trained.is_disjoint(&validated));
        for name in ["pair", "heldout", "v2", "3d", "sketch", "blob"] {
            let tested = planes(name);
            assert!(tested.is_disjoint(&trained), "{name} meets train");
            assert!(tested.is_disjoint(&validated), "{name} meets val");
        }
    }

    #[test]
    fn training_pixels_have_mean_zero_and_deviation_one() {
        let (_folder, dataset) = shapes();
        let split = dataset.split("train").unwrap();
        let indices: Vec<usize> = (0..split.len()).collect();
        let area = split.side() * split.side();
        let pixels = split.pixels(&indices).unwrap();
        let pixels = pixels.view().values(area);
        for c in 0..3 {
            let channel: Vec<f64> = pixels
                .chunks_exact(area)
                .skip(c)
                .step_by(3)
                .flatten()
                .map(|&v| f64::from(v))
                .collect();
            assert!(crate::num::mean(&channel).abs() < 1e-4);
            assert!((crate::num::std_dev(&channel) - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn a_damaged_data_set_is_refused() {
        let (folder, dataset) = shapes();
        let error = dataset.split("nope").unwrap_err().to_string();
        assert!(error.contains("no split nope") && error.contains("heldout"), "{error}");
        let path = folder.path().join("dataset.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("300", "301")).unwrap();
        let error = Dataset::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("vocabulary 301"), "{error}");
        std::fs::write(&path, "{}").unwrap();
        assert!(Dataset::open(folder.path()).is_err());
    }

    #[test]
    fn without_its_packages_the_emoji_source_says_how_to_get_them() {
        let folder = tempfile::tempdir().unwrap();
        let overrides = Overrides { profile: Some("emoji".to_owned()), set: vec![] };
        let config = load_default(&overrides).unwrap().dataset;
        let error = build(&config, folder.path(), 1, folder.path(), &mut |_, _| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains("npm pack"), "{error}");
        assert!(error.contains("@iconify-json/noto@1.2.9"), "{error}");
    }
}
