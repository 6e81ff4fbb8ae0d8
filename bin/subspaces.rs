//! `upcycle-subspaces`: the output subspace of each cluster and FFN matrix.
//!
//! Reads: `pretrain`, `activations`, `cluster`.
//! Writes: `bases.safetensors`, `subspaces.parquet`, `spectra.parquet`.
//!
//! ```console
//! $ upcycle-subspaces --profile smoke
//! $ upcycle-subspaces fit --weight w.safetensors --vectors x.parquet --labels clusters/assignments.parquet --out bases
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::fit::main(&stage::subspaces::STAGE)
}
