//! `upcycle-evaluate`: zero-shot, retrieval and probe figures of each run.
//!
//! Reads: `dataset`, `train`.
//! Writes: `metrics.parquet`, `metrics.json`, `retrievals.parquet`.
//!
//! ```console
//! $ upcycle-evaluate --profile smoke
//! $ upcycle-evaluate on --checkpoint dense --set wds_cifar10 --out results
//! ```

use std::process::ExitCode;

use upcycle::cli;

fn main() -> ExitCode {
    cli::evaluate_on::main()
}
