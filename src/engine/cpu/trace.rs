//! Every number of a forward pass that another framework can be compared with, by name.
//!
//! Names follow Hugging Face's `CLIPModel` outputs: `image_embeds` and `text_embeds` [B, P],
//! L2-normalized, `logits_per_image` [B, B'], and `<tower>.layers.<l>.ffn_in` [B, T, d], the
//! second LayerNorm's output at every position, padding included.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::clip::{Clip, Padding, TowerState};
use super::tower::MoeMode;
use crate::error::{Error, Result};
use crate::io::foreign::{Array, Values};
use crate::io::tensors::{Tensor, Tensors};
use crate::model::names::ParameterId;
use crate::model::params::Layout;
use crate::model::{Checkpoint, ClipConfig, Tower, TowerShape};

/// Name of the pictures among the inputs.
const PIXELS: &str = "pixel_values";
/// Name of the captions among the inputs.
const IDS: &str = "input_ids";

/// Checked inputs of a model; at least one side is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// Normalized pictures [B, 3, S, S].
    pixels: Option<Vec<f32>>,
    /// Captions [B', T].
    ids: Option<Vec<u32>>,
    /// Tokens T that were given of each caption, at most the context.
    tokens: usize,
}

impl Inputs {
    /// Checks `pixel_values` and `input_ids` against the model; either may be absent.
    ///
    /// Captions shorter than the context are padded with 0, which no earlier token sees.
    pub fn new(config: &ClipConfig, arrays: &BTreeMap<String, Array>) -> Result<Self> {
        let unknown = arrays.keys().find(|name| !known(name));
        if let Some(name) = unknown {
            return Err(Error::usage(format!(
                "the input {name} is unknown, expected {PIXELS} or {IDS}"
            )));
        }

        let pixels = arrays.get(PIXELS).map(|a| pixels(config, a)).transpose()?;
        let ids = arrays.get(IDS).map(|a| ids(config, a)).transpose()?;
        if pixels.is_none() && ids.is_none() {
            return Err(Error::usage(format!(
                "the inputs have neither {PIXELS} nor {IDS}, expected at least one of them"
            )));
        }

        let (ids, tokens) = ids.unzip();
        Ok(Self { pixels, ids, tokens: tokens.unwrap_or(0) })
    }
}

fn known(name: &str) -> bool {
    [PIXELS, IDS, "attention_mask"].contains(&name)
}

fn wrong(name: &str, array: &Array, expected: &str) -> Error {
    let kind = match array.values {
        Values::Floats(_) => "floats",
        Values::Integers(_) => "integers",
    };
    let shape = &array.shape;
    Error::usage(format!("{name} is {kind} {shape:?}, expected {expected}"))
}

fn pixels(config: &ClipConfig, array: &Array) -> Result<Vec<f32>> {
    let side = config.vision.image_size;
    match (&array.values, array.shape.as_slice()) {
        (Values::Floats(values), [_, 3, h, w]) if [*h, *w] == [side; 2] => {
            match values.iter().position(|v| !v.is_finite()) {
                None => Ok(values.clone()),
                Some(at) => {
                    let value = values[at];
                    Err(Error::usage(format!(
                        "{PIXELS} holds {value} at index {at}, expected finite values"
                    )))
                }
            }
        }
        _ => Err(wrong(PIXELS, array, &format!("floats [B, 3, {side}, {side}]"))),
    }
}

fn ids(config: &ClipConfig, array: &Array) -> Result<(Vec<u32>, usize)> {
    let (context, vocabulary) = (config.text.context, config.text.vocabulary);
    let expected = format!("integers [B, T] with T from 1 to {context}");

    let (Values::Integers(values), &[_, tokens]) =
        (&array.values, array.shape.as_slice())
    else {
        return Err(wrong(IDS, array, &expected));
    };
    if tokens == 0 || tokens > context {
        return Err(wrong(IDS, array, &expected));
    }

    let mut padded = Vec::with_capacity(values.len() / tokens * context);
    for caption in values.chunks_exact(tokens) {
        for &id in caption {
            let fits = |id: &u32| crate::num::widen(*id) < vocabulary;
            padded.push(u32::try_from(id).ok().filter(fits).ok_or_else(|| {
                let last = vocabulary - 1;
                Error::usage(format!("{IDS} holds {id}, expected ids from 0 to {last}"))
            })?);
        }

        // The attention is causal, so padding cannot reach a token before it.
        padded.resize(padded.len() + context - tokens, 0);
    }
    Ok((padded, tokens))
}

