//! How a model wants its pictures prepared: the settings, and what they ask of a picture.
//!
//! [`super::preprocess_files`] reads them from the files around a model's weights.

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::image::{Convention, Filter, Fit, Framing, Normalise};
use crate::num::round_f32;

/// Our file of these settings beside an imported model.
pub const PREPROCESS: &str = "preprocess.json";

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
    /// Side that pictures are resized to before the center is cut out; `size` if absent.
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

    /// Refuses values of a file, named `place` in messages, that no transform can have.
    pub(super) fn check(&self, place: &str) -> Result<()> {
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
    /// shortest side to the picture's size, bicubic, and cuts the center out.
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
