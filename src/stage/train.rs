//! Stage `train`: training of the upcycled models.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "train",
    version: 1,
    width: Width::Shared,
    about: "Trains the upcycled models.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
