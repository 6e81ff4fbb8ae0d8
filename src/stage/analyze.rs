//! Stage `analyze`: what the experts have become, at initialization and after training.
//!
//! Reads the validation split; writes `analysis.parquet` and `similarity_matrix.parquet`
//! (both empty for a dense model).

use serde::{Deserialize, Serialize};

use super::files;
use crate::analysis::{self, LayerAnalysis, LayerView};
use crate::config::AnalyzeConfig;
use crate::data::Dataset;
use crate::engine::cpu::ops::{activation, linear};
use crate::engine::{self, LayerRouting, TowerInput};
use crate::error::Result;
use crate::linalg::Matrix;
use crate::model::layers::{FfnTensors, MoeTensors};
use crate::model::{Checkpoint, ClipConfig, Tower};
use crate::num::{index_u32, widen};
use crate::pipeline::{Job, Stage, Width};
use crate::tables::{self, AnalysisRow, Layer, Row as _, SimilarityRow, WHOLE_LAYER};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "analyze",
    version: 1,
    width: Width::Shared,
    about: "Analyzes experts and routing at initialization and after training.",
    run,
};

/// Stage `analyze`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyzeParams {
    /// Section `analyze`.
    pub analyze: AnalyzeConfig,
    /// Seed of this run.
    pub seed: u64,
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let AnalyzeParams { analyze, .. } = job.params()?;
    let dense = Checkpoint::read(files::folder(job, "pretrain")?, "model.safetensors")?;
    let (pixels, ids) = validation(job, analyze.samples)?;
    let backend = files::backend(job)?;

    let mut out = Outputs::default();
    for (point, weights) in [("init", "init.safetensors"), ("final", "model.safetensors")]
    {
        let model = Checkpoint::read(files::folder(job, "train")?, weights)?;
        if model.config.moe.is_none() {
            continue;
        }

        let mut engine = engine::open_model(model, backend)?;
        let routing = [
            engine.routing(TowerInput::Pixels(&pixels))?,
            engine.routing(TowerInput::Ids(&ids))?,
        ];

        // The weights come back from the engine: they are in memory once.
        let config = engine.config().clone();
        let model = Checkpoint { config, values: engine.into_values()? };

        for (tower, layers) in Tower::BOTH.into_iter().zip(&routing) {
            for routing in layers {
                let layer = model.moe_layer(tower, routing.block)?;
                let base = dense.dense_ffn(tower, routing.block)?;
                let found =
                    analyze_layer(&model.config, tower, routing, (&layer, &base))?;
                out.add(point, &Layer::new(tower.name(), routing.block), &found);
            }
        }
    }
    out.write(job)
}

/// Pixels and ids of the first samples of the validation split, first caption each.
fn validation(job: &Job<'_>, samples: usize) -> Result<(Vec<f32>, Vec<u32>)> {
    let data = Dataset::open(files::folder(job, "dataset")?)?;
    let split = data.split("val")?;

    // The first and not random ones: every run is analyzed on the same samples.
    let rows: Vec<usize> = (0..split.len().min(samples)).collect();
    let mut pixels = vec![0.0; rows.len() * 3 * split.side().pow(2)];
    split.pixels(&rows, &mut pixels)?;

    let texts = rows.iter().filter_map(|&row| split.rows[row].captions.first());
    let texts: Vec<&str> = texts.map(String::as_str).collect();
    Ok((pixels, data.tokenizer.encode_all(&texts, data.meta.context)?))
}

/// Analyzes one layer over its counted tokens.
fn analyze_layer(
    config: &ClipConfig,
    tower: Tower,
    routing: &LayerRouting,
    (layer, base): (&MoeTensors<'_>, &FfnTensors<'_>),
) -> Result<LayerAnalysis> {
    let (d, e) = (config.tower(tower).width, layer.experts.len());
    let top_k = config.moe.as_ref().map_or(1, |moe| moe.top_k);

    // The output of a token's best expert alone: compactness compares experts.
    let mut outputs = Vec::with_capacity(routing.inputs.len());
    for (input, chosen) in
        routing.inputs.chunks_exact(d).zip(routing.chosen.chunks_exact(top_k))
    {
        outputs.extend(output(config, &layer.experts[widen(chosen[0])], input));
    }

    let n = outputs.len() / d;
    analysis::analyze_layer(&LayerView {
        probs: &Matrix::new(n, e, routing.probabilities.clone())?,
        top_k,
        assigned: &routing.chosen,
        outputs: &Matrix::new(n, d, outputs)?,
        experts: &layer.experts,
        dense: Some(*base),
    })
}

/// One expert on one row.
fn output(config: &ClipConfig, expert: &FfnTensors<'_>, input: &[f32]) -> Vec<f32> {
    let mut hidden = vec![0.0; expert.fc1_bias.len()];
    linear::forward(&mut hidden, input, expert.fc1, expert.fc1_bias);
    activation::apply(config.activation, &mut hidden);
    let mut out = vec![0.0; expert.fc2_bias.len()];
    linear::forward(&mut out, &hidden, expert.fc2, expert.fc2_bias);
    out
}

/// The rows of both tables.
#[derive(Debug, Default)]
struct Outputs {
    readings: Vec<AnalysisRow>,
    cosines: Vec<SimilarityRow>,
}

impl Outputs {
    /// Adds the rows of one layer at one point of the training.
    fn add(&mut self, point: &str, layer: &Layer, found: &LayerAnalysis) {
        self.readings.extend(found.readings.iter().map(|reading| AnalysisRow {
            point: point.to_owned(),
            layer: layer.clone(),
            metric: reading.metric.to_owned(),
            expert: reading.expert.map_or(WHOLE_LAYER, index_u32),
            value: reading.value,
        }));

        let e = found.cosines.experts();
        let pairs = (0..e * e).map(|i| (i / e, i % e));
        self.cosines.extend(pairs.map(|(expert, other)| SimilarityRow {
            point: point.to_owned(),
            layer: layer.clone(),
            expert: index_u32(expert),
            other: index_u32(other),
            cosine: found.cosines.get(expert, other),
        }));
    }

    /// Writes the tables.
    fn write(self, job: &Job<'_>) -> Result<()> {
        tables::write(&job.output(AnalysisRow::FILE), self.readings)?;
        tables::write(&job.output(SimilarityRow::FILE), self.cosines)
    }
}
