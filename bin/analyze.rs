//! `upcycle-analyze`: how alike experts are, how sharply tokens are routed.
//!
//! Reads: `dataset`, `train`.
//! Writes: `analysis.parquet`, `similarity_matrix.parquet`.
//!
//! ```console
//! $ upcycle-analyze --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::analyze::STAGE)
}
