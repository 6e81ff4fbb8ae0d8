//! Evaluation of a trained model: zero-shot tasks, probes, and how sure the numbers are.
//!
//! Two steps that never mix. *Embedding* asks an [`Encoder`] for unit vectors, once a
//! picture and once a prompt. *Measuring* sees matrices and labels only: no model, no file,
//! no split it was not handed. Splits carry their role in their type ([`Train`],
//! [`Validation`], [`Test`]), so a probe cannot be tuned on the pictures that judge it.
//!
//! Measurements are those of METHOD §6, named as in `docs/artifacts.md`.

mod bootstrap;
mod bundle;
mod embed;
mod evaluate;
mod examples;
mod measurement;
pub mod metrics;
pub mod probe;
pub mod ranking;
pub mod sets;
pub mod similarity;
mod tasks;
mod validate;

pub use bootstrap::{Bootstrap, Draws, Interval};
pub use bundle::{
    Bundle, Concept, Pixels, Split, Test, Tokenise, Train, Validation, Vocabulary,
};
pub use embed::{LabelledImages, embed_pictures};
pub use evaluate::evaluate;
pub use examples::{Example, Retrieved, example_retrievals};
pub use measurement::{Choice, Evaluation, Measurement};
pub use validate::validate;

use crate::error::Result;
use crate::linalg::Matrix;

/// What evaluation asks of a model.
pub trait Encoder {
    /// Width P of the embeddings.
    fn embed_dim(&self) -> usize;

    /// Unit embeddings [n, P] of `n` normalised pictures, `pixels` [n, 3, S, S].
    fn images(&mut self, pixels: &[f32], n: usize) -> Result<Matrix>;

    /// Unit embeddings [n, P] of `n` tokenised texts, `ids` [n, T].
    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix>;
}
