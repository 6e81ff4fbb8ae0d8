//! Bytes to arrays and back: Parquet tables and safetensors files.
//!
//! Knows formats, not stages: which file holds what is `docs/artifacts.md`.

pub mod columnar;
pub mod foreign;
pub mod hostile;
pub mod labels;
pub mod table;
pub mod tensors;
pub mod vectors;
