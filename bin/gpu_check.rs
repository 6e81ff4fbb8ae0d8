//! `upcycle-gpu-check`: whether the CUDA engine is right and how fast it is, on this machine.
//!
//! Needs no Rust, no configuration and no data: the binary can be carried to a machine with
//! a card. Prints a table and writes JSON.
//!
//! ```console
//! $ upcycle-gpu-check --out gpu.json
//! $ upcycle-gpu-check --only correctness
//! ```

use std::process::ExitCode;

use upcycle::cli;

fn main() -> ExitCode {
    cli::gpu_check::main()
}
