//! `upcycle-inspect forward`: the numbers of one forward pass, to compare frameworks with.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::Answer;
use crate::checkpoint::{self, Hints};
use crate::cli::output;
use crate::config::Activation;
use crate::engine::cpu::trace::{self, Inputs};
use crate::error::{Context as _, Result};
use crate::io::{foreign, tensors};

/// The arguments of `forward`.
#[derive(Debug, clap::Args)]
pub(super) struct Forward {
    /// A checkpoint: ours, Hugging Face's or `open_clip`'s, a folder or a file of weights.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Safetensors with `pixel_values` `[B,3,S,S]` and `input_ids` `[B,T]` (any integer type).
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where `image_embeds`, `text_embeds`, `logits_per_image` and `<tower>.layers.<l>.ffn_in`
    /// are written.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// The activation, where the checkpoint does not say.
    #[arg(long, value_enum)]
    activation: Option<Activation>,
    /// Attention heads of the image tower, where the checkpoint does not say.
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Attention heads of the text tower, where the checkpoint does not say.
    #[arg(long, value_name = "N")]
    text_heads: Option<usize>,
}

impl Forward {
    /// Runs the model and writes what it computes; the answer names the tensors.
    pub(super) fn answer(&self) -> Result<Answer> {
        let Self { activation, heads, text_heads, .. } = *self;
        let hints = Hints { activation, heads, text_heads, config: None };
        let model = checkpoint::read(&self.checkpoint, &hints)?;

        // trace runs the product's engine and keeps what passes between its layers.
        let place = || format!("inputs {}", self.inputs.display());
        let inputs = Inputs::new(&model.config, &foreign::read(&self.inputs)?);
        let outputs = trace::trace(&model, &inputs.context(place)?);
        output::file(&self.output, |path| tensors::write(path, &outputs))?;

        let line = |(name, tensor): (&String, &tensors::Tensor)| {
            format!("{name} {:?}", tensor.shape)
        };
        let shapes = outputs.iter().map(|(name, t)| (name.clone(), json!(t.shape)));
        let json = Value::Object(shapes.collect());
        Ok(Answer::new(outputs.iter().map(line).collect(), json))
    }
}
