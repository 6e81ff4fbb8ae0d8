//! Stage `evaluate`: zero-shot, retrieval and probe figures of each run.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "evaluate",
    version: 1,
    width: Width::Shared,
    about: "Evaluates the trained models on the held-out splits.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
