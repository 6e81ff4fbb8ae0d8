//! The model: a CLIP whose FFNs may be mixtures of experts.

mod config;
pub mod init;
pub mod layers;
pub mod low_rank;
pub mod names;
pub mod params;

pub use config::{ClipConfig, Moe, TextConfig, Tower, TowerShape, VisionConfig};
pub use params::Checkpoint;
