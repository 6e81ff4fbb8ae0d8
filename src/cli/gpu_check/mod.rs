//! `upcycle-gpu-check`: correctness of the CUDA engine on a card, then its speed.
//!
//! Correctness is agreement with the CPU engine: losses and every gradient on a tiny model
//! with all losses, on one layer of the size of a ViT-B/32, and in a whole small pipeline that
//! the stage binaries run. Speed is that of whole
//! training steps on random data, with the share of the card's peak that plain matrix
//! products reach beside it. `benches/peers/gpu.py` prints the same fields for PyTorch.

mod correctness;
mod models;
mod pipeline;
mod speed;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use serde_json::{Value, json};

use super::tool;
use crate::config::Precision;
use crate::engine::cuda::Cuda;
use crate::error::{Context as _, Error, Result};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Agreement with the CPU engine.
    Correctness,
    /// The whole pipeline, by the stage binaries beside this one.
    Pipeline,
    /// The card's speed: copies within its memory, matrix products against its peak.
    Products,
    /// Training steps.
    Steps,
    /// Where the time of a step goes, kernel by kernel.
    Profile,
}

#[derive(Debug, Args)]
struct Arguments {
    /// The card.
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Do only this; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Time only models whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    model: String,
    /// Steps that are timed of each model.
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: usize,
    /// Keep the pipelines' results here [default: a folder that is removed].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Write the numbers as JSON here.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the tool.
pub fn main() -> ExitCode {
    let about = "Checks and times the CUDA engine on this machine";
    tool(Command::new("upcycle-gpu-check").about(about), run)
}

/// Lines to print, numbers to write, and whether all is well.
#[derive(Debug, Default)]
struct Outcome {
    lines: Vec<String>,
    rows: Vec<Value>,
    wrong: usize,
}

impl Outcome {
    /// Keeps a line and its numbers, and shows the line at once on standard error: a check
    /// that is cut off has told what it knew.
    fn row(&mut self, line: String, row: Value) {
        self.line(line);
        self.rows.push(row);
    }

    fn line(&mut self, line: String) {
        // Nobody listens where standard error is gone; the results are kept all the same.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
        self.lines.push(line);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the arguments end here")]
fn run(arguments: Arguments) -> Result<Vec<String>> {
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let card = card(arguments.device)?;
    let mut outcome = Outcome::default();
    outcome.line(card.clone());
    if wanted(Part::Correctness) {
        correctness::check(arguments.device, &mut outcome)?;
    }
    if wanted(Part::Pipeline) {
        let own = tempfile::tempdir().context(|| "making a scratch folder".to_owned())?;
        let folder = arguments.scratch.as_deref().unwrap_or(own.path());
        pipeline::check(arguments.device, folder, &mut outcome)?;
    }
    if wanted(Part::Products) {
        speed::products(arguments.device, &mut outcome)?;
    }
    let steps = speed::Timing {
        device: arguments.device,
        steps: arguments.steps.max(1),
        model: &arguments.model,
    };
    if wanted(Part::Steps) {
        speed::steps(&steps, &mut outcome);
    }
    if wanted(Part::Profile) {
        speed::profile(&steps, &mut outcome)?;
    }
    if let Some(path) = &arguments.out {
        let all = json!({ "card": card, "wrong": outcome.wrong, "rows": outcome.rows });
        let text = serde_json::to_string_pretty(&all)
            .context(|| "writing the numbers".to_owned())?;
        std::fs::write(path, text + "\n")
            .context(|| format!("writing {}", path.display()))?;
    }
    if outcome.wrong > 0 {
        let lines = outcome.lines.join("\n");
        return Err(Error::failed(format!(
            "{} checks failed on this card\n{lines}",
            outcome.wrong
        )));
    }
    Ok(outcome.lines)
}

/// The card's name and memory.
fn card(ordinal: usize) -> Result<String> {
    let engine = Cuda::open(&models::tiny(false), ordinal, Precision::F32)?;
    let (free, total) = engine.device().memory()?;
    let name = engine.device().name()?;
    Ok(format!("{name}, {} of {} MiB free", free >> 20, total >> 20))
}
