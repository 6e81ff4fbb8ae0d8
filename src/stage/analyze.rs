//! Stage `analyze`: what the experts have become, at initialization and after training.
//!
//! Reads the validation split; writes `analysis.parquet`, `similarity_matrix.parquet` and
//! `tokens.parquet` (all empty for a dense model), and `embeddings.parquet`.

use serde::{Deserialize, Serialize};

use super::files;
use crate::analysis::{self, First, LayerAnalysis, LayerView, Routing};
use crate::config::AnalyzeConfig;
use crate::data::Dataset;
use crate::engine::cpu::ops::{activation, linear};
use crate::engine::{self, Engine, LayerRouting, TowerInput};
use crate::error::{Error, Result};
use crate::image::PixelBuffer;
use crate::linalg::Matrix;
use crate::model::layers::{FfnTensors, MoeTensors};
use crate::model::{Checkpoint, ClipConfig, Tower};
use crate::num::{index_u32, round_f32, widen};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::tables::{
    self, AnalysisRow, EmbeddingRow, Layer, RoutedTokenRow, Row as _, SimilarityRow,
    WHOLE_LAYER,
};
use crate::text::Tokenizer;

/// This stage.
pub const STAGE: Stage = Stage {
    name: "analyze",
    version: 1,
    width: Width::Shared,
    reach: Reach::Process,
    about: "Analyzes experts, routing and embeddings at initialization and after training.",
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
    let shown = Shown::read(job, analyze.samples)?;
    let backend = files::backend(job)?;

    let mut out = Outputs::default();
    for (point, weights) in [("init", "init.safetensors"), ("final", "model.safetensors")]
    {
        let model = Checkpoint::read(files::folder(job, "train")?, weights)?;
        let is_moe = model.config.moe.is_some();
        let mut engine = engine::open_model(model, backend)?;
        out.add_map(point, &shown, &mut *engine)?;
        if !is_moe {
            continue;
        }
        let routing = [
            engine.routing(TowerInput::Pixels(shown.pixels.view()))?,
            engine.routing(TowerInput::Ids(&shown.ids))?,
        ];

        // The weights come back from the engine: they are in memory once.
        let config = engine.config().clone();
        let model = Checkpoint { config, values: engine.into_values()? };

        for (tower, layers) in Tower::BOTH.into_iter().zip(&routing) {
            let pooled = pooled_tokens(&model.config, tower, &shown.ids);
            let tokens = shown.tokens(&model.config, tower);
            for routing in layers {
                let name = Layer::new(tower.name(), routing.block);
                let layer = model.moe_layer(tower, routing.block)?;
                let base = dense.dense_ffn(tower, routing.block)?;
                let looked_at =
                    Looked { config: &model.config, tower, routing, pooled: &pooled };
                let found = looked_at.analyze(&layer, &base)?;
                out.add(point, &name, &found);
                out.add_tokens((point, &name), &tokens, &looked_at.first(&layer)?)?;
            }
        }
    }
    out.write(job)
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

/// The first samples of the validation split, with their first captions.
struct Shown {
    /// Numbers of the samples.
    samples: Vec<u32>,
    pixels: PixelBuffer,
    ids: Vec<u32>,
    tokenizer: Tokenizer,
}

/// A token that is routed: its place and, in a caption, what stands there.
struct Token {
    sample: u32,
    position: u32,
    text: String,
}

impl Shown {
    fn read(job: &Job<'_>, samples: usize) -> Result<Self> {
        let data = Dataset::open(files::folder(job, "dataset")?)?;
        let split = data.split("val")?;
        let rows: Vec<usize> = (0..split.len().min(samples)).collect();
        let pixels = split.pixels(&rows)?;

        let texts = rows.iter().filter_map(|&row| split.rows[row].captions.first());
        let texts: Vec<&str> = texts.map(String::as_str).collect();
        let ids = data.tokenizer.encode_all(&texts, data.meta.context)?;
        let samples = rows.iter().map(|&row| split.rows[row].sample).collect();
        Ok(Self { samples, pixels, ids, tokenizer: data.tokenizer })
    }

    /// The tokens that a tower routes, in the order in which an engine counts them: all of a
    /// picture; of a caption what lies behind the start mark, the end of text included.
    fn tokens(&self, config: &ClipConfig, tower: Tower) -> Vec<Token> {
        let vision = &config.vision;
        let per_picture = (vision.image_size / vision.patch).pow(2) + 1;

        let captions = self.ids.chunks_exact(config.text.context);
        let samples = self.samples.iter().zip(captions);
        samples
            .flat_map(|(&sample, caption)| -> Vec<Token> {
                let token = |position: usize, text| Token {
                    sample,
                    position: index_u32(position),
                    text,
                };
                match tower {
                    Tower::Vision => {
                        (0..per_picture).map(|at| token(at, String::new())).collect()
                    }
                    Tower::Text => {
                        let end = self.tokenizer.end();

                        // Padding follows the end mark, and an engine leaves it out.
                        let marks = caption.iter().position(|&id| id == end);
                        let spoken = caption.iter().enumerate().skip(1);
                        spoken
                            .take(marks.unwrap_or(0))
                            .map(|(at, &id)| token(at, self.tokenizer.piece(id)))
                            .collect()
                    }
                }
            })
            .collect()
    }
}

/// The counted tokens of one layer.
struct Looked<'a> {
    config: &'a ClipConfig,
    tower: Tower,
    routing: &'a LayerRouting,
    /// The rows among them that become embeddings.
    pooled: &'a [usize],
}

