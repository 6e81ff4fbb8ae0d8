//! `upcycle-export`: a checkpoint of ours in a layout that others load.
//!
//! Reads: a checkpoint, dense or MoE.
//! Writes: a folder as `open_clip`, Hugging Face or `docs/checkpoints.md` lays it out.
//!
//! ```console
//! $ upcycle-export --checkpoint artifacts/train/sparse-s1/current --layout upcycle --out moe
//! ```

use std::process::ExitCode;

use upcycle::cli;

fn main() -> ExitCode {
    cli::export::main()
}
