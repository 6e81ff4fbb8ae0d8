//! Evaluation of a trained model: zero-shot tasks, probes, and the intervals of both.
//!
//! It has two steps that never mix. *Embedding* asks an [`Encoder`] for unit vectors, once
//! per picture and once per prompt. *Measuring* sees matrices and labels only: no model, no
//! file, and no split that it was not given. Splits carry their role in their type
//! ([`Train`], [`Validation`], [`Test`]), so a probe cannot be tuned on the pictures that
//! judge it.
//!
//! Tasks and metrics are listed in `docs/artifacts.md`.

mod bootstrap;
mod bundle;
mod embed;
mod evaluate;
mod examples;
mod fine_tuning;
mod measurement;
pub mod metrics;
mod mixed;
mod pixels;
pub mod probe;
pub mod ranking;
pub mod sets;
pub mod similarity;
mod tasks;
mod validate;

pub use bootstrap::{Bootstrap, Draws, Interval};
pub use bundle::{
    Bundle, Concept, ReadPixels, Split, Test, Tokenize, Train, Validation, Vocabulary,
};
pub use embed::{LabelledImages, embed_pictures};
pub use evaluate::evaluate;
pub use examples::{Example, Retrieved, example_retrievals};
pub use fine_tuning::{EmbeddingLoss, Tuner, fine_tune};
pub use measurement::{Choice, Evaluation, Measurement, Outcome};
pub use mixed::{Covers, Mixed, Replicate, mixed};
pub use pixels::{PixelBaselines, PixelSettings, pixel_baselines};
pub use tasks::contrastive::TASK as CONTRASTIVE_TASK;
pub use validate::{CONTRASTIVE, validate};

use crate::error::Result;
use crate::image::Pixels;
use crate::linalg::Matrix;

/// What evaluation asks of a model.
pub trait Encoder {
    /// Width P of the embeddings.
    fn embed_dim(&self) -> usize;

    /// What the contrastive loss multiplies cosines with: e to the model's logit scale.
    fn scale(&self) -> Result<f64>;

    /// Unit embeddings [n, P] of `n` pictures, `pixels` [n, 3, S, S].
    fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix>;

    /// Unit embeddings [n, P] of `n` tokenized texts, `ids` [n, T].
    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix>;
}