impl Looked<'_> {
    /// K and the routing probabilities `[N, E]`.
    fn probabilities(&self, experts: usize) -> Result<(usize, Matrix)> {
        let top_k = self.config.moe.as_ref().map_or(1, |moe| moe.top_k);
        let values = self.routing.probabilities.clone();
        Ok((top_k, Matrix::new(values.len() / experts.max(1), experts, values)?))
    }

    /// What became of the layer's experts.
    fn analyze(
        &self,
        layer: &MoeTensors<'_>,
        base: &FfnTensors<'_>,
    ) -> Result<LayerAnalysis> {
        let Self { config, tower, routing, pooled } = self;
        let d = config.tower(*tower).width;
        let (top_k, probs) = self.probabilities(layer.experts.len())?;

        // The output of a token's best expert alone: compactness compares experts.
        let mut outputs = Vec::with_capacity(routing.inputs.len());
        for (input, chosen) in
            routing.inputs.chunks_exact(d).zip(routing.chosen.chunks_exact(top_k))
        {
            outputs.extend(output(config, &layer.experts[widen(chosen[0])], input));
        }

        analysis::analyze_layer(&LayerView {
            probs: &probs,
            top_k,
            assigned: &routing.chosen,
            pooled,
            outputs: &Matrix::new(outputs.len() / d, d, outputs)?,
            experts: &layer.experts,
            dense: Some(*base),
        })
    }

    /// What became of the layer's tokens.
    fn first(&self, layer: &MoeTensors<'_>) -> Result<Vec<First>> {
        let d = self.config.tower(self.tower).width;
        let e = layer.experts.len();
        let (top_k, probs) = self.probabilities(e)?;
        let inputs = self.routing.inputs.clone();
        let inputs = Matrix::new(inputs.len() / d, d, inputs)?;
        let router = Matrix::new(e, d, layer.router.to_vec())?;
        let routing = Routing::new(&probs, top_k, &self.routing.chosen)?;
        analysis::first_experts(&routing, &inputs, &router)
    }
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

/// The rows of all tables.
#[derive(Debug, Default)]
struct Outputs {
    readings: Vec<AnalysisRow>,
    cosines: Vec<SimilarityRow>,
    tokens: Vec<RoutedTokenRow>,
    places: Vec<EmbeddingRow>,
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

    fn add_tokens(
        &mut self,
        (point, layer): (&str, &Layer),
        tokens: &[Token],
        found: &[First],
    ) -> Result<()> {
        let (expected, counted) = (tokens.len(), found.len());
        if expected != counted {
            let Layer { tower, block } = layer;
            return Err(Error::failed(format!(
                "{tower} block {block}: the engine routed {counted} tokens, expected \
                 {expected} from the samples"
            )));
        }

        self.tokens.extend(tokens.iter().zip(found).map(|(token, first)| {
            RoutedTokenRow {
                point: point.to_owned(),
                layer: layer.clone(),
                sample: token.sample,
                position: token.position,
                text: token.text.clone(),
                expert: index_u32(first.expert),
                probability: first.probability,
                cosine: round_f32(first.cosine),
            }
        }));
        Ok(())
    }

    /// Adds the places of all embeddings of a model.
    fn add_map(
        &mut self,
        point: &str,
        shown: &Shown,
        engine: &mut dyn Engine,
    ) -> Result<()> {
        let (n, p) = (shown.samples.len(), engine.config().embed_dim);
        let images = Matrix::new(n, p, engine.encode_images(shown.pixels.view())?)?;
        let texts = Matrix::new(n, p, engine.encode_texts(&shown.ids)?)?;

        for (tower, places) in
            Tower::BOTH.into_iter().zip(analysis::map(&images, &texts)?)
        {
            let places = shown.samples.iter().zip(places);
            self.places.extend(places.map(|(&sample, [x, y])| EmbeddingRow {
                point: point.to_owned(),
                tower: tower.name().to_owned(),
                sample,
                x: round_f32(x),
                y: round_f32(y),
            }));
        }
        Ok(())
    }

    /// Writes the tables.
    fn write(self, job: &Job<'_>) -> Result<()> {
        tables::write(&job.output(AnalysisRow::FILE), self.readings)?;
        tables::write(&job.output(SimilarityRow::FILE), self.cosines)?;
        tables::write(&job.output(RoutedTokenRow::FILE), self.tokens)?;
        tables::write(&job.output(EmbeddingRow::FILE), self.places)
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
