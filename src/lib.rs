//! Turns a pretrained dense CLIP into a Mixture-of-Experts.
//!
//! A pipeline of staged binaries over one library; see `docs/architecture.md`. Modules
//! depend downwards only:
//!
//! ```text
//! 0  error num rng par
//! 1  config artifact
//! 2  io linalg
//! 3  ops text image cluster lowrank
//! 4  data model loss optim
//! 5  activations upcycle train eval analysis report
//! 6  stage
//! ```

pub mod activations;
pub mod analysis;
pub mod artifact;
pub mod cluster;
pub mod config;
pub mod data;
pub mod error;
pub mod eval;
pub mod image;
pub mod io;
pub mod linalg;
pub mod loss;
pub mod lowrank;
pub mod model;
pub mod num;
pub mod ops;
pub mod optim;
pub mod par;
pub mod report;
pub mod rng;
pub mod stage;
pub mod text;
pub mod train;
pub mod upcycle;
