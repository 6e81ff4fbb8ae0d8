//! How a published model wants its pictures normalised, as its folder says.

use std::path::Path;

use serde_json::{Value, json};

use super::config;
use crate::error::{Context, Error, Result};
use crate::image::Normalise;
use crate::num::round_f32;

/// Our file of these constants beside an imported model.
pub const PREPROCESS: &str = "preprocess.json";

/// Hugging Face's.
const HUGGING_FACE: &str = "preprocessor_config.json";

/// How pictures become numbers: (x / 255 - mean) / std, by colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Mean of red, green and blue.
    pub mean: [f64; 3],
    /// Standard deviation of red, green and blue.
    pub std: [f64; 3],
}

impl Preprocessing {
    /// `OpenAI`'s constants, which nearly every published CLIP uses.
    pub const OPENAI: Self = Self {
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
    };

    /// What a checkpoint's folder says; `None` if it says nothing.
    pub fn beside(checkpoint: &Path) -> Result<Option<Self>> {
        let folder = if checkpoint.is_dir() {
            checkpoint
        } else {
            checkpoint.parent().unwrap_or_else(|| Path::new(""))
        };
        for (file, keys) in [
            (PREPROCESS, ["/mean", "/std"]),
            (HUGGING_FACE, ["/image_mean", "/image_std"]),
            (config::OPEN_CLIP, ["/preprocess_cfg/mean", "/preprocess_cfg/std"]),
        ] {
            let path = folder.join(file);
            if path.is_file()
                && let Some(found) = Self::of(&path, keys)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Reads `mean` and `std` of a JSON file: our `preprocess.json`, or a data set's
    /// `dataset.json`.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(path, ["/mean", "/std"])?.ok_or_else(|| {
            Error::failed(format!("{} has no mean and std", path.display()))
        })
    }

    fn of(path: &Path, [mean, std]: [&str; 2]) -> Result<Option<Self>> {
        let place = path.display();
        let text =
            std::fs::read_to_string(path).context(|| format!("reading {place}"))?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| Error::corrupt(format!("{place} is not JSON")).caused_by(e))?;
        let (Some(mean), Some(std)) = (json.pointer(mean), json.pointer(std)) else {
            return Ok(None);
        };
        let three = |value: &Value| -> Option<[f64; 3]> {
            let list = value.as_array()?.iter().map(Value::as_f64);
            list.collect::<Option<Vec<f64>>>()?.try_into().ok()
        };
        match (three(mean), three(std)) {
            (Some(mean), Some(std)) if std.iter().all(|s| *s > 0.0) => {
                Ok(Some(Self { mean, std }))
            }
            _ => Err(Error::corrupt(format!(
                "{place}: mean {mean} and std {std}, expected three numbers each, std above 0"
            ))),
        }
    }

    /// The same for the pictures of this crate.
    pub fn normalise(&self) -> Normalise {
        let Self { mean, std } = self;
        Normalise { mean: mean.map(round_f32), std: std.map(round_f32) }
    }

    /// The text of `preprocess.json`.
    pub fn json(&self) -> String {
        format!("{:#}\n", json!({ "mean": self.mean, "std": self.std }))
    }
}
