//! Hugging Face's configuration of a `CLIPModel`.

use std::path::Path;

use serde_json::{Map, Value};

use super::hints::{Hints, Stated};
use super::section::Section;
use crate::config::Activation;
use crate::error::Result;
use crate::model::{ClipConfig, TextConfig, VisionConfig};

/// Hugging Face's configuration file, and ours.
pub(super) const FILE: &str = "config.json";

/// The only epsilon of layer norms that this crate computes with.
const EPSILON: f64 = 1e-5;

/// The shape of the model.
pub(super) fn shape(path: &Path, hints: &Hints) -> Result<ClipConfig> {
    let top = Section::read(path)?;
    if top.get("model_type").is_some_and(|kind| kind != "clip") {
        return Err(top.wrong("model_type", "\"clip\" (a CLIPModel with both towers)"));
    }

    // The epsilon and the number of channels are fixed in the engine.
    let (vision, text) = (tower_section(&top, "vision")?, tower_section(&top, "text")?);
    for section in [&vision, &text] {
        let epsilon = section.get("layer_norm_eps").map_or(Some(EPSILON), Value::as_f64);
        if epsilon.is_none_or(|epsilon| (epsilon - EPSILON).abs() > 1e-12) {
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

    // One activation serves both towers here; a default of one must agree with the other too.
    let (of_vision, of_text) = (hidden_act(&vision)?, hidden_act(&text)?);
    let (Stated::Named(a) | Stated::Default(a), Stated::Named(b) | Stated::Default(b)) =
        (of_vision, of_text);
    if a != b {
        return Err(text.wrong("hidden_act", "the image tower's"));
    }

    let stated = if matches!(of_vision, Stated::Named(_)) { of_vision } else { of_text };

    let config = ClipConfig {
        embed_dim: top.count("projection_dim", 512)?,
        activation: hints.activation(stated)?,
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
    };

    hints.agree(&config)?;
    Ok(config)
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

/// The activation of a tower. `CLIPConfig`'s default is `quick_gelu`.
fn hidden_act(section: &Section) -> Result<Stated> {
    match section.get("hidden_act").map(Value::as_str) {
        None => Ok(Stated::Default(Activation::QuickGelu)),
        Some(Some("quick_gelu")) => Ok(Stated::Named(Activation::QuickGelu)),
        Some(Some("gelu")) => Ok(Stated::Named(Activation::Gelu)),
        Some(_) => Err(section.wrong("hidden_act", "gelu or quick_gelu")),
    }
}