/// Runs a model, dense or MoE, and names what comes out.
///
/// `logits_per_image` is there when both sides are. Chunks run side by side; the result
/// does not depend on how many. Memory: twice the outputs.
pub fn trace(model: &Checkpoint, inputs: &Inputs) -> Tensors {
    let clip = Clip::new(&model.config).with_padding(Padding::Keep);

    // Padding is kept, because others compute every position and compare row by row.
    let (picture, caption) = clip.sizes();
    let values = &model.values;
    let mut out = Tensors::new();

    if let Some(pixels) = &inputs.pixels {
        let record = Record::new(&model.config, Tower::Vision);
        let blocks: Vec<usize> = (0..model.config.vision.layers).collect();
        let chunk = clip.chunk(Tower::Vision) * picture;
        let chunks = pixels.par_chunks(chunk).map(|own| {
            let mut state = TowerState::light(&blocks);
            let raw = clip.images(values, own, MoeMode::TopK, &mut state).to_vec();
            record.chunk(raw, &state)
        });
        record.join("image_embeds", &chunks.collect::<Vec<_>>(), &mut out);
    }

    if let Some(ids) = &inputs.ids {
        let record = Record::new(&model.config, Tower::Text);
        let record = Record { kept: inputs.tokens, ..record };
        let blocks: Vec<usize> = (0..model.config.text.layers).collect();
        let chunk = clip.chunk(Tower::Text) * caption;
        let chunks = ids.par_chunks(chunk).map(|own| {
            let mut state = TowerState::light(&blocks);
            let raw = clip.texts(values, own, MoeMode::TopK, &mut state).to_vec();
            record.chunk(raw, &state)
        });
        record.join("text_embeds", &chunks.collect::<Vec<_>>(), &mut out);
    }

    if let (Some(images), Some(texts)) = (out.get("image_embeds"), out.get("text_embeds"))
    {
        let scale = Layout::new(&model.config).range(ParameterId::LogitScale);
        let logits = logits(images, texts, values[scale.start].exp());
        out.insert("logits_per_image".to_owned(), logits);
    }
    out
}

/// What is recorded of one tower.
struct Record {
    tower: Tower,
    width: usize,
    embed_dim: usize,
    /// Rows of a sample, and how many of them are kept.
    tokens: usize,
    kept: usize,
}

/// What one chunk leaves: raw embeddings, and the FFN's inputs of every layer.
struct Chunk {
    embeddings: Vec<f32>,
    inputs: Vec<Vec<f32>>,
}

impl Record {
    fn new(config: &ClipConfig, tower: Tower) -> Self {
        let TowerShape { width, tokens, .. } = config.tower(tower);
        Self { tower, width, embed_dim: config.embed_dim, tokens, kept: tokens }
    }

    fn chunk(&self, embeddings: Vec<f32>, state: &TowerState) -> Chunk {
        let kept = |input: &Vec<f32>| {
            let samples = input.chunks_exact(self.tokens * self.width);
            samples.flat_map(|rows| &rows[..self.kept * self.width]).copied().collect()
        };
        Chunk { embeddings, inputs: state.kept.values().map(kept).collect() }
    }

    fn join(&self, name: &str, chunks: &[Chunk], out: &mut Tensors) {
        let mut data: Vec<f32> =
            chunks.iter().flat_map(|chunk| &chunk.embeddings).copied().collect();
        for row in data.chunks_exact_mut(self.embed_dim) {
            let squares: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
            let length = crate::num::round_f32(squares.sqrt().max(1e-12));
            for v in row {
                *v /= length;
            }
        }

        let samples = data.len() / self.embed_dim;
        let shape = vec![samples, self.embed_dim];
        out.insert(name.to_owned(), Tensor { shape, data });
        let layers = chunks.first().map_or(0, |chunk| chunk.inputs.len());
        for layer in 0..layers {
            let name = format!("{}.layers.{layer}.ffn_in", self.tower.name());
            let all = chunks.iter().flat_map(|chunk| &chunk.inputs[layer]);
            let shape = vec![samples, self.kept, self.width];
            out.insert(name, Tensor { shape, data: all.copied().collect() });
        }
    }
}

