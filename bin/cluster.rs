//! `upcycle-cluster`: spherical k-means of each layer's activations.
//!
//! Reads: `activations`.
//! Writes: `centroids.safetensors`, `assignments.parquet`, `clusters.parquet`,
//! `iterations.parquet`.
//!
//! ```console
//! $ upcycle-cluster --profile smoke
//! ```

use std::process::ExitCode;

use upcycle::stage;

fn main() -> ExitCode {
    stage::cli::main(&stage::cluster::STAGE)
}
