//! `upcycle-init`: the configuration for a checkpoint and pictures of your own.
//!
//! Reads: a dense CLIP and pictures with captions or classes.
//! Writes: `pipeline.yaml`, and the imported checkpoint where its folder lacks something.
//!
//! ```console
//! $ upcycle-init --model clip-vit-base-patch32 --data pictures --out study
//! $ make CONFIG=study/pipeline.yaml ARTIFACTS=study/artifacts
//! ```

use std::process::ExitCode;

use upcycle::cli;

fn main() -> ExitCode {
    cli::init::main()
}
