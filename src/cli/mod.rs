//! Command lines: those of the stages, and those of the tools beside the pipeline.
//!
//! Apart from the clock of the store, this is the only place that reads the environment. An
//! error is one line with all its causes; exit codes are those of [`crate::error::Kind`].

mod cost;
pub mod evaluate_on;
pub mod export;
pub mod fit;
mod forecast;
#[cfg(feature = "cuda")]
pub mod gpu_check;
pub mod import;
pub mod init;
pub mod inspect;
mod output;
mod page;
mod preflight;
mod ranks;
pub mod stage;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, Args, Command};

use crate::artifact::{Options, Store};
use crate::config::{self, Config, Layers, Overrides};
use crate::error::{Error, Kind, Result};
use crate::pipeline::{Panics, source};
use crate::stage::adopted;

/// Where the pipeline is described and where its results are. Programs with subcommands take
/// these arguments before and after the subcommand.
#[derive(Debug, Clone, Args)]
pub struct Location {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = "pipeline.yaml")]
    pub config: PathBuf,
    /// The folder of results.
    #[arg(long, global = true, value_name = "DIR", default_value = "artifacts")]
    pub artifacts: PathBuf,
    /// The folder of downloaded packages.
    #[arg(long, global = true, value_name = "DIR", default_value = ".cache/npm")]
    pub cache: PathBuf,
    /// Lay this entry of `profiles` over the configuration.
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Set one parameter; may be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub set: Vec<String>,
    /// Set several parameters, with blanks between them, as make's SET has them.
    #[arg(
        long,
        global = true,
        value_name = "KEY=VALUE ..",
        default_value = "",
        hide = true
    )]
    pub assignments: String,
}

impl Location {
    /// Loads and checks the configuration.
    pub fn load(&self) -> Result<Config> {
        let profile = self.profile.clone().filter(|name| !name.is_empty());
        let set = [config::assignments(&self.assignments), self.set.clone()].concat();
        let layers = Layers::read(&self.config, &Overrides { profile, set })?;

        // What a checkpoint says need not be repeated in the file.
        let checkpoint = layers.text(&["pretrain", "checkpoint"]);
        let like = layers.text(&["dataset", "like"]);
        let said = adopted::layer(checkpoint, like)?;
        layers.build(said)
    }

    /// The usual places, and a configuration elsewhere.
    fn at(config: &Path) -> Self {
        Self {
            config: config.to_owned(),
            artifacts: "artifacts".into(),
            cache: ".cache/npm".into(),
            profile: None,
            set: Vec::new(),
            assignments: String::new(),
        }
    }

    /// Opens the store.
    pub fn store(&self) -> Store {
        Store::open(&self.artifacts, options())
    }
}

/// Runs a tool beside the pipeline: parses its arguments, does its work, and prints the lines
/// that the work returns.
fn tool<A: Args>(
    command: Command,
    run: impl FnOnce(A) -> Result<Vec<String>>,
) -> ExitCode {
    let panics = Panics::default();
    panics.install();

    let command = command.version(env!("CARGO_PKG_VERSION"));
    let work = || match parse::<A>(command, std::env::args_os())? {
        Some(args) => print(&run(args)?),
        None => Ok(()),
    };
    exit(work, &panics)
}

/// Parses a command line. Returns `None` if help, the version or a page for the installation
/// was asked for and printed.
fn parse<A: Args>(
    command: Command,
    args: impl IntoIterator<Item = OsString>,
) -> Result<Option<A>> {
    parse_beside(command, None, args)
}

/// [`parse`], for a program that has a subcommand with arguments of its own. Who calls this has
/// seen that it was not asked for; pages name it.
fn parse_beside<A: Args>(
    command: Command,
    inner: Option<Command>,
    args: impl IntoIterator<Item = OsString>,
) -> Result<Option<A>> {
    let args: Vec<OsString> = args.into_iter().collect();

    // clap takes the doc comment of the arguments' struct for the description of the program.
    let about = command.get_about().cloned().unwrap_or_default();
    let command = A::augment_args(command).about(about).long_about(None);

    if let Some(page) = page::asked(&page::with(&command, inner), &args)? {
        let mut out = std::io::stdout().lock();
        return out
            .write_all(&page)
            .and_then(|()| out.flush())
            .map(|()| None)
            .map_err(closed);
    }

    let matches = match command.try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => {
            // clap writes "error: " itself, and so do we.
            let text = error.render().to_string();
            return Err(Error::usage(text.trim_start_matches("error: ").trim_end()));
        }
        // Help and version come as errors too; they belong on standard output.
        Err(help) => return help.print().map(|()| None).map_err(closed),
    };

    let args = A::from_arg_matches(&matches);
    args.map(Some).map_err(|e| Error::usage("the arguments are not valid").caused_by(e))
}

/// Prints results to standard output.
fn print(lines: &[String]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}").map_err(closed)?;
    }
    out.flush().map_err(closed)
}

/// The error of a failed write to standard output. A closed pipe has a kind of its own, which
/// ends the program without a message; other failures are errors like any other.
fn closed(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        Error::new(Kind::ClosedPipe, "standard output was closed")
    } else {
        Error::failed("cannot write to standard output").caused_by(error)
    }
}

/// Turns the end of a program into an exit code, printing an error and its causes.
fn exit(run: impl FnOnce() -> Result<()>, panics: &Panics) -> ExitCode {
    // Nothing that a panic may have left half-changed is used again: the program ends here.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));

    match result.unwrap_or_else(|_payload| Err(panics.take())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `upcycle-inspect … | head` ends like that, and nobody did anything wrong.
            if error.kind() != Kind::ClosedPipe {
                report(&error);
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// Prints an error and its causes on one line. An error without causes keeps its line breaks,
/// because the message of a wrong command line also shows how the command is used.
fn report(error: &Error) {
    let text = match std::error::Error::source(error) {
        None => error.message().to_owned(),
        Some(_) => error.chain(),
    };
    line(&format!("error: {text}"));
}

/// Prints a line to standard error.
fn line(text: &str) {
    // If standard error is closed too, there is nobody left to tell.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// What the store needs to know of the environment.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn options() -> Options {
    Options {
        crash_at: std::env::var("UPCYCLE_CRASH_AT").ok(),
        argv: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        rustc: source::rustc().to_owned(),
    }
}
