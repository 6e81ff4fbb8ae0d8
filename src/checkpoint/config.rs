//! The shape of a foreign model: from its configuration, or from its tensors alone.
//!
//! Options of `open_clip` that change the architecture in ways this crate does not build are
//! refused by name; so is a Hugging Face model that pools captions in another way.

use std::path::Path;

use serde_json::{Map, Value};

use super::layout::Layout;
use crate::config::Activation;
use crate::error::{Context, Error, Result};
use crate::io::tensors::Tensors;
use crate::model::names::{self, Part, Place};
use crate::model::{ClipConfig, TextConfig, Tower, VisionConfig};
use crate::num::truncate_usize;

/// `open_clip`'s configuration file.
pub(super) const OPEN_CLIP: &str = "open_clip_config.json";

/// Hugging Face's configuration file, and ours.
pub(super) const HUGGING_FACE: &str = "config.json";

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

/// Values a head where no configuration says otherwise (`OpenAI`'s rule).
const HEAD_WIDTH: usize = 64;

/// No model has more of anything; what is beyond is an attack or a mistake.
const LARGEST: usize = 1 << 24;

/// Most blocks of a tower.
const MOST_LAYERS: usize = 1024;

/// Options of `open_clip` that are read here or change nothing that is computed.
const TOP_KEYS: [&str; 7] = [
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "init_logit_scale",
    "custom_text",
    "cast_dtype",
];
const VISION_KEYS: [&str; 8] = [
    "image_size",
    "patch_size",
    "width",
    "layers",
    "head_width",
    "mlp_ratio",
    "patch_dropout",
    "output_tokens",
];
const TEXT_KEYS: [&str; 10] = [
    "context_length",
    "vocab_size",
    "width",
    "layers",
    "heads",
    "mlp_ratio",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "pad_id",
    "output_tokens",
];

/// An activation, and whether the file says so or its format's default does.
#[derive(Clone, Copy)]
enum Stated {
    Named(Activation),
    Default(Activation),
}

/// The configuration beside the weights if there is one, else what the shapes tell.
pub(super) fn beside(
    folder: &Path,
    layout: Layout,
    foreign: &Tensors,
    asked: Option<Activation>,
) -> Result<ClipConfig> {
    let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    let config = match layout {
        Layout::HuggingFace => {
            let Some(path) = file(HUGGING_FACE) else {
                let place = folder.join(HUGGING_FACE);
                let place = place.display();
                return Err(Error::failed(format!(
                    "{place} is missing: it has the heads"
                )));
            };
            hugging_face(&path, asked)?
        }
        Layout::OpenClip => match (file(OPEN_CLIP), file(HUGGING_FACE)) {
            (Some(path), _) => open_clip(&path, asked)?,
            (None, Some(path)) => match own(&path, asked)? {
                Some(config) => config,
                None => from_shapes(foreign, asked)?,
            },
            (None, None) => from_shapes(foreign, asked)?,
        },
    };
    check(&config)?;
    Ok(config)
}

/// The configuration of a folder, whatever its layout, without looking at weights.
pub(super) fn of_folder(folder: &Path, asked: Option<Activation>) -> Result<ClipConfig> {
    let path = folder.join(OPEN_CLIP);
    let config = if path.is_file() {
        open_clip(&path, asked)?
    } else {
        let path = folder.join(HUGGING_FACE);
        match own(&path, asked)? {
            Some(config) => config,
            None => hugging_face(&path, asked)?,
        }
    };
    check(&config)?;
    Ok(config)
}

/// Decides the activation, or says why it cannot.
fn decide(stated: Stated, asked: Option<Activation>) -> Result<Activation> {
    match (stated, asked) {
        (Stated::Named(named), Some(asked)) if named != asked => {
            Err(Error::usage(format!(
                "the configuration says activation {named:?}, but {asked:?} was asked for"
            )))
        }
        (Stated::Named(named), _) => Ok(named),
        (Stated::Default(_), Some(asked)) => Ok(asked),
        (Stated::Default(default), None) => Ok(default),
    }
}

/// One object of a JSON file, with its place for messages.
struct Section {
    place: String,
    map: Map<String, Value>,
}

