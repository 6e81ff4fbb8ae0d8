//! The typed configuration: every parameter of the pipeline, parsed once and checked once.
//!
//! The `pipeline.yaml` shipped with the repository is compiled in and serves three ends: it
//! documents every key, it supplies every default, and its tree is the list of known keys.
//! A user's file, a profile and `--set` are laid over it in that order; what comes out is a
//! [`Config`], and only checked ones run.

mod check;
mod compute;
mod load;
mod sweep;
mod types;

pub use check::Check;
pub use compute::{Compute, Device, Precision};
pub use load::{Layers, Overrides, assignments, load, load_default, shipped};
pub use sweep::SweepPoint;
pub use types::*;
