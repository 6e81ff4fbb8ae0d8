//! Turns a pretrained dense CLIP into a Mixture-of-Experts.
//!
//! A pipeline of staged binaries over one library; see `docs/architecture.md`. Each module
//! below is a room on a floor, and uses the rooms of lower floors only:
//!
//! ```text
//! 0  error loss num par
//! 1  artifact config ffn io ranks rng text
//! 2  image linalg pipeline tables
//! 3  analysis cluster data eval lowrank model upcycle
//! 4  checkpoint engine report
//! 5  activations train
//! 6  stage
//! 7  cli
//! ```
//!
//! A binary is documentation and one call of `cli`. `tests/tidy.rs` holds all of this.

pub mod activations;
pub mod analysis;
pub mod artifact;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
pub mod ffn;
pub mod image;
pub mod io;
pub mod linalg;
pub mod loss;
pub mod lowrank;
pub mod model;
pub mod num;
pub mod par;
pub mod pipeline;
pub mod ranks;
pub mod report;
pub mod rng;
pub mod stage;
pub mod tables;
pub mod text;
pub mod train;
pub mod upcycle;
