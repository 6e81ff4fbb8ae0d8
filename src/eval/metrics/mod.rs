//! Metrics of embeddings, equal to `clip_benchmark`'s (fixture `metrics`), one a file.

pub mod classification;
pub mod classifier;
pub mod precision;
pub mod retrieval;

#[cfg(test)]
mod golden;
