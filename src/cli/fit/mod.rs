//! `fit`: the algorithms of a stage on files of your own, without a pipeline.
//!
//! `upcycle-cluster fit` and `upcycle-subspaces fit` read Parquet or safetensors, write a
//! folder that appears whole or not at all, and print one line of JSON about the work.

mod cluster;
mod subspaces;

use std::process::ExitCode;

use clap::{Args, Command};

use crate::cli;
use crate::cli::output::{Existing, Folder};
use crate::error::{Context as _, Result};
use crate::pipeline::{Console, Panics, Stage, Volume};

/// Runs a stage binary that also has `fit`.
pub fn main(stage: &'static Stage) -> ExitCode {
    if std::env::args_os().nth(1).is_none_or(|first| first != "fit") {
        let inner = match stage.name {
            "cluster" => cluster::FitArgs::augment_args(command(&cluster::FIT)),
            _ => subspaces::FitArgs::augment_args(command(&subspaces::FIT)),
        };
        return cli::stage::main_beside(stage, Some(inner));
    }

    // The name of the program goes; `fit` takes its place before the arguments.
    let panics = Panics::default();
    panics.install();
    let run = || match stage.name {
        "cluster" => cluster::run(std::env::args_os().skip(1).collect()),
        _ => subspaces::run(std::env::args_os().skip(1).collect()),
    };
    cli::exit(run, &panics)
}

/// Arguments of every `fit`.
#[derive(Debug, Clone, Args)]
struct Common {
    /// The folder of results.
    #[arg(long, value_name = "DIR")]
    out: std::path::PathBuf,
    /// Replace the folder if it exists.
    #[arg(long)]
    force: bool,
    /// Number of threads [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print only errors and the result.
    #[arg(long, short)]
    quiet: bool,
}

impl Common {
    /// Begins the folder of results.
    fn folder(&self) -> Result<Folder> {
        let existing =
            if self.force { Existing::Replace } else { Existing::RefuseUnlessForced };
        Folder::begin(&self.out, existing)
    }

    /// Where progress is shown.
    fn console(&self) -> Console {
        Console::new(if self.quiet { Volume::Quiet } else { Volume::Normal })
    }

    /// Runs the work in a pool of the threads asked for, and tells it their number.
    fn pool<T: Send>(&self, work: impl FnOnce(usize) -> Result<T> + Send) -> Result<T> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.map_or_else(cores, usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .context(|| format!("cannot start {threads} threads"))?;
        pool.install(|| work(threads))
    }
}

/// What `--help` of a `fit` says.
struct Fit {
    /// `upcycle-<stage> fit`.
    name: &'static str,
    about: &'static str,
    examples: &'static str,
}

/// The command of a `fit` without its arguments.
fn command(fit: &Fit) -> Command {
    Command::new("fit")
        .bin_name(fit.name)
        .display_name(fit.name)
        .about(fit.about)
        .after_help(fit.examples)
}

/// The median; 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len(), values.get(middle)) {
        (n, Some(upper)) if n % 2 == 0 => f64::midpoint(values[middle - 1], *upper),
        (_, Some(value)) => *value,
        _ => 0.0,
    }
}

/// A value rounded to 6 significant digits; more of them are noise in a measurement of time.
fn brief(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
