//! Dense models in the published layouts, to be loaded by `open_clip` and Hugging Face.

use std::path::Path;

use serde_json::{Value, json};

use super::image_processor::{self, Processor};
use super::layout::{self, Layout};
use super::preprocess::{PREPROCESS, Preprocessing};
use super::shards::write_json;
use super::{hugging_face, open_clip, shards};
use crate::config::Activation;
use crate::error::{Context, Error, Result};
use crate::io::tensors::{self, Tensors};
use crate::model::{Checkpoint, ClipConfig};
use crate::num::truncate_usize;

/// Writes `open_clip_config.json` and `open_clip_model.safetensors` into a folder.
pub fn export_open_clip(
    folder: &Path,
    config: &ClipConfig,
    tensors: &Tensors,
    pictures: &Preprocessing,
) -> Result<()> {
    refuse_moe(config)?;
    let framing = pictures.framing(config.vision.image_size)?;
    if framing.resized != framing.side {
        return Err(Error::usage(format!(
            "open_clip cannot cut {} pixels out of {}, as the model's pictures are prepared",
            framing.side, framing.resized
        )));
    }

    // What can be refused is refused before a folder is made.
    let foreign = layout::spread(config, Layout::OpenClip, tensors)?;
    let (vision, text) = (&config.vision, &config.text);
    let json = json!({
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.activation == Activation::QuickGelu,
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch,
                "width": vision.width,
                "layers": vision.layers,
                "head_width": vision.width / vision.heads,
                "mlp_ratio": ratio(vision.hidden, vision.width),
            },
            "text_cfg": {
                "context_length": text.context,
                "vocab_size": text.vocabulary,
                "width": text.width,
                "layers": text.layers,
                "heads": text.heads,
                "mlp_ratio": ratio(text.hidden, text.width),
            },
        },
        "preprocess_cfg": {
            "size": framing.side,
            "mode": "RGB",
            "mean": pictures.mean,
            "std": pictures.std,
            "interpolation": framing.filter.name(),
            "resize_mode": framing.fit.name(),
            "fill_color": framing.fill,
        },
    });

    // Without its configuration, a folder that was written halfway is not taken for a model.
    create(folder)?;
    tensors::write(&folder.join("open_clip_model.safetensors"), &foreign)?;
    write_json(&folder.join(open_clip::FILE), &json)
}

/// Writes `config.json`, `preprocessor_config.json` and `model.safetensors` into a folder,
/// the last in shards of at most `shard` bytes with an index where that is needed.
///
/// The last two ids of the vocabulary are start and end of text.
pub fn export_hugging_face(
    folder: &Path,
    config: &ClipConfig,
    tensors: &Tensors,
    pictures: &Preprocessing,
    shard: Option<u64>,
) -> Result<()> {
    refuse_moe(config)?;
    let side = config.vision.image_size;
    let processor = image_processor::json(pictures, side, Processor::Clip)?;
    let foreign = layout::spread(config, Layout::HuggingFace, tensors)?;

    create(folder)?;
    shards::write(folder, &foreign, shard)?;
    write_json(&folder.join(image_processor::FILE), &processor)?;
    write_json(&folder.join(hugging_face::FILE), &hugging_face_config(config))
}

/// Writes our own form, dense or MoE: `config.json`, `model.safetensors` or its shards, and
/// `preprocess.json` if it is known how pictures are prepared.
///
/// Names and shapes are documented in `docs/checkpoints.md`; [`super::import`] reads it.
pub fn export_upcycle(
    folder: &Path,
    model: &Checkpoint,
    pictures: Option<&Preprocessing>,
    shard: Option<u64>,
) -> Result<()> {
    create(folder)?;
    shards::write(folder, &model.tensors(), shard)?;

    // The side of the square is written even where the settings leave it to the model.
    if let Some(pictures) = pictures {
        let side = model.config.vision.image_size;
        pictures.framing(side)?;
        let path = folder.join(PREPROCESS);
        std::fs::write(&path, Preprocessing { size: Some(side), ..*pictures }.json()?)
            .context(|| format!("writing {}", path.display()))?;
    }

    let path = folder.join(hugging_face::FILE);
    std::fs::write(&path, model.config.to_json()?)
        .context(|| format!("writing {}", path.display()))
}

/// Hugging Face's configuration of a `CLIPModel`. The fields that a `CLIPModel` does not read are
/// left to its defaults.
fn hugging_face_config(config: &ClipConfig) -> Value {
    let (vision, text) = (&config.vision, &config.text);
    let hidden_act = match config.activation {
        Activation::Gelu => "gelu",
        Activation::QuickGelu => "quick_gelu",
    };

    json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_act": hidden_act,
            "hidden_size": text.width,
            "intermediate_size": text.hidden,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": text.context,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "projection_dim": config.embed_dim,
            "vocab_size": text.vocabulary,
            "bos_token_id": text.vocabulary.saturating_sub(2),
            "eos_token_id": text.vocabulary.saturating_sub(1),
            "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": hidden_act,
            "hidden_size": vision.width,
            "image_size": vision.image_size,
            "intermediate_size": vision.hidden,
            "layer_norm_eps": 1e-5,
            "num_attention_heads": vision.heads,
            "num_channels": 3,
            "num_hidden_layers": vision.layers,
            "patch_size": vision.patch,
            "projection_dim": config.embed_dim,
        },
    })
}

/// Refuses a model that neither library can build.
fn refuse_moe(config: &ClipConfig) -> Result<()> {
    match config.moe {
        None => Ok(()),
        Some(_) => Err(Error::usage(
            "a model with MoE layers has no published layout: use ours, where the dense parts \
             have open_clip's names",
        )),
    }
}

/// The ratio from which `open_clip` computes the hidden width again, by rounding down.
fn ratio(hidden: usize, width: usize) -> f64 {
    // Where the product falls just below the whole number, the next larger ratio does not.
    let ratio = hidden as f64 / width as f64;
    if truncate_usize(width as f64 * ratio) == hidden { ratio } else { ratio.next_up() }
}

/// Makes a folder, with those above it.
fn create(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).context(|| format!("creating {}", folder.display()))
}
