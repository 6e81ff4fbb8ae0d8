//! Loading gives back what the stages wrote, and says what is wrong with what they did not.

use std::path::{Path, PathBuf};

use super::sample::inputs;
use super::*;
use crate::config::{Activation, Config};
use crate::error::Result;
use crate::io::table::{Column, Table};
use crate::model::params::parameter_counts;
use crate::model::{ClipConfig, Moe, TextConfig, VisionConfig};

fn texts<T>(rows: &[T], pick: impl Fn(&T) -> &str) -> Column {
    Column::Text(rows.iter().map(|r| pick(r).to_owned()).collect())
}

fn u32s<T>(rows: &[T], pick: impl Fn(&T) -> u32) -> Column {
    Column::U32(rows.iter().map(pick).collect())
}

fn f64s<T>(rows: &[T], pick: impl Fn(&T) -> f64) -> Column {
    Column::F64(rows.iter().map(pick).collect())
}

fn write(table: &Table, folder: &Path, name: &str) {
    std::fs::create_dir_all(folder).unwrap();
    table.write(&folder.join(name)).unwrap();
}

fn shape() -> ClipConfig {
    ClipConfig {
        embed_dim: 16,
        activation: Activation::Gelu,
        vision: VisionConfig {
            image_size: 32,
            patch: 8,
            width: 32,
            layers: 3,
            heads: 2,
            hidden: 128,
        },
        text: TextConfig {
            context: 16,
            vocabulary: 160,
            width: 24,
            layers: 3,
            heads: 2,
            hidden: 96,
        },
        moe: None,
    }
}

/// Lays the tables of one run out as docs/artifacts.md says.
fn write_run(root: &Path, run: &RunInputs) {
    let key = format!("{}-s{}", run.run, run.seed);
    let folder = |stage: &str| root.join(stage).join(&key);
    let log = Table::new()
        .with("step", u32s(&run.log, |r| r.step))
        .with("loss", f64s(&run.log, |r| r.loss))
        .with("clip", f64s(&run.log, |r| r.clip))
        .with("balance", f64s(&run.log, |r| r.balance))
        .with("eesd", f64s(&run.log, |r| r.eesd));
    write(&log, &folder("train"), "log.parquet");
    let shape = serde_json::to_string(&shape()).unwrap();
    std::fs::write(folder("train").join("config.json"), shape).unwrap();
    let routing = Table::new()
        .with("step", u32s(&run.routing, |r| r.step))
        .with("tower", texts(&run.routing, |r| &r.tower))
        .with("layer", u32s(&run.routing, |r| r.layer))
        .with("entropy", f64s(&run.routing, |r| r.entropy))
        .with(
            "utilisation",
            Column::Vectors {
                width: 4,
                data: run.routing.iter().flat_map(|r| r.utilisation.clone()).collect(),
            },
        );
    write(&routing, &folder("train"), "routing.parquet");
    let validation = Table::new()
        .with("step", u32s(&run.validation, |r| r.step))
        .with("metric", texts(&run.validation, |r| &r.metric))
        .with("value", f64s(&run.validation, |r| r.value));
    write(&validation, &folder("train"), "validation.parquet");
    let metrics = Table::new()
        .with("point", texts(&run.metrics, |r| &r.point))
        .with("task", texts(&run.metrics, |r| &r.task))
        .with("split", texts(&run.metrics, |r| &r.split))
        .with("metric", texts(&run.metrics, |r| &r.metric))
        .with("value", f64s(&run.metrics, |r| r.value));
    write(&metrics, &folder("evaluate"), "metrics.parquet");
    let analysis = Table::new()
        .with("point", texts(&run.analysis, |r| &r.point))
        .with("tower", texts(&run.analysis, |r| &r.tower))
        .with("layer", u32s(&run.analysis, |r| r.layer))
        .with("metric", texts(&run.analysis, |r| &r.metric))
        .with("expert", u32s(&run.analysis, |r| r.expert))
        .with("value", f64s(&run.analysis, |r| r.value));
    write(&analysis, &folder("analyze"), "analysis.parquet");
    let similarity = Table::new()
        .with("point", texts(&run.similarity, |r| &r.point))
        .with("tower", texts(&run.similarity, |r| &r.tower))
        .with("layer", u32s(&run.similarity, |r| r.layer))
        .with("expert", u32s(&run.similarity, |r| r.expert))
        .with("other", u32s(&run.similarity, |r| r.other))
        .with("cosine", f64s(&run.similarity, |r| r.cosine));
    write(&similarity, &folder("analyze"), "similarity_matrix.parquet");
}

