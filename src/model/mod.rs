//! The model: a CLIP whose FFNs may be mixtures of experts.

pub mod clip;
mod config;
pub mod import;
pub mod init;
pub mod layers;
pub mod low_rank;
pub mod names;
pub mod params;
pub mod reference;
pub mod tower;
pub mod trace;

pub use config::{ClipConfig, Moe, TextConfig, Tower, TowerShape, VisionConfig};
pub use params::Checkpoint;