/// scale · I Tᵀ.
fn logits(images: &Tensor, texts: &Tensor, scale: f32) -> Tensor {
    let width = images.shape[1];
    let (rows, columns) = (images.shape[0], texts.shape[0]);
    let mut data = Vec::with_capacity(rows * columns);
    for image in images.data.chunks_exact(width) {
        for text in texts.data.chunks_exact(width) {
            let pairs = image.iter().zip(text);

            // f64, because this is compared with others and is no part of a training run.
            let cosine: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            data.push(scale * crate::num::round_f32(cosine));
        }
    }
    Tensor { shape: vec![rows, columns], data }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::checkpoint;
    use crate::io::foreign;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn load(path: &Path) -> Checkpoint {
        let (config, tensors) =
            checkpoint::import(path, &checkpoint::Hints::default()).unwrap();
        let values = Layout::new(&config).flatten(&config, &tensors).unwrap();
        Checkpoint { config, values }
    }

    fn worst(found: &Tensor, expected: &Array) -> f32 {
        let Values::Floats(truth) = &expected.values else { panic!("integers") };
        assert_eq!(found.shape, expected.shape);
        let gaps = found.data.iter().zip(truth).map(|(a, b)| (a - b).abs());
        gaps.fold(0.0, f32::max)
    }

    fn some(arrays: &BTreeMap<String, Array>, names: &[&str]) -> BTreeMap<String, Array> {
        names.iter().map(|&name| (name.to_owned(), arrays[name].clone())).collect()
    }

    /// Published numbers, in both layouts and from a training checkpoint.
    #[test]
    fn equals_the_published_forward_at_every_layer() {
        for name in ["clip-tiny-gelu", "clip-tiny-quickgelu"] {
            let expected =
                foreign::read(&fixture(name).join("expected.safetensors")).unwrap();
            let arrays = some(&expected, &[PIXELS, IDS]);
            for place in ["hf", "open_clip", "open_clip/checkpoint.pt"] {
                let path = fixture(name).join(place);
                if !path.exists() {
                    continue;
                }
                let model = load(&path);
                let inputs = Inputs::new(&model.config, &arrays).unwrap();
                let out = trace(&model, &inputs);
                assert_eq!(out.len(), 3 + 3 + 3);
                for (key, tensor) in &out {
                    let tolerance = if key.starts_with("logits") { 1e-4 } else { 2e-5 };
                    let gap = worst(tensor, &expected[key]);
                    assert!(gap < tolerance, "{name} {place} {key}: {gap}");
                }
            }
        }
    }

    #[test]
    fn padding_with_the_end_mark_changes_no_embedding() {
        for name in ["clip-tiny-gelu", "clip-tiny-quickgelu"] {
            let expected =
                foreign::read(&fixture(name).join("expected.safetensors")).unwrap();
            let model = load(&fixture(name).join("hf"));
            let padded = expected["input_ids_eot_padded"].clone();
            let arrays = BTreeMap::from([(IDS.to_owned(), padded)]);
            let out = trace(&model, &Inputs::new(&model.config, &arrays).unwrap());
            assert!(worst(&out["text_embeds"], &expected["text_embeds"]) < 2e-5);
            assert!(
                !out.contains_key("image_embeds")
                    && !out.contains_key("logits_per_image")
            );
        }
    }

    #[test]
    fn a_mixture_of_equal_experts_is_the_dense_model() {
        let dense = load(&fixture("clip-tiny-gelu").join("hf"));
        let moe = crate::model::Moe {
            experts: 3,
            top_k: 2,
            rank: None,
            vision_blocks: vec![1],
            text_blocks: vec![0, 2],
        };
        let copies = |tower, block| {
            let ffn = dense.dense_ffn(tower, block)?;
            Ok(crate::model::layers::MoeLayer {
                router: (0..3 * dense.config.tower(tower).width)
                    .map(|i| if i % 7 == 0 { 0.1 } else { -0.02 })
                    .collect(),
                experts: vec![
                    crate::model::layers::Ffn {
                        fc1: ffn.fc1.to_vec(),
                        fc1_bias: ffn.fc1_bias.to_vec(),
                        fc2: ffn.fc2.to_vec(),
                        fc2_bias: ffn.fc2_bias.to_vec(),
                    };
                    3
                ],
                ..Default::default()
            })
        };
        let made = || crate::model::layers::Mixture::new(&dense, moe.clone(), copies);
        let mixture = made().checkpoint().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (streamed, whole) = (folder.path().join("a"), folder.path().join("b"));
        made().write(&streamed).unwrap();
        mixture.write(&whole).unwrap();
        assert_eq!(std::fs::read(streamed).unwrap(), std::fs::read(whole).unwrap());
        let expected = fixture("clip-tiny-gelu").join("expected.safetensors");
        let arrays = some(&foreign::read(&expected).unwrap(), &[PIXELS, IDS]);
        let inputs = Inputs::new(&dense.config, &arrays).unwrap();
        let (a, b) = (trace(&dense, &inputs), trace(&mixture, &inputs));
        for (name, left) in &a {
            let gaps = left.data.iter().zip(&b[name].data).map(|(x, y)| (x - y).abs());
            assert!(gaps.fold(0.0, f32::max) < 2e-5, "{name}");
        }
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused_by_name() {
        let config = load(&fixture("clip-tiny-gelu").join("hf")).config;
        let ids = |shape: [usize; 2], id: i64| {
            let values = Values::Integers(vec![id; shape[0] * shape[1]]);
            BTreeMap::from([(IDS.to_owned(), Array { shape: shape.to_vec(), values })])
        };
        assert!(Inputs::new(&config, &ids([2, 16], 159)).is_ok());
        for (arrays, word) in [
            (ids([1, 17], 3), "T from 1 to 16"),
            (ids([1, 4], 160), "holds 160"),
            (ids([1, 4], -1), "holds -1"),
            (BTreeMap::new(), "neither"),
        ] {
            let error = Inputs::new(&config, &arrays).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let values = Values::Floats(vec![0.0; 3 * 16]);
        let small = Array { shape: vec![1, 3, 4, 4], values };
        let arrays = BTreeMap::from([(PIXELS.to_owned(), small)]);
        let error = Inputs::new(&config, &arrays).unwrap_err().to_string();
        assert!(error.contains("[B, 3, 32, 32]"), "{error}");
    }
}
