//! Stage `upcycle`: the dense model becomes a mixture of experts.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "upcycle",
    version: 1,
    width: Width::Shared,
    about: "Turns the dense model into a mixture of experts, by one method a run.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
