//! Ranks on MPI: trainings with the bytes of one process, and what happens when one fails.
//!
//! This program is the driver of the tests and, started by `mpirun`, each of the ranks. Open
//! MPI's `mpirun` is expected on the path; where it is missing, one line says so.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a driver of tests, and ranks that it listens to"
)]

mod driver;
mod rank;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["rank", scenario, count, folder] => rank::run(scenario, count, folder),
        _ => driver::run(),
    }
}
