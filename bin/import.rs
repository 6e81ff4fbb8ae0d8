//! `upcycle-import`: a published dense CLIP becomes a checkpoint of ours.
//!
//! Reads: a folder of Hugging Face's or `open_clip`'s, or a file of weights.
//! Writes: `config.json`, `model.safetensors`, and `preprocess.json` and the tokenizer where
//! the source has them.
//!
//! ```console
//! $ upcycle-import --from ViT-B-32 --out dense
//! ```

use std::process::ExitCode;

use upcycle::cli;

fn main() -> ExitCode {
    cli::import::main()
}
