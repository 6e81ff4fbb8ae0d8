//! The command line of every stage binary, and how errors leave the process.
//!
//! The clock of the store apart, this is the only place that reads the environment. An error
//! is one line with all its causes; exit codes are those of [`crate::error::Kind`].

use std::process::ExitCode;

use clap::{ArgAction, Args, Command, FromArgMatches as _};

use super::{Location, exit, forecast, parse, print};
use crate::error::{Error, Result};
use crate::pipeline::drive::{Drive, Mode, Orders};
use crate::pipeline::{Console, Panics, Stage, Volume};
use crate::stage::{ALL, dataset, plan};
use crate::upcycle::{self, Method};

const EXAMPLES: &str = "\
Examples:
  upcycle-STAGE                          make what is not fresh
  upcycle-STAGE --dry-run                say what would be made, and why
  upcycle-STAGE --only sparse-s1         one run; `--only sparse` takes every seed
  upcycle-STAGE --set train.balance=0.05 --set 'seeds=[1]'
  upcycle-STAGE --profile smoke --artifacts /tmp/smoke
FIT
Exit codes: 0 fresh or made, 1 failed or not fresh (--check), 2 wrong usage or
configuration, 4 damaged data, 75 another process is busy (--no-wait).";

/// The arguments of a stage binary.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that was typed or not")]
#[derive(Debug, Clone, Args)]
struct StageArgs {
    #[command(flatten)]
    location: Location,
    /// Make nothing; exit with 1 if something is not fresh.
    #[arg(long, conflicts_with_all = ["dry_run", "force"])]
    check: bool,
    /// Make nothing; say what would be made.
    #[arg(long)]
    dry_run: bool,
    /// Make everything again.
    #[arg(long)]
    force: bool,
    /// Fail with 75 instead of waiting for another process that makes the same.
    #[arg(long)]
    no_wait: bool,
    /// Threads in all [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Runs at a time, at most [default: the threads].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Only this run; may be repeated.
    #[arg(long, value_name = "RUN", action = ArgAction::Append)]
    only: Vec<String>,
    /// Say nothing but errors.
    #[arg(long, short)]
    quiet: bool,
    /// Say also that nothing was to do.
    #[arg(long, short, conflicts_with = "quiet")]
    verbose: bool,
    /// Print the packages to fetch, one `name version file` per line, and exit (dataset only).
    #[arg(long, hide = true)]
    missing_packages: bool,
}

/// Runs a stage binary.
pub fn main(stage: &'static Stage) -> ExitCode {
    let panics = Panics::default();
    panics.install();
    exit(|| run(stage, &panics), &panics)
}

fn run(stage: &'static Stage, panics: &Panics) -> Result<()> {
    let name = format!("upcycle-{}", stage.name);
    let command = StageArgs::augment_args(Command::new(stage.name))
        .bin_name(&name)
        .display_name(&name)
        .about(stage.about)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            methods(stage)
                + &EXAMPLES.replace("upcycle-STAGE", &name).replace("\nFIT", fit(stage)),
        );
    let matches = parse(command, std::env::args_os())?;
    let Some(matches) = matches else { return Ok(()) };
    let args = StageArgs::from_arg_matches(&matches)
        .map_err(|e| Error::usage("wrong arguments").caused_by(e))?;
    let config = args.location.load()?;
    if args.missing_packages {
        let lines = match stage.name {
            "dataset" => dataset::missing_packages(&config.dataset, &args.location.cache),
            _ => Vec::new(),
        };
        return print(&lines);
    }
    let nodes = plan(&config, &args.location.cache)?;
    let store = args.location.store();
    let volume = if args.quiet { Volume::Quiet } else { Volume::Normal };
    let drive = Drive {
        stage,
        stages: ALL,
        nodes: &nodes,
        store: &store,
        console: &Console::new(volume),
        orders: &args.orders(panics, forecast::need(&config, stage.name)),
    };
    let lines = drive.run();
    store.save();
    let mut lines = lines?;
    if args.dry_run && stage.name == "upcycle" && !lines.is_empty() {
        lines.extend(forecast::lines(&config)?);
    }
    print(&lines)
}

/// The example of a stage that also works on files outside of the pipeline.
fn fit(stage: &Stage) -> &'static str {
    match stage.name {
        "cluster" => {
            "\n  upcycle-cluster fit --help             the same on a file of your own\n"
        }
        "evaluate" => {
            "\n  upcycle-evaluate on --help             any checkpoint on evaluation sets\n"
        }
        "subspaces" => {
            "\n  upcycle-subspaces fit --help           the same on files of your own\n"
        }
        _ => "\n",
    }
}

/// The methods that `inits` may name, for the stage that runs them.
fn methods(stage: &Stage) -> String {
    if stage.name != "upcycle" {
        return String::new();
    }
    let line =
        |method: &&dyn Method| format!("  {:<16} {}\n", method.name(), method.describe());
    let lines: String = upcycle::methods().iter().map(line).collect();
    format!("Methods, as an entry of `inits` names them:\n{lines}\n")
}

impl StageArgs {
    fn orders(&self, panics: &Panics, need: u64) -> Orders {
        let mode = match (self.check, self.dry_run) {
            (true, _) => Mode::Check,
            (_, true) => Mode::DryRun,
            _ => Mode::Run,
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Orders {
            mode,
            force: self.force,
            only: self.only.clone(),
            threads: self.threads.map_or_else(cores, usize::from),
            jobs: self.jobs.map_or(0, usize::from),
            need,
            no_wait: self.no_wait,
            verbose: self.verbose,
            panics: panics.clone(),
        }
    }
}
