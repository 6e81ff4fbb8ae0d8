//! `upcycle-train`: training of the upcycled models.
//!
//! Reads: `dataset`, `upcycle`.
//! Writes: `model.safetensors`, `init.safetensors`, `config.json`, `log.parquet`,
//! `routing.parquet`, `validation.parquet`.
//!
//! ```console
//! $ upcycle-train --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::stage;

fn main() -> ExitCode {
    stage::cli::main(&stage::train::STAGE)
}
