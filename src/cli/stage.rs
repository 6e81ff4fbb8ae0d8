//! The command line of every stage binary.
//!
//! All stages have the same arguments, so that one `Makefile` rule serves them all.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, Command};

use super::ranks::{self, Together};
use super::{Location, cost, exit, forecast, parse_beside, preflight, print};
use crate::artifact::{Place, Store};
use crate::config::Config;
use crate::error::{Context as _, Result};
use crate::pipeline::drive::{Drive, Mode, Orders};
use crate::pipeline::{Console, Event, Node, Panics, Stage, Survey, Verdict, Volume};
use crate::ranks::Ranks;
use crate::stage::{ALL, dataset, plan, report};
use crate::upcycle::{self, Method};

const EXAMPLES: &str = "\
Examples:
  upcycle-STAGE                          build what is not fresh
  upcycle-STAGE --dry-run                say what would be built, and why
  upcycle-STAGE --only sparse-s1         one run; `--only sparse` takes every seed
  upcycle-STAGE --set train.balance=0.05 --set 'seeds=[1]'
  upcycle-STAGE --profile smoke --artifacts /tmp/smoke
FIT
Exit codes: 0 fresh or built, 1 failed or not fresh (--check), 2 wrong usage or
configuration, 4 damaged data, 75 another process is busy (--no-wait).";

/// The arguments of a stage binary.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that was typed or not")]
#[derive(Debug, Clone, Args)]
struct StageArgs {
    #[command(flatten)]
    location: Location,
    /// Build nothing; exit with 1 if something is not fresh.
    #[arg(long, conflicts_with_all = ["dry_run", "force"])]
    check: bool,
    /// Build nothing; say what would be built, and why.
    #[arg(long)]
    dry_run: bool,
    /// Build everything again.
    #[arg(long)]
    force: bool,
    /// First refuse what later stages could not do with these data, as make asks for.
    #[arg(long)]
    ahead: bool,
    /// Exit with 75 instead of waiting for another process that is building the same result.
    #[arg(long)]
    no_wait: bool,
    /// Number of threads of this process [default: all cores, shared among the ranks here].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Number of runs side by side, at most [default: as many as threads and memory allow].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Number of processes that an MPI launcher has started for this command: `mpirun -np N
    /// .. --ranks N`.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    ranks: u16,
    /// Seconds that a rank waits for another one before it ends the run.
    #[arg(long, value_name = "S", default_value_t = 1800, value_parser = clap::value_parser!(u32).range(1..))]
    patience: u32,
    /// Only this run; may be repeated.
    #[arg(long, value_name = "RUN", action = ArgAction::Append)]
    only: Vec<String>,
    /// Print errors only.
    #[arg(long, short)]
    quiet: bool,
    /// Also print a line for every result that was fresh already.
    #[arg(long, short, conflicts_with = "quiet")]
    verbose: bool,
    /// Print events as lines of JSON on standard output (docs/console.md).
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Milliseconds of silence after which the progress is printed, without a terminal.
    #[arg(long, value_name = "MS", hide = true)]
    pulse: Option<u32>,
    /// Print the packages to fetch, one `name version file` per line, and exit (dataset only).
    #[arg(long, hide = true)]
    missing_packages: bool,
}

/// Runs a stage binary.
pub fn main(stage: &'static Stage) -> ExitCode {
    main_beside(stage, None)
}

/// Runs a stage binary that has a subcommand, which was not asked for.
pub(super) fn main_beside(stage: &'static Stage, inner: Option<Command>) -> ExitCode {
    let panics = Panics::default();
    panics.install();
    exit(|| run(stage, inner, &panics), &panics)
}

fn run(stage: &'static Stage, inner: Option<Command>, panics: &Panics) -> Result<()> {
    let name = format!("upcycle-{}", stage.name);

    // The examples name this binary, and the subcommand of the few stages that have one.
    let examples = EXAMPLES.replace("upcycle-STAGE", &name).replace("\nFIT", fit(stage));
    let help = methods(stage) + &examples;

    let command = Command::new(stage.name)
        .bin_name(&name)
        .display_name(&name)
        .about(stage.about)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(help);
    let args = parse_beside::<StageArgs>(command, inner, std::env::args_os())?;
    let Some(args) = args else { return Ok(()) };
    let patience = Duration::from_secs(args.patience.into());
    ranks::together((args.ranks.into(), patience), panics, |together| {
        let console = args.console(&*together.ranks);
        build(stage, &args, (panics, together), &console).inspect_err(|error| {
            if console.is_for_programs() {
                console.say(&Event::Failed { error: &error.chain() }, "");
            }
        })
    })
}

