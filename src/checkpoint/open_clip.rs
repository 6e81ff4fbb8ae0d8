//! `open_clip`'s configuration of a model: its shape, its activation, and how it cleans text.
//!
//! The rules below have every field of `open_clip`'s dataclasses; a test compares them with
//! the list in `tests/fixtures/open_clip/fields.json` and with `docs/checkpoints.md`.

use std::path::Path;

use serde_json::Value;

use super::hints::{Hints, Stated};
use super::section::{Rule, Rules, Section};
use crate::config::Activation;
use crate::error::{Error, Result, did_you_mean};
use crate::model::{ClipConfig, TextConfig, VisionConfig};
use crate::text::Cleaning;

/// `open_clip`'s configuration file.
pub(super) const FILE: &str = "open_clip_config.json";

/// The architectures of `open_clip` 3.3 that this crate builds, as its package has them.
const ARCHITECTURES: &str = include_str!("architectures.json");

/// Width of an attention head where the configuration does not say otherwise.
const HEAD_WIDTH: usize = 64;

const OFF: Rule = Rule::Only(&["false"]);
const NONE: Rule = Rule::Only(&["null"]);
const KWARGS: Rule = Rule::Only(&["{}", r#"{"eps": 1e-5}"#]);

/// Fields of `model_cfg`.
pub(super) const MODEL: &Rules = &[
    ("embed_dim", Rule::Read),
    ("vision_cfg", Rule::Read),
    ("text_cfg", Rule::Read),
    ("quick_gelu", Rule::Read),
    ("init_logit_scale", Rule::Ignored),
    ("init_logit_bias", NONE),
    ("nonscalar_logit_scale", Rule::Ignored),
    ("cast_dtype", Rule::Ignored),
    ("output_dict", Rule::Ignored),
    ("custom_text", Rule::Ignored),
];

/// Fields that `vision_cfg` and `text_cfg` have in common: a tower's transformer.
pub(super) const TOWER: &Rules = &[
    ("layers", Rule::Read),
    ("width", Rule::Read),
    ("mlp_ratio", Rule::Read),
    ("ls_init_value", NONE),
    ("final_ln_after_pool", OFF),
    ("output_tokens", Rule::Ignored),
    ("act_kwargs", Rule::Only(&["{}"])),
    ("norm_kwargs", KWARGS),
    ("block_type", Rule::Only(&[r#""default""#])),
    ("qk_norm", OFF),
    ("scaled_cosine_attn", OFF),
    ("scale_heads", OFF),
    ("scale_attn_inner", OFF),
    ("scale_attn", OFF),
    ("scale_fc", OFF),
];

/// The other fields of `vision_cfg`.
pub(super) const VISION: &Rules = &[
    ("head_width", Rule::Read),
    ("patch_size", Rule::Read),
    ("image_size", Rule::Read),
    ("patch_dropout", Rule::Ignored),
    ("attentional_pool", OFF),
    ("attn_pooler_queries", Rule::Ignored),
    ("attn_pooler_heads", Rule::Ignored),
    ("no_ln_pre", OFF),
    ("pos_embed_type", Rule::Only(&[r#""learnable""#])),
    ("pool_type", Rule::Only(&[r#""tok""#])),
    ("timm_model_name", NONE),
    ("timm_model_pretrained", Rule::Ignored),
    ("timm_pool", Rule::Ignored),
    ("timm_proj", Rule::Ignored),
    ("timm_proj_bias", Rule::Ignored),
    ("timm_drop", Rule::Ignored),
    ("timm_drop_path", Rule::Ignored),
];

/// The other fields of `text_cfg`.
pub(super) const TEXT: &Rules = &[
    ("context_length", Rule::Read),
    ("vocab_size", Rule::Read),
    ("hf_tokenizer_name", Rule::Only(&["null", r#""""#])),
    ("tokenizer_mode", NONE),
    ("tokenizer_kwargs", Rule::Read),
    ("heads", Rule::Read),
    ("embed_cls", OFF),
    ("pad_id", Rule::Ignored),
    ("eos_id", Rule::Ignored),
    ("no_causal_mask", OFF),
    ("pool_type", Rule::Only(&[r#""argmax""#])),
    ("proj_bias", OFF),
    ("proj_type", Rule::Only(&[r#""linear""#])),
    ("hf_model_name", NONE),
    ("hf_model_pretrained", Rule::Ignored),
    ("hf_proj_type", Rule::Ignored),
    ("hf_pooler_type", Rule::Ignored),
];

/// Fields of `tokenizer_kwargs`: the arguments of `open_clip`'s tokenizer.
pub(super) const TOKENIZER: &Rules = &[
    ("clean", Rule::Read),
    ("additional_special_tokens", Rule::Only(&["[]"])),
    ("bpe_path", NONE),
    ("context_length", NONE),
    ("reduction_mask", Rule::Only(&[r#""""#])),
];

/// The section `model_cfg` of a configuration file, or the file itself where it is one of
/// the package's own, which have no such section.
pub(super) fn read(path: &Path) -> Result<Section> {
    let file = Section::read(path)?;
    if file.map.contains_key("vision_cfg") { Ok(file) } else { file.section("model_cfg") }
}

/// The configuration that `--config` means: a file, or an architecture by its name.
pub(super) fn named(asked: &Path) -> Result<Section> {
    if asked.is_file() {
        return read(asked);
    }

    // A misspelled file must not be taken for the name of an architecture.
    let name = asked.to_string_lossy();
    if name.ends_with(".json") {
        return Err(Error::usage(format!("--config: there is no file {name}")));
    }

    let table = Section::parse(ARCHITECTURES, "open_clip".to_owned())?;
    if table.map.contains_key(&*name) {
        return table.section(&name);
    }

    let hint = did_you_mean(&name, table.map.keys().map(String::as_str));
    let known: Vec<&str> = table.map.keys().map(String::as_str).collect();
    let known = known.join(", ");
    Err(Error::usage(format!(
        "--config: {name} is neither a file nor an architecture that can be built; known are \
         {known}{hint}"
    )))
}

/// The shape of the model.
pub(super) fn shape(model: &Section, hints: &Hints) -> Result<ClipConfig> {
    // A field that this crate does not build is refused before anything is read.
    let (vision, text) = (model.section("vision_cfg")?, model.section("text_cfg")?);
    model.obey(&[MODEL])?;
    vision.obey(&[VISION, TOWER])?;
    text.obey(&[TEXT, TOWER])?;
    cleaning(model)?;

    // A file that does not say quick_gelu means the exact GELU, as open_clip reads it.
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

    // Absent fields have the defaults of open_clip's dataclasses.
    let config = ClipConfig {
        embed_dim: model.count("embed_dim", 512)?,
        activation: hints.activation(stated)?,
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
    };

    hints.agree(&config)?;
    Ok(config)
}

/// How the model's tokenizer cleans captions.
pub(super) fn cleaning(model: &Section) -> Result<Cleaning> {
    let text = model.section("text_cfg")?;
    let Some(kwargs) = text.optional("tokenizer_kwargs")? else {
        return Ok(Cleaning::default());
    };
    kwargs.obey(&[TOKENIZER])?;

    match kwargs.get("clean").map(Value::as_str) {
        None | Some(Some("lower")) => Ok(Cleaning::Lower),
        Some(Some("whitespace")) => Ok(Cleaning::Whitespace),
        Some(Some("canonicalize")) => Ok(Cleaning::Canonicalize),
        Some(_) => Err(kwargs.wrong("clean", "lower, whitespace or canonicalize")),
    }
}
