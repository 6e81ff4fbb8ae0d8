//! Reads the tables of all stages into [`ReportInputs`].
//!
//! It knows which files of `docs/artifacts.md` the report needs, not where they lie: the
//! caller finds the folder of a stage's run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::find::Find;
use super::gallery;
use super::inputs::{
    Clustering, Cost, DatasetMeta, Facts, OutcomeKey, Outcomes, ReportInputs, RunInputs,
    SetInputs, Subspaces, SweepInputs, Swept, is_dense,
};
use crate::artifact::MANIFEST;
use crate::config::{Config, EvaluateConfig, RunConfig};
use crate::error::{Context, Error, Result};
use crate::io::table::TableReader;
use crate::model::ClipConfig;
use crate::model::params::parameter_counts;
use crate::num::round_f32;
use crate::tables::{
    self, MILLISECONDS_PER_PICTURE, OutcomeRow, PictureRow, PixelRow, RetrievalRow,
    Row as _, SampleRow,
};

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
    let samples = folder.join(SampleRow::file(&dataset.retrieval));
    let pictures =
        if wanted.is_empty() { BTreeMap::new() } else { pictures(&samples, &wanted)? };

    let variants = variants(config);
    let drawn = drawn(config);
    let patches = patches(config, &drawn, find)?;
    Ok(ReportInputs {
        gallery: gallery::load(config, &drawn, patches, find)?,
        config: config.clone(),
        dataset,
        runs,
        clusterings: clusterings(config, &variants, find)?,
        subspaces: subspaces(config, &variants, find)?,
        retrievals,
        pictures,
        pixels: pixels(config, find)?,
        sweep: sweep(config, find)?,
        sets: sets(config, find)?,
    })
}

/// The classifiers on pixels, where they are asked for.
fn pixels(config: &Config, find: &Find<'_>) -> Result<Vec<PixelRow>> {
    match config.evaluate.pixels {
        0 => Ok(Vec::new()),
        _ => tables::read(&find("evaluate", "pixels")?),
    }
}

/// Every value of every factor of section `sweep`.
fn sweep(config: &Config, find: &Find<'_>) -> Result<Vec<SweepInputs>> {
    let mut all = Vec::new();
    for (name, factor) in &config.sweep.factors {
        for (index, point) in config.sweep_points(name, factor)?.into_iter().enumerate() {
            let mut seeds = BTreeMap::new();
            for &seed in &config.sweep.seeds {
                let folder = find("sweep", &format!("{name}/{index}-s{seed}"))?;
                let (log, validation) = (tables::read(&folder)?, tables::read(&folder)?);
                seeds.insert(seed, Swept { log, validation });
            }
            all.push(SweepInputs {
                factor: name.clone(),
                run: factor.run.clone(),
                value: point.value,
                is_default: point.is_default,
                seeds,
            });
        }
    }
    Ok(all)
}

/// Every model on every set: the dense models first, then the runs.
fn sets(config: &Config, find: &Find<'_>) -> Result<Vec<SetInputs>> {
    let bases = config.base_seeds().iter().map(|&seed| (None, seed));
    let runs = config.runs.keys();
    let runs =
        runs.flat_map(|run| config.seeds.iter().map(move |&seed| (Some(run), seed)));
    let models: Vec<(Option<&String>, u64)> = bases.chain(runs).collect();

    let mut all = Vec::new();
    for set in config.evaluate.sets.iter().map(|set| EvaluateConfig::set_name(set)) {
        for &(run, seed) in &models {
            let model = run.map_or_else(String::new, |run| format!("{run}-"));
            let folder = find("evaluate", &format!("{model}s{seed}.{set}"))?;
            all.push(SetInputs {
                set: set.clone(),
                run: run.cloned(),
                seed,
                metrics: tables::read(&folder)?,
                resamples: tables::read(&folder)?,
            });
        }
    }
    Ok(all)
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
        cost: cost(&train, &find("evaluate", &key)?),
        log: tables::read(&train)?,
        validation: tables::read(&train)?,
        metrics: tables::read(&find("evaluate", &key)?)?,
        outcomes: outcomes(&find("evaluate", &key)?)?,
        ..RunInputs::default()
    };

    // Their intervals are needed where there are no seeds to compare.
    if config.seeds.len() == 1 {
        inputs.resamples = tables::read(&find("evaluate", &key)?)?;
    }

    // A dense model has neither experts nor a router.
    if !is_dense(config, run) {
        let analyze = find("analyze", &key)?;
        inputs.routing = tables::read(&train)?;
        inputs.trained_similarity = tables::read(&train)?;
        inputs.analysis = tables::read(&analyze)?;
        inputs.similarity = tables::read(&analyze)?;
    }
    Ok(inputs)
}

/// The outcomes of a run; the table is streamed, and its rows are gathered by what they are of.
fn outcomes(folder: &Path) -> Result<Outcomes> {
    let path = folder.join(OutcomeRow::FILE);
    let context = || format!("reading {}", path.display());
    let mut reader = TableReader::open(&path).context(context)?;

    let mut found = Outcomes::new();
    while let Some(part) = reader.next().context(context)? {
        let rows: Vec<OutcomeRow> = tables::from_table(part).context(context)?;
        for OutcomeRow { point, task, split, metric, sample, value } in rows {
            let key = OutcomeKey { point, task, metric, split };
            found.entry(key).or_default().push((sample, round_f32(value)));
        }
    }
    for pictures in found.values_mut() {
        pictures.sort_by_key(|(sample, _)| *sample);
    }
    Ok(found)
}

/// What the manifests of a run say about its cost; a folder without one says nothing.
fn cost(train: &Path, evaluate: &Path) -> Cost {
    let manifest = |folder: &Path| -> Value {
        let text = std::fs::read(folder.join(MANIFEST)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    };
    let (train, evaluate) = (manifest(train), manifest(evaluate));
    let provenance = |name: &str| train["provenance"][name].as_f64();
    Cost {
        training: provenance("wall"),
        memory: provenance("peak_rss"),
        picture: evaluate["metrics"][MILLISECONDS_PER_PICTURE].as_f64(),
        threads: evaluate["provenance"]["threads"].as_f64(),
    }
}

/// The runs whose samples are drawn: dense, reference and showcase.
fn drawn(config: &Config) -> BTreeSet<&String> {
    let report = &config.report;
    let named = |name: &&String| **name == report.reference || **name == report.showcase;
    let dense = config.runs.iter().find(|(_, run)| is_dense(config, run));
    config.runs.keys().filter(named).chain(dense.map(|(name, _)| name)).collect()
}

/// Patches along a side of the pictures of these runs; 0 without a run.
fn patches(config: &Config, runs: &BTreeSet<&String>, find: &Find<'_>) -> Result<usize> {
    let (Some(run), Some(seed)) = (runs.first(), config.seeds.first()) else {
        return Ok(0);
    };
    let folder = find("train", &format!("{run}-s{seed}"))?;
    let shape: ClipConfig = json(&folder.join("config.json"))?;
    Ok(shape.vision.image_size / shape.vision.patch)
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
        let rows: Vec<PictureRow> = tables::from_table(part).context(context)?;

        let shown = rows.into_iter().filter(|row| wanted.contains(&row.sample.sample));
        found.extend(shown.map(|row| (row.sample.sample, row.image)));
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
