//! `preprocessor_config.json`: how pictures are prepared, as transformers keeps it.
//!
//! The file is written and read for two programs: Hugging Face's `CLIPImageProcessor`, and the
//! image processor that stands as Python code in a package of ours
//! (`python/upcycle_moe/image_processing_upcycle.py`). Ours knows more settings, and follows the
//! convention that the file names. A file is ours if its `auto_map` points to our code.

use serde_json::{Value, json};

use super::preprocess::Preprocessing;
use super::section::{Rule, Rules, Section, colors};
use crate::error::{Error, Result};
use crate::image::{Convention, Filter, Fit, Framing};

/// The name of the file.
pub(super) const FILE: &str = "preprocessor_config.json";

/// The largest level of a color.
const WHITE: f64 = 255.0;

/// Pillow's numbers of the two filters.
const BICUBIC: u64 = 3;
const BILINEAR: u64 = 2;

/// The value of `auto_map` by which transformers finds our code.
const OWN_CODE: &str =
    r#"{"AutoImageProcessor": "image_processing_upcycle.UpcycleImageProcessor"}"#;

const TRUE: Rule = Rule::Only(&["true"]);
const FALSE: Rule = Rule::Only(&["false"]);
const NULL: Rule = Rule::Only(&["null"]);

/// Fields of a file for `CLIPImageProcessor`.
pub(super) const CLIP: &Rules = &[
    ("image_processor_type", Rule::Read),
    ("feature_extractor_type", Rule::Read),
    ("do_convert_rgb", Rule::Ignored),
    ("do_resize", TRUE),
    ("size", Rule::Read),
    ("default_to_square", FALSE),
    ("resample", Rule::Read),
    ("do_center_crop", Rule::Read),
    ("crop_size", Rule::Read),
    ("do_rescale", Rule::Read),
    ("rescale_factor", Rule::Read),
    ("do_normalize", Rule::Read),
    ("image_mean", Rule::Read),
    ("image_std", Rule::Read),
    ("do_pad", FALSE),
    ("pad_size", NULL),
    ("crop_pct", NULL),
    ("processor_class", Rule::Ignored),
    ("_valid_processor_keys", Rule::Ignored),
    ("return_tensors", Rule::Ignored),
    ("data_format", Rule::Ignored),
    ("input_data_format", Rule::Ignored),
    ("device", Rule::Ignored),
    ("disable_grouping", Rule::Ignored),
];

/// Fields of a file for our own code, which has no switches: it always does every step, so a
/// step that is switched off in the file is refused.
pub(super) const OWN: &Rules = &[
    ("image_processor_type", Rule::Read),
    ("auto_map", Rule::Only(&[OWN_CODE])),
    ("do_convert_rgb", TRUE),
    ("do_resize", TRUE),
    ("size", Rule::Read),
    ("resample", Rule::Read),
    ("do_center_crop", TRUE),
    ("crop_size", Rule::Read),
    ("do_rescale", TRUE),
    ("rescale_factor", Rule::Only(&["0.00392156862745098"])),
    ("do_normalize", TRUE),
    ("image_mean", Rule::Read),
    ("image_std", Rule::Read),
    ("fill_color", Rule::Read),
    ("convention", Rule::Read),
    ("processor_class", Rule::Ignored),
];

/// The program that a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Processor {
    /// Hugging Face's `CLIPImageProcessor`.
    Clip,
    /// Our code, which lies in the same folder.
    Own,
}

/// Whether a JSON object is such a file. Any field of one makes it one, so that none of them
/// is passed over.
pub(super) fn is_one(file: &Section) -> bool {
    CLIP.iter().chain(OWN).any(|(key, _)| file.map.contains_key(*key))
}

