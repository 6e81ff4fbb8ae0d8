//! `upcycle-activations`: the inputs of the FFNs that become MoE layers.
//!
//! Reads: `dataset`, `pretrain`.
//! Writes: `<tower>-<layer>.parquet`.
//!
//! ```console
//! $ upcycle-activations --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::activations::STAGE)
}
