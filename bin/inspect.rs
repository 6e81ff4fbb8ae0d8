//! `upcycle-inspect`: what is fresh, why not, what results contain, where they came from.
//!
//! Reads: the configuration and every manifest under `artifacts`.
//! Writes: nothing, but for `gc --yes` and `accept`.
//!
//! ```console
//! $ upcycle-inspect status
//! $ upcycle-inspect show train/sparse-s1 log.parquet
//! ```

use std::process::ExitCode;

use upcycle::cli;

fn main() -> ExitCode {
    cli::inspect::main()
}