fn write_evidence(root: &Path, inputs: &ReportInputs) {
    for one in &inputs.clusterings {
        let folder = root.join("cluster").join(format!("s{}", one.seed));
        let clusters = Table::new()
            .with("tower", texts(&one.clusters, |r| &r.tower))
            .with("layer", u32s(&one.clusters, |r| r.layer))
            .with("cluster", u32s(&one.clusters, |r| r.cluster))
            .with("size", u32s(&one.clusters, |r| r.size))
            .with("mean_cosine", f64s(&one.clusters, |r| r.mean_cosine));
        write(&clusters, &folder, "clusters.parquet");
        let chosen = one.iterations.iter().map(|r| r.chosen).collect();
        let iterations = Table::new()
            .with("tower", texts(&one.iterations, |r| &r.tower))
            .with("layer", u32s(&one.iterations, |r| r.layer))
            .with("restart", u32s(&one.iterations, |r| r.restart))
            .with("iteration", u32s(&one.iterations, |r| r.iteration))
            .with("objective", f64s(&one.iterations, |r| r.objective))
            .with("chosen", Column::Bool(chosen));
        write(&iterations, &folder, "iterations.parquet");
    }
    for one in &inputs.subspaces {
        let folder =
            root.join("subspaces").join(format!("{}-s{}", one.variant, one.seed));
        let experts = Table::new()
            .with("tower", texts(&one.experts, |r| &r.tower))
            .with("layer", u32s(&one.experts, |r| r.layer))
            .with("expert", u32s(&one.experts, |r| r.expert))
            .with("matrix", texts(&one.experts, |r| &r.matrix))
            .with("tokens", u32s(&one.experts, |r| r.tokens))
            .with("rank", u32s(&one.experts, |r| r.rank))
            .with("full_rank", u32s(&one.experts, |r| r.full_rank))
            .with("retained", f64s(&one.experts, |r| r.retained))
            .with("error_inside", f64s(&one.experts, |r| r.error_inside))
            .with("error_outside", f64s(&one.experts, |r| r.error_outside))
            .with("shrinkage", f64s(&one.experts, |r| r.shrinkage));
        write(&experts, &folder, "subspaces.parquet");
        let spectra = Table::new()
            .with("tower", texts(&one.spectra, |r| &r.tower))
            .with("layer", u32s(&one.spectra, |r| r.layer))
            .with("expert", u32s(&one.spectra, |r| r.expert))
            .with("matrix", texts(&one.spectra, |r| &r.matrix))
            .with("index", u32s(&one.spectra, |r| r.index))
            .with("energy", f64s(&one.spectra, |r| r.energy));
        write(&spectra, &folder, "spectra.parquet");
    }
}

fn write_pictures(root: &Path, inputs: &ReportInputs) {
    let rows = &inputs.retrievals;
    let retrievals = Table::new()
        .with("query", u32s(rows, |r| r.query))
        .with("text", texts(rows, |r| &r.text))
        .with("sample", u32s(rows, |r| r.sample))
        .with("own_rank", u32s(rows, |r| r.own_rank.unwrap()))
        .with("rank", u32s(rows, |r| r.rank))
        .with("retrieved", u32s(rows, |r| r.retrieved))
        .with("score", Column::F32(rows.iter().map(|r| r.score).collect()));
    let folder = root.join("evaluate").join("cluster-aware-eesd-s1");
    write(&retrievals, &folder, "retrievals.parquet");
    let samples = Table::new()
        .with("sample", Column::U32(inputs.pictures.keys().copied().collect()))
        .with("image", Column::Bytes(inputs.pictures.values().cloned().collect()));
    write(&samples, &root.join("dataset"), "samples-pair.parquet");
    let meta = &inputs.dataset;
    let json = serde_json::json!({
        "source": meta.source, "image_size": 32, "splits": meta.splits, "tests": meta.tests,
        "shifts": meta.shifts, "retrieval": meta.retrieval, "held_out": meta.held_out,
        "templates": meta.templates, "attribution": meta.attribution,
    });
    std::fs::write(root.join("dataset/dataset.json"), json.to_string()).unwrap();
}

fn load_from(root: &Path, config: &Config) -> Result<ReportInputs> {
    load(config, &|stage: &str, run: &str| -> Result<PathBuf> {
        Ok(root.join(stage).join(run))
    })
}

#[test]
fn what_the_stages_wrote_renders_like_the_rows_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut inputs = inputs(&["seeds=[1,2]", "train.optim.steps=40"]);
    for run in &mut inputs.runs {
        run.facts =
            Facts { parameters_total: Some(71_801), parameters_active: Some(71_801) };
        write_run(root, run);
    }
    write_evidence(root, &inputs);
    write_pictures(root, &inputs);
    let loaded = load_from(root, &inputs.config).unwrap();
    let (found, expected) = (render(&loaded).unwrap(), render(&inputs).unwrap());
    assert!(found.html == expected.html && found.markdown == expected.markdown);

    let broken = root.join("evaluate/sparse-s2/metrics.parquet");
    Table::new().with("point", Column::Text(vec![])).write(&broken).unwrap();
    let error = format!("{:?}", load_from(root, &inputs.config).unwrap_err());
    assert!(error.contains("sparse-s2") && error.contains("no column"), "{error}");
    std::fs::remove_file(&broken).unwrap();
    let error = format!("{:?}", load_from(root, &inputs.config).unwrap_err());
    assert!(error.contains("metrics.parquet"), "{error}");
}

#[test]
fn parameters_are_those_of_the_published_layout() {
    // The number of values in the tiny open_clip checkpoint of the fixtures.
    let dense = shape();
    assert_eq!(parameter_counts(&dense), (71_801, 71_801));
    let moe = Moe {
        experts: 4,
        top_k: 2,
        rank: None,
        vision_blocks: vec![1],
        text_blocks: vec![],
    };
    let sparse = ClipConfig { moe: Some(moe), ..dense };
    let expert = 2 * 32 * 128 + 32 + 128;
    let (total, active) = parameter_counts(&sparse);
    assert_eq!(total, 71_801 + 3 * expert + 4 * 32);
    assert_eq!(active, 71_801 + expert + 4 * 32);
}
