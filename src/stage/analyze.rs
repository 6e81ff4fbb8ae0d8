//! Stage `analyze`: how alike experts are, how sharply tokens are routed.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "analyze",
    version: 1,
    width: Width::Shared,
    about: "Analyses experts and routing.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
