//! Reads the tables of all stages into [`ReportInputs`].
//!
//! It knows which files of `docs/artifacts.md` the report needs, not where they lie: the
//! caller finds the folder of a stage's run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::inputs::{
    Clustering, DatasetMeta, Facts, ReportInputs, RunInputs, Subspaces, is_dense,
};
use crate::config::{Config, RunConfig};
use crate::error::{Context, Error, Result};
use crate::io::table::TableReader;
use crate::model::ClipConfig;
use crate::model::params::parameter_counts;
use crate::tables::{self, RetrievalRow};

/// Finds the folder of a stage's run: `("train", "sparse-s1")`, `("cluster", "s1")`,
/// `("subspaces", "paper-s1")`, `("dataset", "")`.
pub type Find<'a> = dyn Fn(&str, &str) -> Result<PathBuf> + 'a;

/// Reads everything that the report shows.
pub fn load(config: &Config, find: &Find<'_>) -> Result<ReportInputs> {
    let mut runs = Vec::new();
    for (name, run) in &config.runs {
        for &seed in &config.seeds {
            runs.push(load_run(config, (name, run), seed, find)?);
        }
    }

    let folder = find("dataset", "")?;
    let dataset: DatasetMeta = json(&folder.join("dataset.json"))?;

    // Only the pictures that the example retrievals show are kept in memory.
    let retrievals = retrievals(config, find)?;
    let wanted: BTreeSet<u32> =
        retrievals.iter().flat_map(|row| [row.sample, row.retrieved]).collect();
    let samples = folder.join(format!("samples-{}.parquet", dataset.retrieval));
    let pictures =
        if wanted.is_empty() { BTreeMap::new() } else { pictures(&samples, &wanted)? };

    let variants = variants(config);
    Ok(ReportInputs {
        config: config.clone(),
        dataset,
        runs,
        clusterings: clusterings(config, &variants, find)?,
        subspaces: subspaces(config, &variants, find)?,
        retrievals,
        pictures,
    })
}

fn load_run(
    config: &Config,
    (name, run): (&str, &RunConfig),
    seed: u64,
    find: &Find<'_>,
) -> Result<RunInputs> {
    let key = format!("{name}-s{seed}");

    let train = find("train", &key)?;
    let shape: ClipConfig = json(&train.join("config.json"))?;
    let (total, active) = parameter_counts(&shape);

    let mut inputs = RunInputs {
        run: name.to_owned(),
        seed,
        facts: Facts {
            parameters_total: Some(total as u64),
            parameters_active: Some(active as u64),
        },
        log: tables::read(&train)?,
        validation: tables::read(&train)?,
        metrics: tables::read(&find("evaluate", &key)?)?,
        ..RunInputs::default()
    };

    // A dense model has neither experts nor a router.
    if !is_dense(config, run) {
        let analyze = find("analyze", &key)?;
        inputs.routing = tables::read(&train)?;
        inputs.analysis = tables::read(&analyze)?;
        inputs.similarity = tables::read(&analyze)?;
    }
    Ok(inputs)
}

/// Example retrievals of the showcase run at its first seed.
fn retrievals(config: &Config, find: &Find<'_>) -> Result<Vec<RetrievalRow>> {
    let showcase = &config.report.showcase;
    match config.seeds.first() {
        Some(seed) if config.runs.contains_key(showcase) => {
            tables::read(&find("evaluate", &format!("{showcase}-s{seed}"))?)
        }
        _ => Ok(Vec::new()),
    }
}

/// The variants of subspaces that the runs use.
fn variants(config: &Config) -> BTreeSet<&String> {
    let inits = config.runs.values().filter_map(|run| config.inits.get(&run.init));
    inits.filter_map(|init| init.subspaces.as_ref()).collect()
}

/// The clusterings of all bases; without a variant of subspaces there are none.
fn clusterings(
    config: &Config,
    variants: &BTreeSet<&String>,
    find: &Find<'_>,
) -> Result<Vec<Clustering>> {
    let seeds = config.base_seeds().iter().filter(|_| !variants.is_empty());

    seeds
        .map(|&seed| {
            let folder = find("cluster", &format!("s{seed}"))?;
            let clusters = tables::read(&folder)?;
            Ok(Clustering { seed, clusters, iterations: tables::read(&folder)? })
        })
        .collect()
}

/// The subspaces of every variant on every base.
fn subspaces(
    config: &Config,
    variants: &BTreeSet<&String>,
    find: &Find<'_>,
) -> Result<Vec<Subspaces>> {
    let mut all = Vec::new();
    for &seed in config.base_seeds() {
        for &variant in variants {
            let folder = find("subspaces", &format!("{variant}-s{seed}"))?;

            all.push(Subspaces {
                variant: variant.clone(),
                seed,
                experts: tables::read(&folder)?,
                spectra: tables::read(&folder)?,
            });
        }
    }
    Ok(all)
}

/// The PNG bytes of the wanted samples. The table is streamed: it holds a whole split.
fn pictures(path: &Path, wanted: &BTreeSet<u32>) -> Result<BTreeMap<u32, Vec<u8>>> {
    let context = || format!("reading {}", path.display());
    let mut reader = TableReader::open(path).context(context)?;

    let mut found = BTreeMap::new();
    while let Some(part) = reader.next().context(context)? {
        let samples = part.u32s("sample").context(context)?;
        let images = part.bytes("image").context(context)?;

        let pairs = samples.iter().zip(images);
        let shown = pairs.filter(|(sample, _)| wanted.contains(sample));
        found.extend(shown.map(|(&sample, image)| (sample, image.clone())));
    }
    Ok(found)
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let place = path.display();
    let text = std::fs::read_to_string(path).context(|| format!("reading {place}"))?;

    // The reader names line and column; the file is added here.
    serde_json::from_str(&text)
        .map_err(|e| Error::corrupt(format!("reading {place}: {e}")).caused_by(e))
}
