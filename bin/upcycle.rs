//! `upcycle-upcycle`: the dense model becomes a mixture of experts.
//!
//! Reads: `pretrain`, and `cluster`, `subspaces` and `multiplet` where the method needs them.
//! Writes: `model.safetensors`, `config.json`.
//!
//! ```console
//! $ upcycle-upcycle --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::upcycle::STAGE)
}
