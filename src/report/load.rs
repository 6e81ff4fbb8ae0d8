//! Reads the tables of all stages into [`ReportInputs`].
//!
//! Knows the files and columns of `docs/artifacts.md`, not where they lie: the caller finds
//! the folder of a stage and a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::inputs::{
    AnalysisRow, ClusterRow, Clustering, DatasetMeta, Facts, IterationRow, LogRow,
    MetricRow, ReportInputs, RetrievalRow, RoutingRow, RunInputs, SimilarityRow,
    SpectrumRow, SubspaceRow, Subspaces, ValidationRow, is_dense,
};
use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::io::table::{Table, TableReader};
use crate::model::ClipConfig;
use crate::model::params::parameter_counts;

/// Finds the folder of a stage's run: `("train", "sparse-s1")`, `("cluster", "s1")`,
/// `("subspaces", "paper-s1")`, `("dataset", "")`.
pub type Find<'a> = dyn Fn(&str, &str) -> Result<PathBuf> + 'a;

/// Reads everything the report shows.
pub fn load(config: &Config, find: &Find<'_>) -> Result<ReportInputs> {
    let mut runs = Vec::new();
    for (name, run) in &config.runs {
        for &seed in &config.seeds {
            runs.push(load_run((name, is_dense(config, run)), seed, find)?);
        }
    }
    let dataset_folder = find("dataset", "")?;
    let dataset: DatasetMeta = json(&dataset_folder.join("dataset.json"))?;
    let retrievals = retrievals(config, find)?;
    let wanted: BTreeSet<u32> =
        retrievals.iter().flat_map(|r| [r.sample, r.retrieved]).collect();
    let table = dataset_folder.join(format!("samples-{}.parquet", dataset.retrieval));
    let pictures =
        if wanted.is_empty() { BTreeMap::new() } else { pictures(&table, &wanted)? };
    let (clusterings, subspaces) = evidence(config, find)?;
    Ok(ReportInputs {
        config: config.clone(),
        dataset,
        runs,
        clusterings,
        subspaces,
        retrievals,
        pictures,
    })
}

fn load_run(
    (name, dense): (&str, bool),
    seed: u64,
    find: &Find<'_>,
) -> Result<RunInputs> {
    let key = format!("{name}-s{seed}");
    let train = find("train", &key)?;
    let evaluate = find("evaluate", &key)?;
    let shape: ClipConfig = json(&train.join("config.json"))?;
    let (total, active) = parameter_counts(&shape);
    let mut run = RunInputs {
        run: name.to_owned(),
        seed,
        facts: Facts {
            parameters_total: Some(total as u64),
            parameters_active: Some(active as u64),
        },
        log: rows(&train.join("log.parquet"), log)?,
        validation: rows(&train.join("validation.parquet"), validation)?,
        metrics: rows(&evaluate.join("metrics.parquet"), metrics)?,
        ..RunInputs::default()
    };
    if !dense {
        let analyze = find("analyze", &key)?;
        run.routing = rows(&train.join("routing.parquet"), routing)?;
        run.analysis = rows(&analyze.join("analysis.parquet"), analysis)?;
        run.similarity = rows(&analyze.join("similarity_matrix.parquet"), similarity)?;
    }
    Ok(run)
}

fn retrievals(config: &Config, find: &Find<'_>) -> Result<Vec<RetrievalRow>> {
    let showcase = &config.report.showcase;
    match config.seeds.first() {
        Some(seed) if config.runs.contains_key(showcase) => {
            let folder = find("evaluate", &format!("{showcase}-s{seed}"))?;
            rows(&folder.join("retrievals.parquet"), retrieval)
        }
        _ => Ok(Vec::new()),
    }
}

