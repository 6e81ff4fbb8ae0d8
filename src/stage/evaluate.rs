//! Stage `evaluate`: a trained model and its initialization on the held-out splits.
//!
//! Writes `metrics.parquet`, `outcomes.parquet`, `metrics.json`, `resamples.parquet` and
//! `retrievals.parquet`; of the classifiers on pixels, `pixels.parquet`; on a set of
//! `evaluate.sets`, `set_metrics.parquet` and
//! `set_resamples.parquet`. How long a picture takes depends on the machine, so it stands in
//! the manifest alone.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::files::{self, Pictures, Spread, Timed};
use super::measure::{Model, measure};
use crate::checkpoint::Preprocessing;
use crate::config::{EvaluateConfig, OptimConfig};
use crate::data::pairs::{EvaluationSet, Tolerance};
use crate::engine::{self, Engine, Objective, Trainable, Training};
use crate::error::{Context as _, Result};
use crate::eval::sets::Settings;
use crate::eval::{
    self, Bootstrap, Bundle, EmbeddingLoss, Encoder, Evaluation, Example, Measurement,
    PixelSettings, Tuner,
};
use crate::image::Pixels;
use crate::linalg::Matrix;
use crate::model::names::ParameterId;
use crate::model::{Checkpoint, Tower};
use crate::num::{index_u32, round_f32};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::tables::{
    self, MILLISECONDS_PER_PICTURE, MetricRow, OutcomeRow, PixelRow, ResampleRow,
    RetrievalRow, Row as _, SetMetricRow, SetResampleRow,
};
use crate::text::Tokenizer;
use crate::train::Schedule;

/// This stage.
pub const STAGE: Stage = Stage {
    name: "evaluate",
    version: 1,
    width: Width::Shared,
    reach: Reach::Ranks,
    about: "Measures trained models on pictures that were never trained on.",
    run,
};

/// Stage `evaluate`: on the splits of the data set, or on a set of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "on", rename_all = "kebab-case")]
pub enum EvaluateParams {
    /// The held-out splits.
    Splits {
        /// Section `evaluate`, without its sets.
        evaluate: EvaluateConfig,
        /// Seed of this run.
        seed: u64,
    },
    /// Classifiers on pixels, on the held-out splits.
    Pixels {
        /// `evaluate.pixels`.
        pixels: usize,
        /// `evaluate.probe_l2`.
        probe_l2: Vec<f64>,
        /// `evaluate.bootstrap`.
        bootstrap: usize,
        /// Seed of the resamples, the first of the comparison.
        seed: u64,
    },
    /// The set at `path("set")`.
    Set {
        /// Its name.
        set: String,
        /// `evaluate.recall_at`.
        recall_at: Vec<usize>,
        /// `evaluate.bootstrap`.
        bootstrap: usize,
        /// `evaluate.batch`.
        batch: usize,
        /// `dataset.corrupt_share`.
        corrupt_share: f64,
    },
}

/// The split of every set that is measured on.
pub const SPLIT: &str = "test";

/// The run of the classifiers on pixels.
pub const PIXELS: &str = "pixels";

/// Number of example retrievals that are kept; the report shows as many as it is asked for.
const EXAMPLES: usize = 32;

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    match job.params()? {
        EvaluateParams::Splits { evaluate, seed } => on_splits(job, &evaluate, seed),
        EvaluateParams::Pixels { pixels, probe_l2, bootstrap, seed } => {
            let bootstrap = Bootstrap::new(seed, bootstrap)?;
            on_pixels(job, &PixelSettings { most: pixels, l2: probe_l2, bootstrap, seed })
        }
        EvaluateParams::Set { set, recall_at, bootstrap, batch, corrupt_share } => {
            let settings = Settings {
                batch,
                // One seed for all models: differences between them are paired.
                bootstrap: Bootstrap::new(0, bootstrap)?,
                recall_at,
            };
            on_set(job, &set, &settings, corrupt_share)
        }
    }
}