/// Does what the arguments ask for.
fn build(
    stage: &'static Stage,
    args: &StageArgs,
    (panics, together): (&Panics, &Together),
    console: &Console,
) -> Result<()> {
    let config = args.location.load()?;

    // The Makefile asks before anything is planned: only it may use the network.
    if args.missing_packages {
        let lines = match stage.name {
            "dataset" => dataset::missing_packages(&config.dataset, &args.location.cache),
            _ => Vec::new(),
        };
        return print(&lines);
    }

    let nodes = plan(&config, &args.location.cache)?;
    let store = args.location.store();
    // Whoever builds the data set alone may use it for something else.
    if args.ahead && stage.name == ALL[0].name && !args.check {
        preflight::check(&config, built(&nodes, &store)?.as_deref())?;
    }

    // A dry run is not stopped by packages that make fetches first.
    let missing = dataset::missing_packages(&config.dataset, &args.location.cache);
    let drive = Drive {
        stage,
        stages: ALL,
        nodes: &nodes,
        store: &store,
        console,
        orders: &Orders {
            fetches: !missing.is_empty(),
            ..args.orders(panics, forecast::need(&config, stage.name), together)
        },
    };
    let lines = drive.run();
    // What was learned about files is worth keeping although the stage failed.
    if together.ranks.leads() {
        store.save();
    }
    let mut lines = lines?;

    if args.dry_run && stage.name == "upcycle" && !lines.is_empty() {
        lines.extend(forecast::lines(&config)?);
    }
    if args.dry_run && stage.name == "report" {
        lines.extend(time(&config, &nodes, &store, args.threads(together))?);
    }
    if stage.name == "report" && !args.dry_run && !args.check && !args.quiet {
        lines.extend(answer(&store, console)?);
    }
    if console.is_for_programs() {
        for line in &lines {
            console.line(line);
        }
        return Ok(());
    }
    print(&lines)
}

/// The verdict of the report and where its page is: the last line of `make`. Programs are
/// told by an event.
fn answer(store: &Store, console: &Console) -> Result<Option<String>> {
    let place = Place::new("report", None);
    let Some(key) = store.current(&place) else { return Ok(None) };
    let path = store.dir(&place, &key).join(report::ANSWER);
    let reading = || format!("reading {}", path.display());
    let text = std::fs::read_to_string(&path).context(reading)?;
    let report::Answer { answer } = serde_json::from_str(&text).context(reading)?;

    let page = store.root().join("report/current/report.html").display().to_string();
    if console.is_for_programs() {
        console.say(&Event::Answer { answer: &answer, report: &page }, "");
        return Ok(None);
    }
    Ok(Some(format!("{answer} See {page}")))
}

/// The data set, where it is up to date.
fn built(nodes: &[Node], store: &Store) -> Result<Option<PathBuf>> {
    let Some(first) = nodes.iter().find(|node| node.stage == ALL[0].name) else {
        return Ok(None);
    };
    // A survey hashes what the data set is made from, which takes long the first time.
    let Some(key) = store.current(&first.place) else { return Ok(None) };
    let is_fresh = Survey::new(store, ALL, nodes).verdict(first)? == Verdict::Fresh;
    Ok(is_fresh.then(|| store.dir(&first.place, &key)))
}

/// How long everything takes that is not fresh, in a line.
fn time(
    config: &Config,
    nodes: &[Node],
    store: &Store,
    threads: usize,
) -> Result<Option<String>> {
    let survey = Survey::new(store, ALL, nodes);
    let mut stale = Vec::new();
    for node in nodes {
        match survey.verdict(node)? {
            Verdict::Fresh | Verdict::Reusable(_) => {}
            Verdict::Runs(_)
            | Verdict::Damaged(_)
            | Verdict::Waits(_)
            | Verdict::Blocked(_) => stale.push(node),
        }
    }
    let built = built(nodes, store)?;
    let pictures = built.as_deref().map_or(Ok(0), preflight::evaluated)?;
    cost::line(config, stale.into_iter(), pictures, threads)
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
    let lines: String = upcycle::methods().map(|method| line(&method)).collect();
    format!("Methods, as an entry of `inits` names them:\n{lines}\n")
}

impl StageArgs {
    /// Where messages go. Rank 0 speaks for all.
    fn console(&self, ranks: &dyn Ranks) -> Console {
        let console = Console::new(match (self.quiet || !ranks.leads(), self.json) {
            (true, _) => Volume::Quiet,
            (_, true) => Volume::Events,
            _ => Volume::Normal,
        });
        match self.pulse {
            Some(pulse) => console.with_pulse(Duration::from_millis(pulse.into())),
            None => console,
        }
    }

    /// Threads in all.
    fn threads(&self, together: &Together) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let own = || (cores() / together.neighbors).max(1);
        self.threads.map_or_else(own, usize::from)
    }

    /// What the arguments ask for; `need` is the memory in bytes that one run takes.
    fn orders(&self, panics: &Panics, need: u64, together: &Together) -> Orders {
        // clap refuses both flags together, so their order here decides nothing.
        let mode = match (self.check, self.dry_run) {
            (true, _) => Mode::Check,
            (_, true) => Mode::DryRun,
            _ => Mode::Run,
        };

        // No number of jobs stands for as many as threads and memory allow.
        Orders {
            mode,
            force: self.force,
            only: self.only.clone(),
            threads: self.threads(together),
            jobs: self.jobs.map_or(0, usize::from),
            need,
            no_wait: self.no_wait,
            verbose: self.verbose,
            fetches: false,
            panics: panics.clone(),
            ranks: Arc::clone(&together.ranks),
        }
    }
}
