//! From a checkpoint that is a result of a pipeline back to the data set it was trained on.

use std::path::{Path, PathBuf};

use crate::artifact::{Key, MANIFEST, Manifest};
use crate::error::{Context, Result};

/// The description of a data set.
pub(super) const DATASET: &str = "dataset.json";

/// Number of results from a checkpoint to its data set, both included, at most: train, upcycle,
/// pretrain, dataset.
const GENERATIONS: usize = 4;

/// Where a checkpoint comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The result that it is, as `train/sparse-s1/<key>`.
    pub origin: String,
    /// The folder of the data set's result, with `dataset.json` and `tokenizer.json`.
    pub dataset: PathBuf,
    /// The folder of all results.
    pub store: PathBuf,
}

impl Lineage {
    /// Follows the manifests; `None` if the checkpoint is not a result of a pipeline, or its
    /// data set has been removed.
    pub fn of(checkpoint: &Path) -> Result<Option<Self>> {
        let Some(result) = Found::at(super::folder_of(checkpoint))? else {
            return Ok(None);
        };

        let dataset = result.dataset(GENERATIONS)?;
        let Found { origin, store, .. } = result;
        Ok(dataset.map(|dataset| Self { origin, dataset, store }))
    }

    /// The name of the run, as `sparse-s1`; empty for a stage without runs.
    pub fn run(&self) -> &str {
        let parts: Vec<&str> = self.origin.split('/').collect();
        if let [_, run, _] = parts.as_slice() { run } else { "" }
    }

    /// The present result at `place`, as `evaluate/sparse-s1`, if it was made from this
    /// checkpoint.
    pub fn reader(&self, place: &str) -> Result<Option<PathBuf>> {
        let folder = self.store.join(place).join("current");
        let found = Found::at(&folder)?;
        let own = self.store.join(&self.origin);
        Ok(found.filter(|found| found.inputs.contains(&own)).map(|_| folder))
    }

    /// The content of the data set's `dataset.json`.
    pub fn description(&self) -> PathBuf {
        self.dataset.join(DATASET)
    }
}

/// A result with the folders that it was made from.
struct Found {
    origin: String,
    store: PathBuf,
    inputs: Vec<PathBuf>,
}

impl Found {
    /// The result in a folder; `None` if the folder is not one of a store.
    fn at(folder: &Path) -> Result<Option<Self>> {
        if !folder.join(MANIFEST).is_file() {
            return Ok(None);
        }
        let place = || format!("reading {}", folder.join(MANIFEST).display());

        // `current` is a link to the folder that is named by its key.
        let folder = folder.canonicalize().context(place)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let Some(key) = Key::parse(&name) else { return Ok(None) };
        let manifest = Manifest::read(&folder.join(MANIFEST), &key)?;

        // The store holds <stage>/<run>/<key>, or <stage>/<key> for a stage without runs.
        let levels = if manifest.run.is_some() { 3 } else { 2 };
        let Some(store) = folder.ancestors().nth(levels) else { return Ok(None) };
        let origin = folder.strip_prefix(store).unwrap_or(&folder).display().to_string();
        let inputs = manifest.provenance.inputs.values();
        let inputs = inputs.map(|input| store.join(input)).collect();
        Ok(Some(Self { origin, store: store.to_owned(), inputs }))
    }

    /// The data set among the inputs, or among theirs.
    fn dataset(&self, generations: usize) -> Result<Option<PathBuf>> {
        let own = self.inputs.iter().find(|input| input.join(DATASET).is_file());
        if own.is_some() || generations <= 1 {
            return Ok(own.cloned());
        }

        for input in &self.inputs {
            if let Some(result) = Self::at(input)?
                && let Some(found) = result.dataset(generations - 1)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