/// Measures the classifiers that see pixels only.
fn on_pixels(job: &mut Job<'_>, settings: &PixelSettings) -> Result<()> {
    let pictures = open(job)?;
    let tokenize = |texts: &[String]| pictures.tokenize(texts);
    let bundle = bundle(&pictures, &tokenize)?;
    let found = eval::pixel_baselines(&bundle, settings)?;
    if let Some(found) = &found {
        job.draft.metric("training_pictures", found.pictures as f64);
        job.draft.metric("l2", found.l2);
    } else {
        job.progress.line("no classifier on pixels: no test picture shows a concept of the training or validation pictures");
    }

    let rows = found.iter().flat_map(|found| {
        let nearest = found.nearest.iter().map(|m| ("nearest", m));
        nearest.chain(found.linear.iter().map(|m| ("linear", m))).map(|(name, m)| {
            PixelRow {
                classifier: name.to_owned(),
                pictures: index_u32(found.pictures),
                measured: m.clone(),
            }
        })
    });
    tables::write(&job.output(PixelRow::FILE), rows.collect())
}

/// Measures one model on one set of others.
fn on_set(
    job: &mut Job<'_>,
    name: &str,
    settings: &Settings,
    corrupt_share: f64,
) -> Result<()> {
    let folder = job.path("set")?.to_owned();
    let about = || format!("evaluating on {} (evaluate.sets)", folder.display());
    let set = EvaluationSet::open(&folder, SPLIT).context(about)?;

    // The model is a run's, or the dense one that the runs start from.
    let model = job.inputs.dir("train").or_else(|_| job.inputs.dir("pretrain"))?;
    let checkpoint = Checkpoint::read(model, "model.safetensors")?;
    let side = checkpoint.config.vision.image_size;
    let pictures = Preprocessing::read(&job.input("dataset", "dataset.json")?)?;
    let tokenizer = Tokenizer::open(&job.input("dataset", "tokenizer.json")?)?;
    let mut model = Model {
        engine: engine::open_model(checkpoint, files::backend(job)?)?,
        ranks: Arc::clone(&job.ranks),
        tokenizer,
        framing: pictures.framing(side)?,
        normalise: pictures.normalise(),
    };

    let tolerance = Tolerance::new(corrupt_share, "dataset.corrupt_share");
    let found =
        measure(&mut model, (&set, name), None, settings, tolerance).context(about)?;
    for bad in &found.skipped {
        job.progress.line(&format!("skipped {}: {}", bad.key, bad.reason));
    }
    for m in &found.measurements {
        job.draft.metric(&m.metric, m.value);
    }
    write_set(job, name, &found.measurements)
}

/// Writes both tables of a set.
fn write_set(job: &Job<'_>, set: &str, found: &[Measurement]) -> Result<()> {
    let rows = found.iter().map(|m| SetMetricRow {
        set: set.to_owned(),
        task: m.task.clone(),
        metric: m.metric.clone(),
        value: m.value,
        low: m.low,
        high: m.high,
        n: m.n,
    });
    tables::write(&job.output(SetMetricRow::FILE), rows.collect())?;

    let resamples = found.iter().flat_map(|m| {
        let values = m.resampled.iter().enumerate();
        values.map(|(index, &value)| SetResampleRow {
            metric: m.metric.clone(),
            resample: index_u32(index),
            value,
        })
    });
    tables::write(&job.output(SetResampleRow::FILE), resamples.collect())
}

