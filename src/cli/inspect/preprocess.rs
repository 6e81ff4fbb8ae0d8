//! `upcycle-inspect preprocess`: from picture files to the tensor a model sees.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::Answer;
use crate::cli::output;
use crate::error::{Context as _, Error, Result};
use crate::image::{Fit, Normalise, square};
use crate::io::tensors::{self, Tensor};

/// The arguments of `preprocess`.
#[derive(Debug, clap::Args)]
pub(super) struct Preprocess {
    /// A picture file (PNG, JPEG, WebP, GIF, BMP, TIFF, PNM); may be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    image: Vec<PathBuf>,
    /// Side of the square, in pixels.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    size: u16,
    /// How a picture becomes a square.
    #[arg(long, value_enum, default_value = "shortest")]
    mode: Fit,
    /// Mean of red, green and blue on the scale 0..1 [default: `OpenAI`'s].
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    mean: Option<Vec<f32>>,
    /// Standard deviation of red, green and blue [default: `OpenAI`'s].
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    std: Option<Vec<f32>>,
    /// Where `pixel_values` `[B,3,N,N]` is written.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

impl Preprocess {
    /// Prepares the pictures and writes them as one tensor; the answer says its shape.
    pub(super) fn answer(&self) -> Result<Answer> {
        let normalise = Normalise {
            mean: three(self.mean.as_deref(), Normalise::OPENAI.mean, "--mean")?,
            std: three(self.std.as_deref(), Normalise::OPENAI.std, "--std")?,
        };
        if let Some(std) = normalise.std.iter().find(|std| **std <= 0.0) {
            return Err(Error::usage(format!(
                "--std contains {std}; expected three numbers above 0"
            )));
        }

        // Pictures lie one after the other, each as planes of red, green and blue.
        let side = usize::from(self.size);
        let mut data = Vec::new();
        for path in &self.image {
            let name = path.display().to_string();
            let bytes = std::fs::read(path).context(|| format!("cannot read {name}"))?;
            let picture = square(&bytes, &name, side, self.mode)?;
            data.extend(normalise.planes(&picture));
        }

        let shape = vec![self.image.len(), 3, side, side];
        let line = format!("pixel_values {shape:?}");
        let json = json!({ "pixel_values": shape });

        let tensor = Tensor { shape, data };
        let tensors = BTreeMap::from([("pixel_values".to_owned(), tensor)]);
        output::file(&self.output, |path| tensors::write(path, &tensors))?;
        Ok(Answer::new(vec![line], json))
    }
}

/// Three numbers that were typed, or the default.
fn three(given: Option<&[f32]>, default: [f32; 3], flag: &str) -> Result<[f32; 3]> {
    let Some(given) = given else { return Ok(default) };
    <[f32; 3]>::try_from(given)
        .ok()
        .filter(|three| three.iter().all(|v| v.is_finite()))
        .ok_or_else(|| {
            Error::usage(format!("{flag} is {given:?}; expected three finite numbers"))
        })
}
