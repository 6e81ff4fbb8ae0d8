//! The shape of a foreign model: from its configuration, or from its tensors and what a
//! person adds.
//!
//! Options that change the architecture in ways this crate does not build are refused by
//! name. What neither a file nor a flag says is asked for and never guessed.

use std::path::Path;

use serde_json::{Map, Value};

use super::hints::{Hints, Stated};
use super::layout::Layout;
use super::section::{LARGEST, Section};
use super::{hugging_face, open_clip};
use crate::error::{Error, Result};
use crate::io::tensors::Tensors;
use crate::model::names::{self, ParameterId, Part};
use crate::model::{ClipConfig, TextConfig, Tower, VisionConfig};

/// The value of `model_type` in `config.json`.
pub(super) const MODEL_TYPE: &str = "upcycle_clip";

/// Keys of `config.json` that are not ours: bookkeeping of Hugging Face's library, which adds
/// some of them when it saves a model.
const BOOKKEEPING: [&str; 6] = [
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "torch_dtype",
    "transformers_version",
];

/// Number of blocks of a tower at most; more is a mistake or an attack.
const MOST_LAYERS: usize = 1024;

/// The configuration beside the weights if there is one, else what the shapes tell.
pub(super) fn beside(
    folder: &Path,
    layout: Layout,
    foreign: &Tensors,
    hints: &Hints,
) -> Result<ClipConfig> {
    let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());

    let config = match (layout, &hints.config) {
        (Layout::OpenClip, Some(asked)) => {
            let model = open_clip::named(asked)?;
            // Published weights of one name have been trained with either activation.
            if !asked.is_file()
                && model.get("quick_gelu").is_none()
                && hints.activation.is_none()
            {
                return Err(Error::usage(format!(
                    "--config {}: the name does not say the activation, give --activation \
                     too (quick_gelu for OpenAI's models)",
                    asked.display()
                )));
            }
            open_clip::shape(&model, hints)?
        }
        (Layout::HuggingFace, Some(_)) => {
            return Err(Error::usage(format!(
                "--config is for weights with open_clip's names; these have Hugging Face's, \
                 whose {} has to lie beside them",
                hugging_face::FILE
            )));
        }
        // The number of heads changes no shape, so tensors alone never tell it.
        (Layout::HuggingFace, None) => {
            let Some(path) = file(hugging_face::FILE) else {
                let place = folder.join(hugging_face::FILE);
                return Err(Error::failed(format!(
                    "{} does not exist; it has to say how many heads the towers have",
                    place.display()
                )));
            };
            hugging_face::shape(&path, hints)?
        }
        // Our own folders have open_clip's names of tensors, and a config.json of our own.
        (Layout::OpenClip, None) => {
            match (file(open_clip::FILE), file(hugging_face::FILE)) {
                (Some(path), _) => open_clip::shape(&open_clip::read(&path)?, hints)?,
                (None, Some(path)) => match own(&path, hints)? {
                    Some(config) => config,
                    None => from_shapes(foreign, hints)?,
                },
                (None, None) => from_shapes(foreign, hints)?,
            }
        }
    };

    check(&config)?;
    Ok(config)
}

/// The configuration of a folder, whatever its layout, without looking at weights.
pub(super) fn of_folder(folder: &Path, hints: &Hints) -> Result<ClipConfig> {
    let path = folder.join(open_clip::FILE);
    let config = if path.is_file() {
        open_clip::shape(&open_clip::read(&path)?, hints)?
    } else {
        let path = folder.join(hugging_face::FILE);
        match own(&path, hints)? {
            Some(config) => config,
            None => hugging_face::shape(&path, hints)?,
        }
    };

    check(&config)?;
    Ok(config)
}

/// Our own `config.json`; `None` if the file is something else.
fn own(path: &Path, hints: &Hints) -> Result<Option<ClipConfig>> {
    let section = Section::read(path)?;
    if section.get("embed_dim").is_none() {
        return Ok(None);
    }

    let place = section.place;
    let config: ClipConfig = serde_json::from_value(Value::Object(without_bookkeeping(
        section.map,
    )))
    .map_err(|e| {
        Error::corrupt(format!("{place} is not a valid model configuration")).caused_by(e)
    })?;

    // Our file states everything, so hints can only agree with it or be wrong.
    hints.activation(Stated::Named(config.activation))?;
    hints.agree(&config)?;
    Ok(Some(config))
}

/// Removes Hugging Face's keys from a `config.json` of [`MODEL_TYPE`].
fn without_bookkeeping(mut map: Map<String, Value>) -> Map<String, Value> {
    if map.get("model_type").is_some_and(|kind| kind == MODEL_TYPE) {
        map.retain(|key, _| !BOOKKEEPING.contains(&key.as_str()));
    }
    map
}