/// Measures one run on the splits of the data set.
fn on_splits(job: &mut Job<'_>, evaluate: &EvaluateConfig, seed: u64) -> Result<()> {
    let pictures = open(job)?;
    let tokenize = |texts: &[String]| pictures.tokenize(texts);
    let bundle = bundle(&pictures, &tokenize)?;
    let backend = files::backend(job)?;

    job.progress.start(2, "evaluations");
    let mut json = Map::new();
    let (mut metrics, mut outcomes) = (Vec::new(), Vec::new());
    let mut resamples = Vec::new();
    let mut examples = Vec::new();

    // Probes are two thirds of an evaluation's time, and nobody compares initializations by
    // them: several runs share one.
    let unprobed = EvaluateConfig { shots: Vec::new(), ..evaluate.clone() };
    let points = [
        ("init", "init.safetensors", &unprobed),
        ("final", "model.safetensors", evaluate),
    ];
    for (point, weights, config) in points {
        let model = Checkpoint::read(files::folder(job, "train")?, weights)?;
        let mut opened = engine::open_model(model, backend)?;
        let spread = Spread::new(&mut *opened, &*job.ranks);
        let mut engine = Timed::new(spread);
        let mut found = eval::evaluate(&mut engine, &bundle, config, seed)?;

        // The manifest has the summary of the trained model, for `show` and `diff`.
        if point == "final" {
            let batch = evaluate.batch;
            examples =
                eval::example_retrievals(&mut engine, &bundle, EXAMPLES, batch, seed)?;
            let speed = engine.milliseconds_per_picture();
            job.draft.metric(MILLISECONDS_PER_PICTURE, speed);
            for m in found.measurements.iter().filter(|m| m.task == "summary") {
                job.draft.metric(&m.metric, m.value);
            }
        }

        // Last, because it changes the weights; a step of it is that of one rank.
        if evaluate.fine_tuning.steps > 0 && job.ranks.leads() {
            let mut tuned = Tuned::new(opened, &evaluate.fine_tuning)?;
            match eval::fine_tune(&mut tuned, &bundle, evaluate, seed)? {
                Some((measured, outcomes)) => {
                    found.measurements.push(measured);
                    found.outcomes.extend(outcomes);
                }
                None => found.notes.push(
                    "there is no fine-tuning: fewer than two subgroups have training \
                     pictures, or none has a shifted picture"
                        .to_owned(),
                ),
            }
        }

        // The table is for the report, the JSON for people and their notebooks.
        metrics.extend(rows(point, &found));
        outcomes.extend(found.outcomes.iter().map(|own| OutcomeRow {
            point: point.to_owned(),
            task: own.task.to_owned(),
            split: own.split.clone(),
            metric: own.metric.clone(),
            sample: own.sample,
            value: own.value,
        }));
        resamples.extend(resample_rows(point, &found));
        let text = found.to_json()?;
        let value: Value =
            serde_json::from_str(&text).context(|| "metrics".to_owned())?;
        json.insert(point.to_owned(), value);
        job.progress.advance(1);
    }

    tables::write(&job.output(MetricRow::FILE), metrics)?;
    tables::write(&job.output(OutcomeRow::FILE), outcomes)?;
    tables::write(&job.output(ResampleRow::FILE), resamples)?;
    tables::write(&job.output(RetrievalRow::FILE), retrievals(&examples))?;
    let text =
        serde_json::to_string_pretty(&json).context(|| "metrics".to_owned())? + "\n";
    let path = job.output("metrics.json");
    std::fs::write(&path, text).context(|| format!("writing {}", path.display()))
}

/// An engine whose image tower trains.
struct Tuned {
    engine: Box<dyn Engine>,
    schedule: Schedule,
}

impl Tuned {
    fn new(mut engine: Box<dyn Engine>, optim: &OptimConfig) -> Result<Self> {
        let trainable = Trainable::only(engine.config(), is_of_image_tower);
        engine.start_training(&Training {
            optim: optim.clone(),
            trainable,
            objective: Objective::default(),
            teacher: None,
        })?;
        Ok(Self { engine, schedule: Schedule::new(optim) })
    }
}