/// Clusterings of all bases, and the subspaces of every variant that a run uses.
fn evidence(
    config: &Config,
    find: &Find<'_>,
) -> Result<(Vec<Clustering>, Vec<Subspaces>)> {
    let inits = config.runs.values().filter_map(|run| config.inits.get(&run.init));
    let variants: BTreeSet<&String> =
        inits.filter_map(|i| i.subspaces.as_ref()).collect();
    let (mut clusterings, mut subspaces) = (Vec::new(), Vec::new());
    if variants.is_empty() {
        return Ok((clusterings, subspaces));
    }
    for &seed in config.base_seeds() {
        let folder = find("cluster", &format!("s{seed}"))?;
        clusterings.push(Clustering {
            seed,
            clusters: rows(&folder.join("clusters.parquet"), clusters)?,
            iterations: rows(&folder.join("iterations.parquet"), iterations)?,
        });
        for variant in &variants {
            let folder = find("subspaces", &format!("{variant}-s{seed}"))?;
            subspaces.push(Subspaces {
                variant: (*variant).clone(),
                seed,
                experts: rows(&folder.join("subspaces.parquet"), subspace)?,
                spectra: rows(&folder.join("spectra.parquet"), spectrum)?,
            });
        }
    }
    Ok((clusterings, subspaces))
}

/// The PNG bytes of the wanted samples, streamed.
fn pictures(path: &Path, wanted: &BTreeSet<u32>) -> Result<BTreeMap<u32, Vec<u8>>> {
    let context = || format!("reading {}", name(path));
    let mut reader = TableReader::open(path).context(context)?;
    let mut found = BTreeMap::new();
    while let Some(part) = reader.next().context(context)? {
        let samples = part.u32s("sample").context(context)?;
        let images = part.bytes("image").context(context)?;
        for (sample, image) in samples.iter().zip(images) {
            if wanted.contains(sample) {
                found.insert(*sample, image.clone());
            }
        }
    }
    Ok(found)
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::corrupt(format!("{}: {e}", path.display())).caused_by(e))
}