/// Reads the shape off `open_clip`'s tensors; heads and activation cannot be read off.
fn from_shapes(foreign: &Tensors, hints: &Hints) -> Result<ClipConfig> {
    // Lengths are bounded before anything is allocated for them.
    let axis = |id: ParameterId, axis: usize| -> Result<usize> {
        let name = id.name();
        let shape = foreign.get(&name).map(|tensor| tensor.shape.as_slice());
        let length = shape.and_then(|shape| shape.get(axis)).copied();
        length.filter(|n| (1..=LARGEST).contains(n)).ok_or_else(|| {
            Error::failed(match shape {
                Some(shape) => format!("tensor {name} has the unusable shape {shape:?}"),
                None => {
                    format!("there is no tensor {name}, which tells the model's shape")
                }
            })
        })
    };

    // Every block has a first LayerNorm, so the first index without one ends the tower.
    let blocks = |tower: Tower| {
        let has = |index| {
            foreign.contains_key(&names::block(tower, index).name(Part::Ln1Weight))
        };
        (0..=MOST_LAYERS).take_while(|&index| has(index)).count()
    };
    let hidden = |tower: Tower| axis(ParameterId::Block(tower, 0, Part::FcBias), 0);

    let vision_width = axis(ParameterId::PatchEmbedding, 0)?;
    let patch = axis(ParameterId::PatchEmbedding, 2)?;
    // One row belongs to the class token, the others to a square grid of patches.
    let patches = axis(ParameterId::PositionEmbedding(Tower::Vision), 0)? - 1;
    let text_width = axis(ParameterId::TokenEmbedding, 1)?;

    let (Some(activation), Some(heads), Some(text_heads)) =
        (hints.activation, hints.heads, hints.text_heads)
    else {
        return Err(missing(hints, [vision_width, text_width]));
    };

    Ok(ClipConfig {
        embed_dim: axis(ParameterId::Projection(Tower::Text), 1)?,
        activation,
        vision: VisionConfig {
            image_size: patches.isqrt() * patch,
            patch,
            width: vision_width,
            layers: blocks(Tower::Vision),
            heads,
            hidden: hidden(Tower::Vision)?,
        },
        text: TextConfig {
            context: axis(ParameterId::PositionEmbedding(Tower::Text), 0)?,
            vocabulary: axis(ParameterId::TokenEmbedding, 0)?,
            width: text_width,
            layers: blocks(Tower::Text),
            heads: text_heads,
            hidden: hidden(Tower::Text)?,
        },
        moe: None,
    })
}

/// Everything that a bare file of weights does not say, in one error.
fn missing(hints: &Hints, [vision_width, text_width]: [usize; 2]) -> Error {
    let wanted = [
        (
            hints.activation.is_none(),
            "--activation (quick_gelu for OpenAI's models)".into(),
        ),
        (
            hints.heads.is_none(),
            format!("--heads (of the image tower, whose width is {vision_width})"),
        ),
        (
            hints.text_heads.is_none(),
            format!("--text-heads (of the text tower, whose width is {text_width})"),
        ),
    ];
    let wanted: Vec<String> = wanted
        .into_iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, flag)| flag)
        .collect();

    Error::usage(format!(
        "there is no {} beside the weights, and tensors do not tell everything: give {}, or \
         --config with such a file or the name of an architecture, such as ViT-B-32",
        open_clip::FILE,
        wanted.join(" and ")
    ))
}

/// Refuses shapes that no model can have.
fn check(config: &ClipConfig) -> Result<()> {
    let VisionConfig { image_size, patch, .. } = config.vision;
    if patch == 0 || image_size < patch || !image_size.is_multiple_of(patch) {
        return Err(Error::failed(format!(
            "patches of {patch} do not divide pictures of {image_size} pixels"
        )));
    }

    // Engines divide by the number of heads and allocate for every block.
    for tower in Tower::BOTH {
        let shape = config.tower(tower);
        let name = tower.name();
        if shape.heads == 0 || !shape.width.is_multiple_of(shape.heads) {
            let (heads, width) = (shape.heads, shape.width);
            return Err(Error::failed(format!(
                "{name}: {heads} heads do not divide the width {width}"
            )));
        }
        if shape.layers == 0 || shape.layers > MOST_LAYERS {
            let layers = shape.layers;
            return Err(Error::failed(format!(
                "{name}: {layers} layers, expected 1 to {MOST_LAYERS}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_bookkeeping_of_our_own_kind_of_model_is_left_out() {
        let read = |json: Value| match json {
            Value::Object(map) => without_bookkeeping(map),
            _ => Map::new(),
        };
        let ours =
            read(json!({"model_type": MODEL_TYPE, "dtype": "float32", "moe": null,
            "qk_norm": true}));
        assert_eq!(ours.keys().collect::<Vec<_>>(), ["moe", "qk_norm"]);
        let theirs = json!({"model_type": "clip", "dtype": "float32"});
        assert_eq!(Value::Object(read(theirs.clone())), theirs);
    }
}
