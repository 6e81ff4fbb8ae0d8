//! Stage `activations`: the inputs of the FFNs that become MoE layers.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "activations",
    version: 1,
    width: Width::Shared,
    about: "Records the inputs of the FFNs that become MoE layers.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
