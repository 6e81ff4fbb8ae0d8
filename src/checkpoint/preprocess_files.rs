//! Reading how a model wants its pictures prepared from the files around its weights.
//!
//! Four kinds of files are read: our `preprocess.json`, a data set's `dataset.json`,
//! `open_clip_config.json`, and `preprocessor_config.json`, which has a file of its own here.
//! Every field is applied exactly or refused by its name; `docs/checkpoints.md` has the table.

use std::path::Path;

use serde_json::Value;

use super::lineage::{DATASET, Lineage};
use super::preprocess::{PREPROCESS, Preprocessing};
use super::section::{Rule, Rules, Section, colors};
use super::{image_processor, open_clip};
use crate::error::{Error, Result};
use crate::image::{Filter, Fit};

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

impl Preprocessing {
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