impl Section {
    fn read(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let text =
            std::fs::read_to_string(path).context(|| format!("reading {place}"))?;
        let map = serde_json::from_str(&text).map_err(|e| {
            Error::corrupt(format!("{place} is not a JSON object")).caused_by(e)
        })?;
        Ok(Self { place, map })
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let (place, found) = (&self.place, self.map.get(key).unwrap_or(&Value::Null));
        Error::failed(format!("{place}: {key} is {found}, expected {expected}"))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn section(&self, key: &str) -> Result<Self> {
        let place = format!("{}: {key}", self.place);
        match self.get(key) {
            Some(Value::Object(map)) => Ok(Self { place, map: map.clone() }),
            _ => Err(self.wrong(key, "an object")),
        }
    }

    /// A whole number, or a list of equal ones as for the sides of a square.
    fn count(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let sides = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let first = sides.first().filter(|first| sides.iter().all(|side| side == *first));
        first
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=LARGEST).contains(n))
            .ok_or_else(|| self.wrong(key, "a positive whole number"))
    }

    /// The width `factor_key` times `width`, rounded down as `open_clip` does.
    fn multiple(&self, key: &str, width: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(4 * width) };
        let ratio = value.as_f64().filter(|ratio| *ratio > 0.0 && *ratio < 1e3);
        let ratio = ratio.ok_or_else(|| self.wrong(key, "a positive number"))?;
        Ok(truncate_usize(width as f64 * ratio))
    }

    /// Refuses options that are neither known nor switched off.
    fn refuse_others(&self, known: &[&str]) -> Result<()> {
        let off = |value: &Value| {
            matches!(value, Value::Null | Value::Bool(false))
                || value.as_f64() == Some(0.0)
        };
        match self
            .map
            .iter()
            .find(|(key, value)| !known.contains(&key.as_str()) && !off(value))
        {
            None => Ok(()),
            Some((key, value)) => {
                let place = &self.place;
                Err(Error::failed(format!("{place}: {key} = {value} is not supported")))
            }
        }
    }
}

fn open_clip(path: &Path, asked: Option<Activation>) -> Result<ClipConfig> {
    let model = Section::read(path)?.section("model_cfg")?;
    let (vision, text) = (model.section("vision_cfg")?, model.section("text_cfg")?);
    model.refuse_others(&TOP_KEYS)?;
    // Pooling may be spelled out as what it is anyway.
    let pools = |section: &Section, usual: &str| match section.get("pool_type") {
        Some(kind) if kind != usual => Err(section.wrong("pool_type", usual)),
        _ => Ok(()),
    };
    pools(&vision, "tok")?;
    pools(&text, "argmax")?;
    vision.refuse_others(&[&VISION_KEYS[..], &["pool_type"]].concat())?;
    text.refuse_others(&[&TEXT_KEYS[..], &["pool_type"]].concat())?;
    let stated = match model.get("quick_gelu") {
        Some(Value::Bool(true)) => Stated::Named(Activation::QuickGelu),
        Some(Value::Bool(false)) => Stated::Named(Activation::Gelu),
        None => Stated::Default(Activation::Gelu),
        Some(_) => return Err(model.wrong("quick_gelu", "true or false")),
    };
    let (vision_width, text_width) =
        (vision.count("width", 768)?, text.count("width", 512)?);
    let head_width = vision.count("head_width", HEAD_WIDTH)?;
    if !vision_width.is_multiple_of(head_width) {
        return Err(vision.wrong("head_width", &format!("a divisor of {vision_width}")));
    }
    Ok(ClipConfig {
        embed_dim: model.count("embed_dim", 512)?,
        activation: decide(stated, asked)?,
        vision: VisionConfig {
            image_size: vision.count("image_size", 224)?,
            patch: vision.count("patch_size", 16)?,
            width: vision_width,
            layers: vision.count("layers", 12)?,
            heads: vision_width / head_width,
            hidden: vision.multiple("mlp_ratio", vision_width)?,
        },
        text: TextConfig {
            context: text.count("context_length", 77)?,
            vocabulary: text.count("vocab_size", 49408)?,
            width: text_width,
            layers: text.count("layers", 12)?,
            heads: text.count("heads", 8)?,
            hidden: text.multiple("mlp_ratio", text_width)?,
        },
        moe: None,
    })
}

fn hugging_face(path: &Path, asked: Option<Activation>) -> Result<ClipConfig> {
    let top = Section::read(path)?;
    if top.get("model_type").is_some_and(|kind| kind != "clip") {
        return Err(top.wrong("model_type", "clip"));
    }
    let (vision, text) = (tower_section(&top, "vision")?, tower_section(&top, "text")?);
    for section in [&vision, &text] {
        let epsilon = section.get("layer_norm_eps").map_or(Some(1e-5), Value::as_f64);
        if epsilon.is_none_or(|epsilon| (epsilon - 1e-5).abs() > 1e-12) {
            return Err(section.wrong("layer_norm_eps", "1e-5"));
        }
    }
    if vision.count("num_channels", 3)? != 3 {
        return Err(vision.wrong("num_channels", "3"));
    }
    let vocabulary = text.count("vocab_size", 49408)?;
    // 2 is the legacy value that means: the largest id. Any other must be the largest.
    let end = text.count("eos_token_id", vocabulary - 1)?;
    if end != 2 && end != vocabulary - 1 {
        let expected = format!("2 or the last id, {}", vocabulary - 1);
        return Err(text.wrong("eos_token_id", &expected));
    }
    let (of_vision, of_text) = (hidden_act(&vision)?, hidden_act(&text)?);
    let (Stated::Named(a) | Stated::Default(a), Stated::Named(b) | Stated::Default(b)) =
        (of_vision, of_text);
    if a != b {
        return Err(text.wrong("hidden_act", "the image tower's"));
    }
    let stated = if matches!(of_vision, Stated::Named(_)) { of_vision } else { of_text };
    Ok(ClipConfig {
        embed_dim: top.count("projection_dim", 512)?,
        activation: decide(stated, asked)?,
        vision: VisionConfig {
            image_size: vision.count("image_size", 224)?,
            patch: vision.count("patch_size", 32)?,
            width: vision.count("hidden_size", 768)?,
            layers: vision.count("num_hidden_layers", 12)?,
            heads: vision.count("num_attention_heads", 12)?,
            hidden: vision.count("intermediate_size", 3072)?,
        },
        text: TextConfig {
            context: text.count("max_position_embeddings", 77)?,
            vocabulary,
            width: text.count("hidden_size", 512)?,
            layers: text.count("num_hidden_layers", 12)?,
            heads: text.count("num_attention_heads", 8)?,
            hidden: text.count("intermediate_size", 2048)?,
        },
        moe: None,
    })
}

