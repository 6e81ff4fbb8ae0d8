//! `upcycle-pretrain`: the dense CLIP that is upcycled.
//!
//! Reads: `dataset`, or the checkpoint of `pretrain.checkpoint`.
//! Writes: `model.safetensors`, `config.json`, `log.parquet`, `validation.parquet`.
//!
//! ```console
//! $ upcycle-pretrain --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::stage;

fn main() -> ExitCode {
    stage::cli::main(&stage::pretrain::STAGE)
}
