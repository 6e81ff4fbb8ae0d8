//! Loading gives back what the stages wrote, and says what is wrong with what they did not.

use std::path::{Path, PathBuf};

use super::sample::inputs;
use super::*;
use crate::config::{Activation, Config};
use crate::error::Result;
use crate::io::table::{Column, Table};
use crate::model::params::parameter_counts;
use crate::model::{ClipConfig, Moe, TextConfig, VisionConfig};
use crate::tables::{self, LabelRow, PictureRow, Row, SampleRow};

fn write<R: Row + Clone>(folder: &Path, rows: &[R]) {
    std::fs::create_dir_all(folder).unwrap();
    tables::write(&folder.join(R::FILE), rows.to_vec()).unwrap();
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

/// Writes the files of one run as its stages do.
fn write_run(root: &Path, run: &RunInputs) {
    let key = format!("{}-s{}", run.run, run.seed);
    let folder = |stage: &str| root.join(stage).join(&key);

    write(&folder("train"), &run.log);
    write(&folder("train"), &run.validation);
    let shape = serde_json::to_string(&shape()).unwrap();
    std::fs::write(folder("train").join("config.json"), shape).unwrap();

    write(&folder("evaluate"), &run.metrics);
    write(&folder("evaluate"), &outcome_rows(run));
    if !run.resamples.is_empty() {
        write(&folder("evaluate"), &run.resamples);
    }
    if !run.routing.is_empty() {
        write(&folder("train"), &run.routing);
        write(&folder("train"), &run.trained_similarity);
        write(&folder("analyze"), &run.analysis);
        write(&folder("analyze"), &run.similarity);
    }
}

/// The rows that outcomes were gathered from.
fn outcome_rows(run: &RunInputs) -> Vec<crate::tables::OutcomeRow> {
    let of_key = |(key, pictures): (&OutcomeKey, &Vec<(u32, f32)>)| {
        let key = key.clone();
        let row = move |&(sample, value): &(u32, f32)| crate::tables::OutcomeRow {
            point: key.point.clone(),
            task: key.task.clone(),
            split: key.split.clone(),
            metric: key.metric.clone(),
            sample,
            value: f64::from(value),
        };
        pictures.iter().map(row).collect::<Vec<_>>()
    };
    run.outcomes.iter().flat_map(of_key).collect()
}

fn write_evidence(root: &Path, inputs: &ReportInputs) {
    for one in &inputs.clusterings {
        let folder = root.join("cluster").join(format!("s{}", one.seed));
        write(&folder, &one.clusters);
        write(&folder, &one.iterations);
    }
    for one in &inputs.subspaces {
        let folder =
            root.join("subspaces").join(format!("{}-s{}", one.variant, one.seed));
        write(&folder, &one.experts);
        write(&folder, &one.spectra);
    }
}

/// Writes the tables of the analysis that the gallery reads, and the validation split.
fn write_gallery(root: &Path, inputs: &ReportInputs) {
    let gallery = &inputs.gallery;
    for (run, rows) in &gallery.tokens {
        let folder = root.join("analyze").join(format!("{run}-s1"));
        write(&folder, rows);
        write(&folder, &gallery.embeddings[run]);
    }
    let folder = root.join("dataset");
    std::fs::create_dir_all(&folder).unwrap();
    let rows = gallery.samples.iter().map(|own| {
        let category = crate::num::index_u32(own.category);
        let sample = SampleRow {
            sample: own.sample,
            captions: vec![own.caption.clone()],
            group: category,
            subgroup: category,
            concept: category,
            ..SampleRow::default()
        };
        PictureRow { sample, image: own.picture.clone() }
    });
    tables::write(&folder.join(SampleRow::file("val")), rows.collect()).unwrap();

    let names = gallery.categories.iter().enumerate().map(|(index, name)| LabelRow {
        kind: LabelRow::GROUP.to_owned(),
        index: crate::num::index_u32(index),
        name: name.clone(),
    });
    write(&folder, &names.collect::<Vec<_>>());
}

/// The section that [`super::sample::swept`] is the result of.
fn swept_config() -> crate::config::SweepConfig {
    let set = [
        "sweep.seeds=[1, 2, 3]",
        "sweep.factors.tau={run: cluster-aware, values: [subspaces.paper.tau=0.9, subspaces.paper.tau=0.99, subspaces.paper.tau=0.999]}",
    ];
    let set = set.iter().map(|&s| s.to_owned()).collect();
    let overrides = crate::config::Overrides { profile: Some("emoji".to_owned()), set };
    crate::config::load_default(&overrides).unwrap().sweep
}

fn write_sweep(root: &Path, inputs: &ReportInputs) {
    for (index, value) in inputs.sweep.iter().enumerate() {
        for (seed, own) in &value.seeds {
            let folder = root.join("sweep/tau").join(format!("{index}-s{seed}"));
            write(&folder, &own.log);
            write(&folder, &own.validation);
        }
    }
}

fn write_pictures(root: &Path, inputs: &ReportInputs) {
    write(&root.join("evaluate/cluster-aware-eesd-s1"), &inputs.retrievals);

    let folder = root.join("dataset");
    std::fs::create_dir_all(&folder).unwrap();
    let rows = inputs.pictures.iter().map(|(&sample, image)| PictureRow {
        sample: SampleRow { sample, ..SampleRow::default() },
        image: image.clone(),
    });
    tables::write(&folder.join(SampleRow::file("pair")), rows.collect()).unwrap();

    let meta = &inputs.dataset;
    let json = serde_json::json!({
        "source": meta.source, "image_size": 32, "splits": meta.splits, "tests": meta.tests,
        "shifts": meta.shifts, "retrieval": meta.retrieval, "held_out": meta.held_out,
        "templates": meta.templates, "attribution": meta.attribution,
    });
    std::fs::write(folder.join("dataset.json"), json.to_string()).unwrap();
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
    write_gallery(root, &inputs);
    inputs.pixels = super::sample::pixels(0.2);
    write(&root.join("evaluate/pixels"), &inputs.pixels);
    inputs.config.sweep = swept_config();
    inputs.sweep = super::sample::swept();
    write_sweep(root, &inputs);
    let loaded = load_from(root, &inputs.config).unwrap();
    let (found, expected) = (render(&loaded).unwrap(), render(&inputs).unwrap());
    assert!(found.html == expected.html && found.markdown == expected.markdown);

    let broken = root.join("evaluate/sparse-s2/metrics.parquet");
    Table::new().with("point", Column::Text(vec![])).write(&broken).unwrap();
    let error = format!("{:?}", load_from(root, &inputs.config).unwrap_err());
    assert!(error.contains("sparse-s2") && error.contains("no column task"), "{error}");
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
