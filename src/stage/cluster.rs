//! Stage `cluster`: spherical k-means of each layer's activations.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "cluster",
    version: 1,
    width: Width::Shared,
    about: "Clusters the activations of each layer by spherical k-means.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
