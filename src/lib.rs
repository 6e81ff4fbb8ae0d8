//! Turns a pretrained dense CLIP into a Mixture-of-Experts.
//!
//! A pipeline of staged binaries over one library; see `docs/architecture.md`. Modules
//! depend downwards only:
//!
//! ```text
//! 0  error num par loss; rng above them
//! 1  config artifact io text
//! 2  linalg image tables; pipeline
//! 3  cluster lowrank model data eval analysis upcycle
//! 4  engine checkpoint report
//! 5  activations train
//! 6  stage
//! 7  cli
//! ```

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
pub mod image;
pub mod io;
pub mod linalg;
pub mod loss;
pub mod lowrank;
pub mod model;
pub mod num;
pub mod par;
pub mod pipeline;
pub mod report;
pub mod rng;
pub mod stage;
pub mod tables;
pub mod text;
pub mod train;
pub mod upcycle;
