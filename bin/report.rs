//! `upcycle-report`: all runs compared in one page.
//!
//! Reads: everything but weights and activations.
//! Writes: `report.html`, `report.md`, `comparison.parquet`.
//!
//! ```console
//! $ upcycle-report --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::report::STAGE)
}
