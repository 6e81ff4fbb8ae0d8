//! `upcycle-pretrain`: the dense CLIP that is upcycled.
//!
//! Reads: `dataset`, or the checkpoint of `pretrain.checkpoint`.
//! Writes: `model.safetensors`, `config.json`, `log.parquet`, `validation.parquet`.
//!
//! ```console
//! $ upcycle-pretrain --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::pretrain::STAGE)
}
