//! Metrics of embeddings, one per file, equal to `clip_benchmark`'s (fixture `metrics`).

pub mod classification;
pub mod classifier;
pub mod contrastive;
pub mod precision;
pub mod retrieval;

#[cfg(test)]
mod golden;