/// The content of the file for a model that sees squares of `side` pixels.
///
/// # Errors
/// Where `CLIPImageProcessor` cannot resize as the model's pictures are prepared.
pub(super) fn json(
    pictures: &Preprocessing,
    side: usize,
    processor: Processor,
) -> Result<Value> {
    let Framing { side, resized, fit, filter, fill, convention } =
        pictures.framing(side)?;
    let size = match (fit, processor) {
        (Fit::Shortest, _) => json!({"shortest_edge": resized}),
        (Fit::Squash, _) => json!({"height": resized, "width": resized}),
        (Fit::Longest, Processor::Own) => json!({"longest_edge": resized}),
        (Fit::Longest, Processor::Clip) => {
            return Err(Error::usage(
                "Hugging Face's image processor cannot resize the longest side, as the \
                 model's pictures are prepared: export to open_clip",
            ));
        }
    };
    let resample = match filter {
        Filter::Bicubic => BICUBIC,
        Filter::Bilinear => BILINEAR,
    };

    let mut file = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": size,
        "resample": resample,
        "do_center_crop": true,
        "crop_size": {"height": side, "width": side},
        "do_rescale": true,
        "rescale_factor": 1.0 / WHITE,
        "do_normalize": true,
        "image_mean": pictures.mean,
        "image_std": pictures.std,
    });
    if processor == Processor::Own {
        file["auto_map"] = json!({
            "AutoImageProcessor": "image_processing_upcycle.UpcycleImageProcessor",
        });
        file["fill_color"] = json!(fill);
        file["convention"] = json!(convention);

        // Whoever does not run our code falls back on CLIPImageProcessor, which is nearly the
        // same. Where the longest side is resized, it is not.
        if fit == Fit::Longest {
            file["image_processor_type"] = json!("UpcycleImageProcessor");
        }
    }
    Ok(file)
}

/// Reads a file. A field that is absent has the default of the program that the file is for,
/// and the defaults of both are the same.
pub(super) fn read(file: &Section) -> Result<Preprocessing> {
    let processor = program(file)?;
    let (resize_mode, resized) = target(file, processor)?;
    let size = if file.flag("do_center_crop", true)? {
        square(file, "crop_size", ["height", "width"])?
    } else if resize_mode == Fit::Squash {
        resized
    } else {
        let why = "true: without the crop, pictures are not squares";
        return Err(file.wrong("do_center_crop", why));
    };
    if resized < size {
        let most = format!("at most the {resized} pixels of size");
        return Err(file.wrong("crop_size", &most));
    }

    let interpolation = match file.get("resample").map_or(Some(BICUBIC), Value::as_u64) {
        Some(BICUBIC) => Filter::Bicubic,
        Some(BILINEAR) => Filter::Bilinear,
        _ => return Err(file.wrong("resample", "3 (bicubic) or 2 (bilinear)")),
    };
    let usual = Preprocessing::OPENAI;
    let (mean, std) = if file.flag("do_normalize", true)? {
        (colors(file, "image_mean", usual.mean)?, colors(file, "image_std", usual.std)?)
    } else {
        ([0.0; 3], [1.0; 3])
    };

    // (r x - mean) / std is (x / 255 - mean / s) / (std / s) where s is 255 r.
    let scale = scale(file)?;
    Ok(Preprocessing {
        size: Some(size),
        resized: Some(resized).filter(|resized| *resized != size),
        resize_mode,
        interpolation,
        fill_color: fill_color(file)?,
        convention: convention(file, processor)?,
        ..Preprocessing::new(mean.map(|m| m / scale), std.map(|s| s / scale))
    })
}

