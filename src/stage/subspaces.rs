//! Stage `subspaces`: the output subspace of each cluster and FFN matrix.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "subspaces",
    version: 1,
    width: Width::Shared,
    about: "Finds the output subspace of each cluster and FFN matrix.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
