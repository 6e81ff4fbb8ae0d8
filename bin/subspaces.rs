//! `upcycle-subspaces`: the output subspace of each cluster and FFN matrix.
//!
//! Reads: `pretrain`, `activations`, `cluster`.
//! Writes: `bases.safetensors`, `subspaces.parquet`, `spectra.parquet`.
//!
//! ```console
//! $ upcycle-subspaces --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::stage;

fn main() -> ExitCode {
    stage::cli::main(&stage::subspaces::STAGE)
}
