//! `upcycle-dataset`: pictures and captions from their source to Parquet.
//!
//! Reads: pinned npm packages in `.cache/npm`, a folder, or nothing (`source`).
//! Writes: `samples-<split>.parquet`, `concepts.parquet`, `labels.parquet`,
//! `tokenizer.json`, `dataset.json`.
//!
//! ```console
//! $ upcycle-dataset --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::stage::main(&stage::dataset::STAGE)
}