/// All that a picture passes on its way to an embedding.
fn is_of_image_tower(id: ParameterId) -> bool {
    match id {
        ParameterId::ClassEmbedding
        | ParameterId::PatchEmbedding
        | ParameterId::PreNormWeight
        | ParameterId::PreNormBias => true,
        ParameterId::PositionEmbedding(tower)
        | ParameterId::Block(tower, _, _)
        | ParameterId::PostNormWeight(tower)
        | ParameterId::PostNormBias(tower)
        | ParameterId::Projection(tower) => tower == Tower::Vision,
        ParameterId::LogitScale | ParameterId::TokenEmbedding => false,
    }
}

impl Encoder for Tuned {
    fn embed_dim(&self) -> usize {
        self.engine.config().embed_dim
    }

    fn scale(&self) -> Result<f64> {
        files::scale(&*self.engine)
    }

    fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix> {
        (&mut *self.engine).images(pixels, n)
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        (&mut *self.engine).texts(ids, n)
    }
}

impl Tuner for Tuned {
    fn step(&mut self, pixels: Pixels<'_>, loss: EmbeddingLoss<'_>) -> Result<f64> {
        self.engine.image_step(pixels, loss)
    }

    fn update(&mut self, step: usize) -> Result<f64> {
        let learning_rate = self.schedule.at(step);
        self.engine.update(learning_rate)?;
        Ok(learning_rate)
    }
}

/// Opens every split that evaluation reads.
fn open(job: &Job<'_>) -> Result<Pictures> {
    // Which splits there are, and what for, is up to the data set.
    let folder = files::folder(job, "dataset")?;
    let layout = crate::data::Dataset::open(folder)?.meta.layout;
    let mut splits = vec!["train", "val", layout.retrieval.as_str()];
    splits.extend(layout.tests.iter().map(String::as_str));
    splits.extend(layout.held_out.as_deref());
    splits.sort_unstable();
    splits.dedup();

    Pictures::open(folder, &splits)
}

/// The splits in their roles, and the texts that stand for concepts.
fn bundle<'a>(
    pictures: &'a Pictures,
    tokenize: eval::Tokenize<'a>,
) -> Result<Bundle<'a>> {
    let layout = &pictures.dataset.meta.layout;
    let mut tests = layout.tests.clone();
    tests.push(layout.retrieval.clone());
    tests.extend(layout.held_out.clone());
    tests.sort_unstable();
    tests.dedup();

    let splits = tests.iter().map(|name| pictures.role(name)).collect::<Result<_>>()?;
    Ok(Bundle {
        vocabulary: pictures.vocabulary(tokenize),
        train: pictures.role("train")?,
        validation: pictures.role("val")?,
        splits,
        tests: layout.tests.clone(),
        shifts: layout.shifts.clone(),
        retrieval: layout.retrieval.clone(),
        held_out: layout.held_out.clone(),
    })
}

/// The measurements of one point in time.
fn rows(point: &str, found: &Evaluation) -> impl Iterator<Item = MetricRow> {
    found
        .measurements
        .iter()
        .map(move |m| MetricRow { point: point.to_owned(), measured: m.clone() })
}

/// What the intervals of one point in time were read from.
fn resample_rows(point: &str, found: &Evaluation) -> impl Iterator<Item = ResampleRow> {
    found.measurements.iter().map(move |m| ResampleRow {
        point: point.to_owned(),
        task: m.task.clone(),
        split: m.split.clone(),
        metric: m.metric.clone(),
        values: m.resampled.iter().map(|&value| round_f32(value)).collect(),
    })
}

/// One row per picture found.
fn retrievals(examples: &[Example]) -> Vec<RetrievalRow> {
    let of = |(query, example): (usize, &Example)| -> Vec<RetrievalRow> {
        let found = example.retrieved.iter().enumerate();
        found
            .map(|(rank, found)| RetrievalRow {
                query: index_u32(query),
                text: example.text.clone(),
                sample: example.sample,
                own_rank: example.own_rank,
                rank: index_u32(rank),
                retrieved: found.sample,
                score: found.score,
            })
            .collect()
    };
    examples.iter().enumerate().flat_map(of).collect()
}