/// The program that a file is for, after a check that all its fields suit it.
fn program(file: &Section) -> Result<Processor> {
    let has = |key: &str, value: &str| file.get(key).is_some_and(|found| found == value);
    let is_own = file.get("auto_map").is_some()
        || has("image_processor_type", "UpcycleImageProcessor");
    if is_own {
        file.obey(&[OWN])?;
    } else {
        file.obey(&[CLIP])?;
    }

    // transformers has had several names for this program, such as CLIPImageProcessorFast.
    for key in ["image_processor_type", "feature_extractor_type"] {
        let Some(kind) = file.get(key) else { continue };
        let kind = kind.as_str().unwrap_or_default();
        let is_clip =
            kind.starts_with("CLIPImageProcessor") || kind == "CLIPFeatureExtractor";
        let is_ours = is_own && kind == "UpcycleImageProcessor";
        if !(is_clip || is_ours) {
            return Err(file.wrong(key, "CLIPImageProcessor or CLIPFeatureExtractor"));
        }
    }
    Ok(if is_own { Processor::Own } else { Processor::Clip })
}

/// The resize that `size` asks for: a number or `shortest_edge` keeps the aspect, `height` and
/// `width` do not. Our code knows `longest_edge` too, which keeps the aspect and adds a margin.
fn target(file: &Section, processor: Processor) -> Result<(Fit, usize)> {
    let has = |key: &str| file.get("size").is_some_and(|size| size.get(key).is_some());
    let (fit, keys) = if has("height") {
        (Fit::Squash, ["height", "width"])
    } else if has("longest_edge") && processor == Processor::Own {
        (Fit::Longest, ["longest_edge", "longest_edge"])
    } else {
        (Fit::Shortest, ["shortest_edge", "shortest_edge"])
    };
    Ok((fit, square(file, "size", keys)?))
}

/// A side: a number, or an object with exactly these keys and equal values; 224 if absent.
fn square(file: &Section, key: &str, keys: [&str; 2]) -> Result<usize> {
    let side = match file.get(key) {
        None => Some(224),
        Some(Value::Object(sides)) => {
            let known = sides.keys().all(|key| keys.contains(&key.as_str()));
            let [a, b] = keys.map(|key| sides.get(key).and_then(Value::as_u64));
            a.filter(|a| known && Some(*a) == b)
        }
        Some(side) => side.as_u64(),
    };

    // More than 65,536 pixels are a mistake or an attack.
    let expected =
        format!("a number of pixels, or {} and {} that are equal", keys[0], keys[1]);
    side.and_then(|side| usize::try_from(side).ok())
        .filter(|side| (1..=1 << 16).contains(side))
        .ok_or_else(|| file.wrong(key, &expected))
}

/// 255 times the factor on levels; 1 where it is the usual 1/255.
fn scale(file: &Section) -> Result<f64> {
    let factor = if file.flag("do_rescale", true)? {
        let factor = file.get("rescale_factor").map_or(Some(1.0 / WHITE), Value::as_f64);
        factor.filter(|factor| *factor > 0.0 && factor.is_finite())
    } else {
        Some(1.0)
    };
    let factor =
        factor.ok_or_else(|| file.wrong("rescale_factor", "a positive number"))?;

    // Files round 1/255 in many ways, and all of them mean the same.
    let scale = WHITE * factor;
    Ok(if (scale - 1.0).abs() < 1e-6 { 1.0 } else { scale })
}

/// The level of the margin that `longest_edge` needs.
fn fill_color(file: &Section) -> Result<u8> {
    let level = file.get("fill_color").map_or(Some(0), Value::as_u64);
    level
        .and_then(|level| u8::try_from(level).ok())
        .ok_or_else(|| file.wrong("fill_color", "a level from 0 to 255"))
}

/// Whose steps are followed where the libraries differ: `CLIPImageProcessor` has its own, and
/// ours follows the one that the file names.
fn convention(file: &Section, processor: Processor) -> Result<Convention> {
    match (processor, file.get("convention")) {
        (Processor::Clip, _) => Ok(Convention::HuggingFace),
        (Processor::Own, None) => Ok(Convention::OpenClip),
        (Processor::Own, Some(name)) => {
            serde_json::from_value(name.clone()).map_err(|e| {
                file.wrong("convention", "open_clip or hugging_face").caused_by(e)
            })
        }
    }
}
