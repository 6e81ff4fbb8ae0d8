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
            let pooled = pooled_tokens(&model.config, tower, &ids);
            for routing in layers {
                let layer = model.moe_layer(tower, routing.block)?;
                let base = dense.dense_ffn(tower, routing.block)?;
                let found = analyze_layer(
                    &model.config,
                    tower,
                    (routing, &pooled),
                    (&layer, &base),
                )?;
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

/// The token of each sample that becomes its embedding, among the counted tokens of a tower:
/// all of a picture; of a caption those behind the start up to the end of text, which is the
/// first of the largest ids.
fn pooled_tokens(config: &ClipConfig, tower: Tower, ids: &[u32]) -> Vec<usize> {
    let captions = ids.chunks_exact(config.text.context);
    if tower == Tower::Vision {
        let tokens = config.tower(tower).tokens;
        return captions.enumerate().map(|(sample, _)| sample * tokens).collect();
    }
    let end = |caption: &[u32]| {
        let largest = caption.iter().max();
        caption.iter().position(|id| Some(id) == largest).unwrap_or(0)
    };
    let counted = captions.scan(0, |before, caption| {
        *before += end(caption);
        Some(*before)
    });
    counted.map(|after| after.saturating_sub(1)).collect()
}

/// Analyzes one layer over its counted tokens.
fn analyze_layer(
    config: &ClipConfig,
    tower: Tower,
    (routing, pooled): (&LayerRouting, &[usize]),
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
        pooled,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load_default};
    use crate::engine::Backend;
    use crate::model::init;

    /// The rows that the engine keeps of a caption end with the end of text.
    #[test]
    fn pooled_tokens_are_the_class_token_and_the_end_of_text() {
        let overrides = Overrides { profile: Some("smoke".to_owned()), set: vec![] };
        let config = load_default(&overrides).unwrap();
        let dense =
            init::dense(&crate::stage::pretrain::shape(&config.model, [16, 6, 300]), 1);
        let ids = [298, 5, 6, 7, 299, 0, 298, 9, 299, 0, 0, 0, 298, 1, 2, 3, 4, 299];
        let pooled = pooled_tokens(&dense.config, Tower::Text, &ids);
        assert_eq!(pooled, [3, 5, 10]);
        assert_eq!(pooled_tokens(&dense.config, Tower::Vision, &ids), [0, 17, 34]);

        let mut engine = engine::open_model(dense, Backend::Cpu).unwrap();
        let found = engine.ffn_inputs(TowerInput::Ids(&ids), &[1]).unwrap();
        let counted: Vec<usize> =
            (0..found.counted.len()).filter(|&row| found.counted[row]).collect();
        let last = found.starts[1..].iter().map(|end| end - 1);
        let expected: Vec<usize> =
            last.filter_map(|row| counted.iter().position(|&own| own == row)).collect();
        assert_eq!(pooled, expected);
    }
}
