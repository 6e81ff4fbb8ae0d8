//! How a model wants its pictures prepared, as the files around its weights say.
//!
//! Four kinds of files are read: our `preprocess.json`, a data set's `dataset.json`,
//! `open_clip_config.json`, and `preprocessor_config.json`, which has a file of its own here.
//! Every field is applied exactly or refused by its name; `docs/checkpoints.md` has the table.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lineage::{DATASET, Lineage};
use super::section::{Rule, Rules, Section};
use super::{image_processor, open_clip};
use crate::error::{Context, Error, Result};
use crate::image::{Convention, Filter, Fit, Framing, Normalise};
use crate::num::round_f32;

/// Our file of these settings beside an imported model.
pub const PREPROCESS: &str = "preprocess.json";

/// The files that say how pictures are prepared and captions are cleaned.
pub const PREPARATION: [&str; 3] = [PREPROCESS, image_processor::FILE, open_clip::FILE];

/// Fields of `open_clip`'s `preprocess_cfg`.
pub(super) const OPEN_CLIP: &Rules = &[
    // The model's image_size replaces it, as in open_clip.
    ("size", Rule::Ignored),
    ("mode", Rule::Only(&[r#""RGB""#])),
    ("mean", Rule::Read),
    ("std", Rule::Read),
    ("interpolation", Rule::Read),
    ("resize_mode", Rule::Read),
    ("fill_color", Rule::Read),
];

/// How pictures become numbers: framed as a square, then (x / 255 - mean) / std by color.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Mean of red, green and blue.
    pub mean: [f64; 3],
    /// Standard deviation of red, green and blue.
    pub std: [f64; 3],
    /// Side of the square, in pixels; the model's if the file does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Side that pictures are resized to before the centre is cut out; `size` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resized: Option<usize>,
    /// How the aspect is treated.
    #[serde(default)]
    pub resize_mode: Fit,
    /// How pixels are weighted.
    #[serde(default)]
    pub interpolation: Filter,
    /// Level of the margin that the resize mode `longest` adds.
    #[serde(default)]
    pub fill_color: u8,
    /// Whose steps are followed where the libraries differ.
    #[serde(default)]
    pub convention: Convention,
}

impl Preprocessing {
    /// `OpenAI`'s constants, which nearly every published CLIP uses.
    pub const OPENAI: Self = Self::new(
        [0.481_454_66, 0.457_827_5, 0.408_210_73],
        [0.268_629_54, 0.261_302_58, 0.275_777_11],
    );

    /// `open_clip`'s usual transform with these constants.
    pub const fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        Self {
            mean,
            std,
            size: None,
            resized: None,
            resize_mode: Fit::Shortest,
            interpolation: Filter::Bicubic,
            fill_color: 0,
            convention: Convention::OpenClip,
        }
    }

    /// What the files around a checkpoint say; `None` if they say nothing.
    ///
    /// A result of this pipeline has no such file: the data set it was trained on says it.
    pub fn of_checkpoint(checkpoint: &Path) -> Result<Option<Self>> {
        let folder = super::folder_of(checkpoint);

        // A folder may hold a model in both layouts: the one that is read decides.
        let weights = super::weights_of(checkpoint)?;
        let name = weights.file_name().unwrap_or_default().to_string_lossy();
        let files = if name.starts_with("open_clip") {
            [PREPROCESS, open_clip::FILE, image_processor::FILE]
        } else {
            [PREPROCESS, image_processor::FILE, open_clip::FILE]
        };

        for file in files {
            let path = folder.join(file);
            if path.is_file()
                && let Some(found) = Self::of(&Section::read(&path)?)?
            {
                return Ok(Some(found));
            }
        }

        let lineage = Lineage::of(checkpoint)?;
        lineage.map(|lineage| Self::read(&lineage.description())).transpose()
    }

    /// What a configuration of `open_clip` says; `None` if it says nothing.
    pub fn of_configuration(path: &Path) -> Result<Option<Self>> {
        Self::of(&Section::read(path)?)
    }

    /// Reads one file of any of the four kinds.
    pub fn read(path: &Path) -> Result<Self> {
        let section = Section::read(path)?;
        let place = &section.place;
        Self::of(&section)?.ok_or_else(|| {
            Error::failed(format!(
                "{place} does not say how pictures are prepared; expected {PREPROCESS}, \
                 {DATASET}, {} or {} with preprocess_cfg",
                image_processor::FILE,
                open_clip::FILE
            ))
        })
    }

    /// Reads one file of any kind, which its fields tell; `None` if it has none of them.
    fn of(section: &Section) -> Result<Option<Self>> {
        let has = |key: &str| section.map.contains_key(key);
        // Any field of Hugging Face's file makes it one: none of them may be passed over.
        let of_processor = image_processor::is_one(section);

        // The kinds are asked for from the most to the least particular field.
        let found = if has("model_cfg") || has("preprocess_cfg") {
            let Some(cfg) = section.optional("preprocess_cfg")? else { return Ok(None) };
            of_open_clip(&cfg)?
        } else if has("splits") && has("image_size") {
            of_dataset(section)?
        } else if has("mean") || has("std") {
            let map = Value::Object(section.map.clone());
            serde_json::from_value(map).map_err(|e| {
                let place = &section.place;
                Error::corrupt(format!("{place} is not a valid {PREPROCESS}"))
                    .caused_by(e)
            })?
        } else if of_processor {
            image_processor::read(section)?
        } else {
            return Ok(None);
        };

        found.check(&section.place)?;
        Ok(Some(found))
    }

    /// Refuses values of a file, named `place` in messages, that no transform can have.
    fn check(&self, place: &str) -> Result<()> {
        let Self { mean, std, .. } = self;
        let finite = mean.iter().chain(std).all(|value| value.is_finite());
        if !finite || std.iter().any(|std| *std <= 0.0) {
            return Err(Error::corrupt(format!(
                "{place}: mean {mean:?} and std {std:?}; expected finite numbers, std above 0"
            )));
        }

        // What is cut out cannot be larger than what it is cut out of, and a side to resize to
        // says nothing without the side of the cut.
        let (size, resized) =
            (self.size.unwrap_or(1), self.resized.unwrap_or(usize::MAX));
        if size == 0 || resized < size || (self.resized.is_some() && self.size.is_none())
        {
            return Err(Error::corrupt(format!(
                "{place}: size {:?} is cut out of {:?}; expected a size above 0 and not \
                 above what it is cut out of",
                self.size, self.resized
            )));
        }
        Ok(())
    }

    /// The way from a picture file to the square of `side` pixels that a model sees.
    ///
    /// # Errors
    /// Where the settings are for a square of another side.
    pub fn framing(&self, side: usize) -> Result<Framing> {
        if let Some(size) = self.size.filter(|size| *size != side) {
            return Err(Error::usage(format!(
                "pictures are prepared for {size} x {size} pixels, but the model sees {side} \
                 x {side}: give --preprocess a file for this size"
            )));
        }
        Ok(Framing {
            side,
            resized: self.resized.unwrap_or(side),
            fit: self.resize_mode,
            filter: self.interpolation,
            fill: self.fill_color,
            convention: self.convention,
        })
    }

    /// Refuses a way of framing that the stage `dataset` does not have: it resizes the
    /// shortest side to the picture's size, bicubic, and cuts the centre out.
    pub fn check_usual(&self) -> Result<()> {
        let (mode, filter) = (self.resize_mode, self.interpolation);
        if self.is_whole() && mode == Fit::Shortest && filter == Filter::Bicubic {
            return Ok(());
        }

        let (mode, filter) = (mode.name(), filter.name());
        let cut = match (self.size, self.resized) {
            (Some(size), Some(resized)) if size != resized => {
                format!(", cut from {resized} to {size} pixels")
            }
            _ => String::new(),
        };
        Err(Error::usage(format!(
            "the model's pictures are prepared with resize_mode {mode} and interpolation \
             {filter}{cut}; the stage dataset supports only shortest and bicubic without a \
             further cut"
        )))
    }

    /// Whether nothing more is cut off than the aspect asks for.
    fn is_whole(&self) -> bool {
        self.resized.is_none_or(|resized| Some(resized) == self.size)
    }

    /// The same for a model whose position embeddings were resized for pictures of `side`.
    pub fn for_side(self, side: usize) -> Result<Self> {
        if !self.is_whole() {
            return Err(Error::usage(format!(
                "--image-size {side}: the model's pictures are cut out of a larger one, and \
                 nobody has said of which size; give --preprocess"
            )));
        }
        Ok(Self { size: Some(side), resized: None, ..self })
    }

    /// The constants for the pictures of this crate.
    pub fn normalise(&self) -> Normalise {
        let Self { mean, std, .. } = self;
        Normalise { mean: mean.map(round_f32), std: std.map(round_f32) }
    }

    /// The text of `preprocess.json`.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        Ok(text.context(|| format!("writing {PREPROCESS}"))? + "\n")
    }
}

