//! Stage `report`: all runs compared in one page.

use super::{Job, Stage, Width};
use crate::error::{Error, Result};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "report",
    version: 1,
    width: Width::Whole,
    about: "Compares all runs in one report.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    Err(Error::failed(format!("{} is not wired yet", job.node.place)))
}
