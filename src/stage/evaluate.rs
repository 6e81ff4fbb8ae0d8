//! Stage `evaluate`: a trained model and its initialisation on the held-out splits.
//!
//! Writes `metrics.parquet`, `metrics.json`, `resamples.parquet` and `retrievals.parquet`. How
//! long a picture takes depends on the machine, so it stands in the manifest alone.

use serde_json::{Map, Value};

use serde::{Deserialize, Serialize};

use super::files::{self, Pictures, Timed};
use crate::config::EvaluateConfig;
use crate::engine;
use crate::error::{Context as _, Result};
use crate::eval::{self, Bundle, Evaluation, Example};
use crate::model::Checkpoint;
use crate::num::{index_u32, round_f32};
use crate::pipeline::{Job, Stage, Width};
use crate::tables::{
    self, MILLISECONDS_PER_PICTURE, MetricRow, ResampleRow, RetrievalRow, Row as _,
};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "evaluate",
    version: 1,
    width: Width::Shared,
    about: "Measures trained models on pictures that were never trained on.",
    run,
};

/// Stage `evaluate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateParams {
    /// Section `evaluate`.
    pub evaluate: EvaluateConfig,
    /// Seed of this run.
    pub seed: u64,
}

/// Example retrievals kept; the report shows as many as it is asked for.
const EXAMPLES: usize = 32;

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let EvaluateParams { evaluate, seed } = job.params()?;
    let pictures = open(job)?;
    let tokenise = |texts: &[String]| pictures.tokenise(texts);
    let bundle = bundle(&pictures, &tokenise)?;
    let backend = files::backend(job)?;

    job.progress.start(2, "evaluations");
    let mut json = Map::new();
    let (mut metrics, mut resamples) = (Vec::new(), Vec::new());
    let mut examples = Vec::new();

    // Probes are two thirds of an evaluation's time, and nobody compares initialisations by
    // them: several runs share one.
    let unprobed = EvaluateConfig { shots: Vec::new(), ..evaluate.clone() };
    let points = [
        ("init", "init.safetensors", &unprobed),
        ("final", "model.safetensors", &evaluate),
    ];
    for (point, weights, config) in points {
        let model = Checkpoint::read(files::folder(job, "train")?, weights)?;
        let mut opened = engine::open_model(model, backend)?;
        let mut engine = Timed::new(&mut *opened);
        let found = eval::evaluate(&mut engine, &bundle, config, seed)?;
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
        metrics.extend(rows(point, &found));
        resamples.extend(resample_rows(point, &found));
        let text = found.to_json()?;
        let value: Value =
            serde_json::from_str(&text).context(|| "metrics".to_owned())?;
        json.insert(point.to_owned(), value);
        job.progress.advance(1);
    }

    tables::write(&job.output(MetricRow::FILE), metrics)?;
    tables::write(&job.output(ResampleRow::FILE), resamples)?;
    tables::write(&job.output(RetrievalRow::FILE), retrievals(&examples))?;
    let text =
        serde_json::to_string_pretty(&json).context(|| "metrics".to_owned())? + "\n";
    let path = job.output("metrics.json");
    std::fs::write(&path, text).context(|| format!("writing {}", path.display()))
}

/// Opens every split that evaluation reads.
fn open(job: &Job<'_>) -> Result<Pictures> {
    let folder = files::folder(job, "dataset")?;
    let layout = crate::data::Dataset::open(folder)?.meta.layout;
    let mut splits = vec!["train", "val", layout.retrieval.as_str()];
    splits.extend(layout.tests.iter().map(String::as_str));
    splits.extend(layout.held_out.as_deref());
    splits.sort_unstable();
    splits.dedup();
    Pictures::open(folder, &splits)
}

fn bundle<'a>(
    pictures: &'a Pictures,
    tokenise: eval::Tokenise<'a>,
) -> Result<Bundle<'a>> {
    let layout = &pictures.dataset.meta.layout;
    let mut tests = layout.tests.clone();
    tests.push(layout.retrieval.clone());
    tests.extend(layout.held_out.clone());
    tests.sort_unstable();
    tests.dedup();

    let splits = tests.iter().map(|name| pictures.role(name)).collect::<Result<_>>()?;
    Ok(Bundle {
        vocabulary: pictures.vocabulary(tokenise),
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
    found.measurements.iter().map(move |m| MetricRow {
        point: point.to_owned(),
        task: m.task.clone(),
        split: m.split.clone(),
        metric: m.metric.clone(),
        value: m.value,
        low: m.low,
        high: m.high,
        n: m.n,
    })
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