/// `open_clip`'s evaluation transform. A field that is absent has `open_clip`'s default.
fn of_open_clip(cfg: &Section) -> Result<Preprocessing> {
    cfg.obey(&[OPEN_CLIP])?;
    let usual = Preprocessing::OPENAI;
    let fill = cfg.get("fill_color").map_or(Some(0), Value::as_u64);

    Ok(Preprocessing {
        resize_mode: match cfg.get("resize_mode").map(Value::as_str) {
            None | Some(Some("shortest")) => Fit::Shortest,
            Some(Some("longest")) => Fit::Longest,
            Some(Some("squash")) => Fit::Squash,
            Some(_) => {
                return Err(cfg.wrong("resize_mode", "shortest, longest or squash"));
            }
        },
        interpolation: match cfg.get("interpolation").map(Value::as_str) {
            // At evaluation open_clip takes "random" for bicubic.
            None | Some(Some("bicubic" | "random")) => Filter::Bicubic,
            Some(Some("bilinear")) => Filter::Bilinear,
            Some(_) => {
                return Err(cfg.wrong("interpolation", "bicubic, bilinear or random"));
            }
        },
        fill_color: fill
            .and_then(|level| u8::try_from(level).ok())
            .ok_or_else(|| cfg.wrong("fill_color", "a level from 0 to 255"))?,
        ..Preprocessing::new(
            colors(cfg, "mean", usual.mean)?,
            colors(cfg, "std", usual.std)?,
        )
    })
}

/// What the stage `dataset` does to pictures, which its description states.
fn of_dataset(file: &Section) -> Result<Preprocessing> {
    // A description always has these fields. The defaults are refused afterwards, as no
    // deviation and no size may be 0.
    let zero = [0.0; 3];
    let (mean, std) = (colors(file, "mean", zero)?, colors(file, "std", zero)?);
    let size = Some(file.count("image_size", 0)?);
    Ok(Preprocessing { size, ..Preprocessing::new(mean, std) })
}

/// Three numbers, or one for all colors.
pub(super) fn colors(
    section: &Section,
    key: &str,
    default: [f64; 3],
) -> Result<[f64; 3]> {
    let Some(value) = section.get(key) else { return Ok(default) };

    let three = match value {
        Value::Array(list) => {
            let list: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
            list.and_then(|list| <[f64; 3]>::try_from(list).ok())
        }
        value => value.as_f64().map(|value| [value; 3]),
    };
    three.ok_or_else(|| section.wrong(key, "three numbers"))
}
