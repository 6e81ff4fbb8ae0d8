//! The model: a CLIP whose FFNs may be mixtures of experts.

mod config;
pub mod import;
pub mod names;
pub mod reference;

pub use config::{ClipConfig, Moe, TextConfig, Tower, TowerShape, VisionConfig};
