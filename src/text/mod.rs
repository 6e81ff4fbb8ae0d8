//! Captions to token ids: CLIP's own tokenizer, and a byte-level BPE trained on captions.

mod clean;
mod clip;
mod html;
mod tokenizer;

pub use clean::Cleaning;
pub use tokenizer::{FILES, Tokenizer, train};
