//! `upcycle-train`: training of the upcycled models.
//!
//! Reads: `dataset`, `upcycle`.
//! Writes: `model.safetensors`, `init.safetensors`, `config.json`, `log.parquet`,
//! `routing.parquet`, `similarity.parquet`, `validation.parquet`.
//!
//! ```console
//! $ upcycle-train --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::train::STAGE)
}
