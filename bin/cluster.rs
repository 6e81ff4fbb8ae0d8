//! `upcycle-cluster`: spherical k-means of each layer's activations.
//!
//! Reads: `activations`.
//! Writes: `centroids.safetensors`, `assignments.parquet`, `clusters.parquet`,
//! `iterations.parquet`.
//!
//! ```console
//! $ upcycle-cluster --profile smoke
//! $ upcycle-cluster fit --vectors x.parquet --clusters 8 --out clusters
//! ```

use std::process::ExitCode;

use upcycle::{cli, stage};

fn main() -> ExitCode {
    cli::fit::main(&stage::cluster::STAGE)
}
