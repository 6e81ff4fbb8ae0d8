//! Stage `pretrain`: the dense CLIP that is upcycled.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "pretrain",
    version: 1,
    width: Width::Shared,
    about: "Trains the dense CLIP, or takes over a checkpoint.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
