//! `upcycle-multiplet`: FFNs fine-tuned on samples that look alike, the experts of CLIP-MoE.
//!
//! Reads: `dataset`, `pretrain`.
//! Writes: `ffns.safetensors`, `centroids.safetensors`, `groups.parquet`, and the tables
//! `log-N.parquet` and `validation-N.parquet` of each fine-tuning N.
//!
//! ```console
//! $ upcycle-multiplet --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::multiplet::STAGE)
}