fn rows<T>(path: &Path, parse: fn(&Table) -> Result<Vec<T>>) -> Result<Vec<T>> {
    let context = || format!("reading {}", path.display());
    let table = Table::read(path).context(context)?;
    parse(&table).context(context)
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn log(table: &Table) -> Result<Vec<LogRow>> {
    let (loss, clip) = (table.f64s("loss")?, table.f64s("clip")?);
    let (balance, eesd) = (table.f64s("balance")?, table.f64s("eesd")?);
    let row = |(i, &step): (usize, &u32)| LogRow {
        step,
        loss: loss[i],
        clip: clip[i],
        balance: balance[i],
        eesd: eesd[i],
    };
    Ok(table.u32s("step")?.iter().enumerate().map(row).collect())
}

fn routing(table: &Table) -> Result<Vec<RoutingRow>> {
    let (tower, layer) = (table.texts("tower")?, table.u32s("layer")?);
    let entropy = table.f64s("entropy")?;
    let (width, utilisation) = table.vectors("utilisation")?;
    let row = |(i, &step): (usize, &u32)| RoutingRow {
        step,
        tower: tower[i].clone(),
        layer: layer[i],
        entropy: entropy[i],
        utilisation: utilisation[i * width..(i + 1) * width].to_vec(),
    };
    Ok(table.u32s("step")?.iter().enumerate().map(row).collect())
}

fn validation(table: &Table) -> Result<Vec<ValidationRow>> {
    let (metric, value) = (table.texts("metric")?, table.f64s("value")?);
    let row = |(i, &step): (usize, &u32)| ValidationRow {
        step,
        metric: metric[i].clone(),
        value: value[i],
    };
    Ok(table.u32s("step")?.iter().enumerate().map(row).collect())
}

fn metrics(table: &Table) -> Result<Vec<MetricRow>> {
    let (point, task) = (table.texts("point")?, table.texts("task")?);
    let (split, metric) = (table.texts("split")?, table.texts("metric")?);
    let row = |(i, &value): (usize, &f64)| MetricRow {
        point: point[i].clone(),
        task: task[i].clone(),
        split: split[i].clone(),
        metric: metric[i].clone(),
        value,
    };
    Ok(table.f64s("value")?.iter().enumerate().map(row).collect())
}

fn analysis(table: &Table) -> Result<Vec<AnalysisRow>> {
    let (point, tower) = (table.texts("point")?, table.texts("tower")?);
    let (layer, metric) = (table.u32s("layer")?, table.texts("metric")?);
    let expert = table.u32s("expert")?;
    let row = |(i, &value): (usize, &f64)| AnalysisRow {
        point: point[i].clone(),
        tower: tower[i].clone(),
        layer: layer[i],
        metric: metric[i].clone(),
        expert: expert[i],
        value,
    };
    Ok(table.f64s("value")?.iter().enumerate().map(row).collect())
}

fn similarity(table: &Table) -> Result<Vec<SimilarityRow>> {
    let (point, tower) = (table.texts("point")?, table.texts("tower")?);
    let layer = table.u32s("layer")?;
    let (expert, other) = (table.u32s("expert")?, table.u32s("other")?);
    let row = |(i, &cosine): (usize, &f64)| SimilarityRow {
        point: point[i].clone(),
        tower: tower[i].clone(),
        layer: layer[i],
        expert: expert[i],
        other: other[i],
        cosine,
    };
    Ok(table.f64s("cosine")?.iter().enumerate().map(row).collect())
}

fn clusters(table: &Table) -> Result<Vec<ClusterRow>> {
    let (tower, layer) = (table.texts("tower")?, table.u32s("layer")?);
    let (cluster, size) = (table.u32s("cluster")?, table.u32s("size")?);
    let row = |(i, &mean_cosine): (usize, &f64)| ClusterRow {
        tower: tower[i].clone(),
        layer: layer[i],
        cluster: cluster[i],
        size: size[i],
        mean_cosine,
    };
    Ok(table.f64s("mean_cosine")?.iter().enumerate().map(row).collect())
}

fn iterations(table: &Table) -> Result<Vec<IterationRow>> {
    let (tower, layer) = (table.texts("tower")?, table.u32s("layer")?);
    let (restart, iteration) = (table.u32s("restart")?, table.u32s("iteration")?);
    let chosen = table.bools("chosen")?;
    let row = |(i, &objective): (usize, &f64)| IterationRow {
        tower: tower[i].clone(),
        layer: layer[i],
        restart: restart[i],
        iteration: iteration[i],
        objective,
        chosen: chosen[i],
    };
    Ok(table.f64s("objective")?.iter().enumerate().map(row).collect())
}

fn subspace(table: &Table) -> Result<Vec<SubspaceRow>> {
    let (tower, layer) = (table.texts("tower")?, table.u32s("layer")?);
    let (expert, matrix) = (table.u32s("expert")?, table.texts("matrix")?);
    let (tokens, rank) = (table.u32s("tokens")?, table.u32s("rank")?);
    let (full_rank, retained) = (table.u32s("full_rank")?, table.f64s("retained")?);
    let inside = table.f64s("error_inside")?;
    let outside = table.f64s("error_outside")?;
    let row = |(i, &shrinkage): (usize, &f64)| SubspaceRow {
        tower: tower[i].clone(),
        layer: layer[i],
        expert: expert[i],
        matrix: matrix[i].clone(),
        tokens: tokens[i],
        rank: rank[i],
        full_rank: full_rank[i],
        retained: retained[i],
        error_inside: inside[i],
        error_outside: outside[i],
        shrinkage,
    };
    Ok(table.f64s("shrinkage")?.iter().enumerate().map(row).collect())
}

fn spectrum(table: &Table) -> Result<Vec<SpectrumRow>> {
    let (tower, layer) = (table.texts("tower")?, table.u32s("layer")?);
    let (expert, matrix) = (table.u32s("expert")?, table.texts("matrix")?);
    let index = table.u32s("index")?;
    let row = |(i, &energy): (usize, &f64)| SpectrumRow {
        tower: tower[i].clone(),
        layer: layer[i],
        expert: expert[i],
        matrix: matrix[i].clone(),
        index: index[i],
        energy,
    };
    Ok(table.f64s("energy")?.iter().enumerate().map(row).collect())
}

fn retrieval(table: &Table) -> Result<Vec<RetrievalRow>> {
    let (query, text) = (table.u32s("query")?, table.texts("text")?);
    let (sample, rank) = (table.u32s("sample")?, table.u32s("rank")?);
    let retrieved = table.u32s("retrieved")?;
    let has_own = table.columns().iter().any(|(name, _)| name == "own_rank");
    let own_rank = if has_own { table.u32s("own_rank")? } else { &[] };
    let row = |(i, &score): (usize, &f32)| RetrievalRow {
        query: query[i],
        text: text[i].clone(),
        sample: sample[i],
        own_rank: own_rank.get(i).copied(),
        rank: rank[i],
        retrieved: retrieved[i],
        score,
    };
    Ok(table.f32s("score")?.iter().enumerate().map(row).collect())
}
