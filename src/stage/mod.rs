//! The stages: each connects a procedure with the artifacts that it reads and writes. No
//! other room knows the names of their files.
//!
//! The file of a stage holds its slice of the configuration, says which files it reads and
//! writes, and calls one procedure. [`plan()`] is the graph: which stage reads which. Finding out
//! whether a stage is stale, and running it, is left to [`crate::pipeline`], which does not
//! know any stage by name.

pub mod plan;

pub mod activations;
pub mod adopted;
pub mod analyze;
pub mod cluster;
pub mod dataset;
pub mod evaluate;
pub mod multiplet;
pub mod pretrain;
pub mod report;
pub mod subspaces;
pub mod train;
pub mod upcycle;

pub(crate) mod files;
pub(crate) mod measure;
mod shared;
mod training;

use crate::pipeline::Stage;

pub use plan::plan;

/// All stages, in the order of the pipeline.
pub const ALL: &[Stage] = &[
    dataset::STAGE,
    pretrain::STAGE,
    activations::STAGE,
    cluster::STAGE,
    subspaces::STAGE,
    multiplet::STAGE,
    upcycle::STAGE,
    train::STAGE,
    evaluate::STAGE,
    analyze::STAGE,
    report::STAGE,
];

/// The names of all stages, in the order of the pipeline.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|stage| stage.name)
}