/// `<tower>_config`, overlaid by the old `<tower>_config_dict` as Hugging Face does.
fn tower_section(top: &Section, tower: &str) -> Result<Section> {
    let (key, overlay) = (format!("{tower}_config"), format!("{tower}_config_dict"));
    let mut section = match top.get(&key) {
        Some(_) => top.section(&key)?,
        None => Section { place: format!("{}: {key}", top.place), map: Map::new() },
    };
    if top.get(&overlay).is_some() {
        section.map.extend(top.section(&overlay)?.map);
    }
    Ok(section)
}

fn hidden_act(section: &Section) -> Result<Stated> {
    match section.get("hidden_act").map(Value::as_str) {
        None => Ok(Stated::Default(Activation::QuickGelu)),
        Some(Some("quick_gelu")) => Ok(Stated::Named(Activation::QuickGelu)),
        Some(Some("gelu")) => Ok(Stated::Named(Activation::Gelu)),
        Some(_) => Err(section.wrong("hidden_act", "gelu or quick_gelu")),
    }
}

/// Our own `config.json`; `None` if the file is something else.
fn own(path: &Path, asked: Option<Activation>) -> Result<Option<ClipConfig>> {
    let section = Section::read(path)?;
    if section.get("embed_dim").is_none() {
        return Ok(None);
    }
    let place = section.place;
    let own = without_bookkeeping(section.map);
    let config: ClipConfig = serde_json::from_value(Value::Object(own)).map_err(|e| {
        Error::corrupt(format!("{place} is not a model's shape")).caused_by(e)
    })?;
    decide(Stated::Named(config.activation), asked)?;
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
fn from_shapes(foreign: &Tensors, asked: Option<Activation>) -> Result<ClipConfig> {
    let Some(activation) = asked else {
        return Err(Error::usage(format!(
            "no {OPEN_CLIP} beside the weights, so the activation must be given: quick_gelu \
             for OpenAI's models and those trained from them, else as in the training's \
             configuration"
        )));
    };
    let axis = |place: Place, axis: usize| -> Result<usize> {
        let name = place.name();
        let shape = foreign.get(&name).map(|tensor| tensor.shape.as_slice());
        let length = shape.and_then(|shape| shape.get(axis)).copied();
        length.filter(|n| (1..=LARGEST).contains(n)).ok_or_else(|| {
            Error::failed(format!(
                "no shape without a usable tensor {name}: found {shape:?}"
            ))
        })
    };
    let blocks = |tower: Tower| {
        let has = |index| {
            foreign.contains_key(&names::block(tower, index).name(Part::Ln1Weight))
        };
        (0..=MOST_LAYERS).take_while(|&index| has(index)).count()
    };
    let hidden = |tower: Tower| axis(Place::Block(tower, 0, Part::FcBias), 0);
    let heads = |width: usize| {
        if width.is_multiple_of(HEAD_WIDTH) {
            return Ok(width / HEAD_WIDTH);
        }
        Err(Error::failed(format!(
            "the heads of a tower of width {width} are not known: give an {OPEN_CLIP}"
        )))
    };
    let vision_width = axis(Place::PatchEmbedding, 0)?;
    let patch = axis(Place::PatchEmbedding, 2)?;
    let patches = axis(Place::PositionEmbedding(Tower::Vision), 0)? - 1;
    let text_width = axis(Place::TokenEmbedding, 1)?;
    Ok(ClipConfig {
        embed_dim: axis(Place::Projection(Tower::Text), 1)?,
        activation,
        vision: VisionConfig {
            image_size: patches.isqrt() * patch,
            patch,
            width: vision_width,
            layers: blocks(Tower::Vision),
            heads: heads(vision_width)?,
            hidden: hidden(Tower::Vision)?,
        },
        text: TextConfig {
            context: axis(Place::PositionEmbedding(Tower::Text), 0)?,
            vocabulary: axis(Place::TokenEmbedding, 0)?,
            width: text_width,
            layers: blocks(Tower::Text),
            heads: heads(text_width)?,
            hidden: hidden(Tower::Text)?,
        },
        moe: None,
    })
}

/// Refuses shapes that cannot be.
fn check(config: &ClipConfig) -> Result<()> {
    let VisionConfig { image_size, patch, .. } = config.vision;
    if patch == 0 || image_size < patch || !image_size.is_multiple_of(patch) {
        return Err(Error::failed(format!(
            "patches of {patch} do not divide pictures of {image_size} pixels"
        )));
    }
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
