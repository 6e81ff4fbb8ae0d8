//! `upcycle-evaluate`: zero-shot, retrieval and probe figures of each run.
//!
//! Reads: `dataset`, `train`.
//! Writes: `metrics.parquet`, `metrics.json`, `retrievals.parquet`.
//!
//! ```console
//! $ upcycle-evaluate --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::stage;

fn main() -> ExitCode {
    stage::cli::main(&stage::evaluate::STAGE)
}
