//! Captions to token ids: training and reading of a byte-level BPE tokenizer.

mod tokenizer;

pub use tokenizer::{Tokenizer, train};
