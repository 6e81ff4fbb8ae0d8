//! `upcycle-activations`: the inputs of the FFNs that become MoE layers.
//!
//! Reads: `dataset`, `pretrain`.
//! Writes: `<tower>-<layer>.parquet`.
//!
//! ```console
//! $ upcycle-activations --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::stage;

fn main() -> ExitCode {
    stage::cli::main(&stage::activations::STAGE)
}
