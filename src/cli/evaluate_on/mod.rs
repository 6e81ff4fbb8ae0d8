//! `upcycle-evaluate on`: any checkpoint on evaluation sets as `CLIP_benchmark` stores them.
//!
//! This tool stands beside the pipeline: it reads folders, writes a folder, and knows no
//! artifacts. Sets are measured one after the other, and a set that fails does not take the
//! results of the others with it.

mod names;
mod outcome;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgAction, Args as _, Command};
use serde_json::json;

use self::names::Found;
use self::outcome::{Details, Outcome, ResultFiles};
use super::import::{check_vocabulary, preprocessing};
use crate::artifact::Digest;
use crate::checkpoint::{self, Hints, Preprocessing};
use crate::cli;
use crate::config::{Compute, Device, Precision};
use crate::data::pairs::{EvaluationSet, Task, Tolerance};
use crate::engine::{self, Backend};
use crate::error::{Context as _, Error, Result};
use crate::eval::Bootstrap;
use crate::eval::sets::{Probes, Settings};
use crate::model::Checkpoint;
use crate::pipeline::{Console, Panics, Volume, source};
use crate::ranks::Alone;
use crate::stage::evaluate;
use crate::stage::measure::{Model, Probing, Report, measure};
use crate::text::Tokenizer;

const EXAMPLES: &str = "\
Examples:
  upcycle-evaluate on --checkpoint dense --set imagenet-robustness --sets-root sets --out results
  upcycle-evaluate on --checkpoint artifacts/train/sparse-s1/current \\
      --tokenizer artifacts/dataset/current \\
      --preprocess artifacts/dataset/current/dataset.json \\
      --set sets/wds_flickr30k --set vtab-natural --sets-root sets --out results --skip-existing
  upcycle-evaluate on --checkpoint dense moe --set vtab-natural --sets-root sets --shots 5,10 \\
      --out results

Collections: imagenet-robustness, vtab-natural, retrieval. Members that are missing are named.
A set is a folder: tar shards as CLIP_benchmark stores them (SPLIT/0.tar, nshards.txt,
classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt), one folder per class,
or for retrieval Karpathy's dataset_*.json or captions.csv (docs/dataset.md). NAME is looked
for below --sets-root as wds_NAME and NAME, slashes as dashes.

image_retrieval_recall@k asks with a text, text_retrieval_recall@k with a picture.
Results: OUT/<set>.json with CLIP_benchmark's fields, and OUT/<set>.parquet with intervals.";

/// The arguments of `upcycle-evaluate on`.
#[derive(Debug, Clone, clap::Args)]
struct OnArgs {
    /// A checkpoint, dense or MoE: ours, Hugging Face's or `open_clip`'s. With several, the
    /// results of each are in a folder of its name, and a table compares them.
    #[arg(long, value_name = "DIR", required = true, action = ArgAction::Append, num_args = 1..)]
    checkpoint: Vec<PathBuf>,
    /// A set's name or folder, or a collection; may be repeated.
    #[arg(long, value_name = "NAME|DIR", required = true, action = ArgAction::Append)]
    set: Vec<String>,
    /// The folder that holds the sets.
    #[arg(long, value_name = "DIR")]
    sets_root: Option<PathBuf>,
    /// The folder of results.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep a result that was made with the same model and settings. Pictures are not compared.
    #[arg(long)]
    skip_existing: bool,
    /// The split of every set.
    #[arg(long, value_name = "NAME", default_value = "test")]
    split: String,
    /// The model's tokenizer [default: the one in its folder].
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// How pictures are prepared: `openai`, or a `preprocess.json`, a data set's `dataset.json`,
    /// or a file of `open_clip`'s or Hugging Face's [default: what the checkpoint says].
    #[arg(long, value_name = "FILE")]
    preprocess: Option<PathBuf>,
    #[command(flatten)]
    hints: Hints,
    /// What results call the model [default: its folder's name].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What results call the weights [default: the checkpoint's path].
    #[arg(long, value_name = "NAME")]
    pretrained: Option<String>,
    /// Prompts instead of the sets' own, one per line with `{c}` for the class.
    #[arg(long, value_name = "FILE")]
    templates: Option<PathBuf>,
    /// Class names instead of the set's own, one per line.
    #[arg(long, value_name = "FILE")]
    classnames: Option<PathBuf>,
    /// The k of the recalls.
    #[arg(long, value_name = "K,K", value_delimiter = ',', default_values_t = [1, 5, 10])]
    recall_at: Vec<u16>,
    /// Few-shot probes with these numbers of training pictures of each class, on sets with
    /// classes [default: none].
    #[arg(long, value_name = "K,K", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    shots: Vec<u16>,
    /// The split that probes are fitted on; five pictures of each class are set aside in it to
    /// choose their ℓ2 weight on.
    #[arg(long, value_name = "NAME", default_value = "train")]
    train_split: String,
    /// Training sets drawn for each number of shots: the value is their mean, and the interval
    /// covers their luck.
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u16).range(1..))]
    probe_draws: u16,
    /// Most classes of a probe, those with the most training pictures; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    probe_classes: u16,
    /// The ℓ2 weights to choose from.
    #[arg(long, value_name = "X,X", value_delimiter = ',', default_values_t = [0.01, 0.1, 1.0])]
    probe_l2: Vec<f64>,
    /// Fraction of unreadable pictures that is named and skipped instead of refused.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    corrupt_share: f64,
    /// Number of resamples behind the 95 % intervals.
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..))]
    bootstrap: u32,
    /// Seed of the resamples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of pictures or texts that go through the model at a time.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// What runs the model: auto, cpu or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto",
          value_parser = |text: &str| Device::try_from(text.to_owned()))]
    device: Device,
    /// The numbers it is multiplied in; bf16 is for cards only.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    /// Number of threads [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print errors only.
    #[arg(long, short)]
    quiet: bool,
}

/// Runs `upcycle-evaluate`: the stage, or `on` evaluation sets.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_none_or(|first| first != "on") {
        let inner = OnArgs::augment_args(command());
        return cli::stage::main_beside(&evaluate::STAGE, Some(inner));
    }

    let panics = Panics::default();
    panics.install();

    let run = || {
        // The name of the program goes; `on` takes its place before the arguments.
        let args = std::env::args_os().skip(1);
        let Some(args) = cli::parse::<OnArgs>(command(), args)? else { return Ok(()) };

        // All parallel loops below run on this pool; without a number it has every core.
        let mut pool = rayon::ThreadPoolBuilder::new();
        if let Some(threads) = args.threads {
            pool = pool.num_threads(usize::from(threads));
        }
        let pool = pool.build().context(|| "cannot start the threads".to_owned())?;
        pool.install(|| on(&args))
    };
    cli::exit(run, &panics)
}

/// The command without its arguments.
fn command() -> Command {
    let name = "upcycle-evaluate on";
    Command::new("on")
        .bin_name(name)
        .display_name(name)
        .about("Measures a checkpoint on evaluation sets, as CLIP_benchmark does.")
        .after_help(EXAMPLES)
}

/// Measures all sets. Ends with an error if one of them failed, after the others are done.
fn on(args: &OnArgs) -> Result<()> {
    let console = Console::new(if args.quiet { Volume::Quiet } else { Volume::Normal });
    if !(0.0..=1.0).contains(&args.corrupt_share) {
        let found = args.corrupt_share;
        return Err(Error::usage(format!(
            "--corrupt-share is {found}, expected a fraction from 0 to 1"
        )));
    }

    let resolved = names::resolve(&args.set, args.sets_root.as_deref())?;
    for name in &resolved.missing {
        console.line(&format!("{name}: missing below the folder of sets"));
    }

    let named = named(args)?;
    let (mut columns, mut failed) = (Vec::new(), Vec::new());
    for (name, checkpoint) in &named {
        let out = if named.len() > 1 { args.out.join(name) } else { args.out.clone() };
        let mut work = Work::open(args, &console, (checkpoint, out))?;
        let mut outcomes = BTreeMap::new();
        for found in &resolved.sets {
            match work.one(found) {
                Ok(outcome) => {
                    outcomes.insert(found.name.clone(), outcome);
                }
                Err(error) => failed.push((found.name.clone(), error)),
            }
        }
        cli::print(&means(&args.set, &outcomes))?;
        columns.push((name.clone(), outcomes));
    }
    if columns.len() > 1 {
        cli::print(&table::lines(&columns))?;
    }

    failures(failed, resolved.sets.len() * named.len())
}

/// One error for all sets that failed: it names every one, and gives the cause and the exit
/// code of the first.
fn failures(failed: Vec<(String, Error)>, all: usize) -> Result<()> {
    let count = failed.len();
    let mut failed = failed.into_iter();
    let Some((name, error)) = failed.next() else { return Ok(()) };

    let mut message = format!("{count} of {all} sets failed, the first is {name}");
    let others: Vec<String> = failed.map(|(name, _)| name).collect();
    if !others.is_empty() {
        message = format!("{message}; also {}", others.join(", "));
    }
    Err(Error::new(error.kind(), message).caused_by(error))
}

/// The checkpoints with what results call them.
fn named(args: &OnArgs) -> Result<Vec<(String, &Path)>> {
    if args.checkpoint.len() > 1 && (args.model.is_some() || args.pretrained.is_some()) {
        return Err(Error::usage(
            "--model and --pretrained name one checkpoint: leave them out with several",
        ));
    }
    let mut named: Vec<(String, &Path)> = Vec::new();
    for checkpoint in &args.checkpoint {
        let name = called(checkpoint);
        if let Some((_, other)) = named.iter().find(|(known, _)| *known == name) {
            let (a, b) = (other.display(), checkpoint.display());
            return Err(Error::usage(format!(
                "--checkpoint: {a} and {b} are both called {name}, and their results would \
                 overwrite each other: measure them one at a time, each with another --out"
            )));
        }
        named.push((name, checkpoint));
    }
    Ok(named)
}

/// Everything that is the same for all sets.
struct Work<'a> {
    args: &'a OnArgs,
    checkpoint: &'a Path,
    /// Where its results go.
    out: PathBuf,
    console: &'a Console,
    model: Model,
    settings: Settings,
    /// The few-shot probes, if there are any.
    probes: Option<Probes>,
    key: String,
}

impl<'a> Work<'a> {
    /// Opens a model with its tokenizer and its preparation of pictures.
    fn open(
        args: &'a OnArgs,
        console: &'a Console,
        (path, out): (&'a Path, PathBuf),
    ) -> Result<Self> {
        let probes = probes(args)?;
        let checkpoint = checkpoint::read(path, &args.hints)?;
        let place = path.display();
        let tokenizer = match &args.tokenizer {
            Some(file) => Tokenizer::open(file).context(|| "--tokenizer".to_owned())?,
            None => Tokenizer::open(beside(path)).map_err(|e| {
                Error::usage(format!(
                    "{place} has no tokenizer that can be read: give --tokenizer"
                ))
                .caused_by(e)
            })?,
        };
        // The same vocabulary reads captions differently after another cleaning.
        let tokenizer = checkpoint::cleaned(tokenizer, path, &args.hints)?;

        check_vocabulary(&checkpoint.config, &tokenizer)?;

        // A wrong preparation lowers accuracy without any error, so none is assumed.
        let pictures = match &args.preprocess {
            Some(file) => Some(preprocessing(file)?),
            None => Preprocessing::of_checkpoint(path)?,
        };
        let Some(pictures) = pictures else {
            return Err(Error::usage(format!(
                "{place} does not say how pictures are prepared: give --preprocess"
            )));
        };
        let framing = pictures.framing(checkpoint.config.vision.image_size)?;

        let resamples = crate::num::widen(args.bootstrap);
        let settings = Settings {
            batch: usize::from(args.batch),
            bootstrap: Bootstrap::new(args.seed, resamples)?,
            recall_at: args.recall_at.iter().copied().map(usize::from).collect(),
        };

        // The key covers the weights, so it is computed before the engine takes them.
        let normalise = pictures.normalise();
        let compute = Compute { device: args.device, precision: args.precision };
        let backend = Backend::choose_for(compute, &checkpoint.config)?;
        let key = key(args, (&checkpoint, backend), (&tokenizer, &pictures))?;
        let engine = engine::open_model(checkpoint, backend)?;
        let ranks = Arc::new(Alone);
        let model = Model { engine, ranks, tokenizer, framing, normalise };
        Ok(Self { args, checkpoint: path, out, console, model, settings, probes, key })
    }

    /// Measures a set, unless `--skip-existing` finds that it was measured before.
    fn one(&mut self, found: &Found) -> Result<Outcome> {
        let args = self.args;
        let files = ResultFiles::new(&self.out, &found.slug());
        if args.skip_existing
            && let Some(outcome) = files.existing()
        {
            if outcome.upcycle.key == self.key {
                self.say(&format!("{}: there already", found.name))?;
                return Ok(outcome);
            }
            let why = "its result is of another model or other settings";
            self.console.line(&format!("{}: again, {why}", found.name));
        }

        // Names and prompts of the set's own are replaced before anything is embedded.
        let split = &args.split;
        let about =
            || format!("evaluating on {} with --split {split}", found.folder.display());
        let mut set = EvaluationSet::open(&found.folder, &args.split).context(about)?;
        set.rename(args.classnames.as_deref(), None)
            .context(|| "--classnames".to_owned())?;
        set.rename(None, args.templates.as_deref())
            .context(|| "--templates".to_owned())?;

        let (name, share) = (&found.name, args.corrupt_share);
        let tolerance = Tolerance::new(share, "--corrupt-share");
        let train = self.train(found, &set)?;
        let probing = train.as_ref().zip(self.probes.as_ref());
        let probing = probing.map(|(train, probes)| Probing { train, probes });
        let set_and_name = (&set, name.as_str());
        let report =
            measure(&mut self.model, set_and_name, probing, &self.settings, tolerance)
                .context(about)?;

        let outcome = self.outcome(name, &set, &report);
        files.write(&outcome, &report.measurements)?;

        // Nothing is left out without a line that says so.
        for (kind, count) in set.left_out() {
            self.console.line(&format!("{name}: left out, not read: {count} {kind}"));
        }
        for bad in &report.skipped {
            self.console.line(&format!("{name}: skipped {}: {}", bad.key, bad.reason));
        }
        self.say(&line(name, &outcome))?;
        Ok(outcome)
    }

    /// The training pictures of a set that has probes.
    fn train(&self, found: &Found, set: &EvaluationSet) -> Result<Option<EvaluationSet>> {
        if self.probes.is_none() {
            return Ok(None);
        }
        if matches!(set.task(), Task::Retrieval) {
            let name = &found.name;
            self.console.line(&format!("{name}: no probe, because it has no classes"));
            return Ok(None);
        }
        let (folder, split) = (&found.folder, &self.args.train_split);
        let place = folder.display();
        let mut train = EvaluationSet::open(folder, split)
            .context(|| format!("probes on {place} with --train-split {split}"))?;
        train
            .rename(self.args.classnames.as_deref(), None)
            .context(|| "--classnames".to_owned())?;
        Ok(Some(train))
    }

    /// The content of the result's JSON.
    fn outcome(&self, name: &str, set: &EvaluationSet, report: &Report) -> Outcome {
        let args = self.args;
        let mut metrics: BTreeMap<String, Option<f64>> = report
            .measurements
            .iter()
            .map(|m| (m.metric.clone(), Some(m.value)))
            .collect();
        // `CLIP_benchmark` always writes acc5, and writes null below five classes.
        if report.task == crate::eval::sets::CLASSIFICATION {
            metrics.entry("acc5".to_owned()).or_insert(None);
        }

        let path = self.checkpoint.display().to_string();
        let dataset =
            if set.is_sharded() { format!("wds/{name}") } else { name.to_owned() };

        Outcome {
            dataset,
            model: args.model.clone().unwrap_or_else(|| called(self.checkpoint)),
            pretrained: args.pretrained.clone().unwrap_or(path),
            task: report.task.to_owned(),
            metrics,
            language: "en".to_owned(),
            upcycle: Details {
                key: self.key.clone(),
                split: args.split.clone(),
                pictures: report.pictures,
                skipped: report.skipped.iter().map(|bad| bad.key.clone()).collect(),
            },
        }
    }

    /// Prints a result at once: the next set may take an hour.
    fn say(&self, line: &str) -> Result<()> {
        if self.args.quiet { Ok(()) } else { cli::print(&[line.to_owned()]) }
    }
}

/// The few-shot probes that were asked for.
fn probes(args: &OnArgs) -> Result<Option<Probes>> {
    if args.shots.is_empty() {
        return Ok(None);
    }
    if args.train_split == args.split {
        return Err(Error::usage(format!(
            "--train-split and --split are both {}: probes would be tested on the pictures \
             they were fitted on",
            args.split
        )));
    }
    if let Some(bad) = args.probe_l2.iter().find(|l2| !(l2.is_finite() && **l2 > 0.0)) {
        return Err(Error::usage(format!(
            "--probe-l2 holds {bad}, expected numbers above 0"
        )));
    }
    Ok(Some(Probes {
        shots: args.shots.iter().copied().map(usize::from).collect(),
        draws: usize::from(args.probe_draws),
        classes: usize::from(args.probe_classes),
        l2: args.probe_l2.clone(),
        seed: args.seed,
    }))
}

/// The folder of a checkpoint, where its own tokenizer would be.
fn beside(checkpoint: &Path) -> &Path {
    if checkpoint.is_dir() {
        return checkpoint;
    }
    checkpoint.parent().unwrap_or(checkpoint)
}

/// The name of a checkpoint: that of its folder, or that of the run for a result of the
/// pipeline, whose folder is always `current`.
fn called(checkpoint: &Path) -> String {
    let mut names = checkpoint.components().rev().map(std::path::Component::as_os_str);
    let name = names.find(|name| *name != "current" && *name != ".");
    name.unwrap_or(checkpoint.as_os_str()).to_string_lossy().into_owned()
}

/// Hash of everything but the pictures that a result follows from, the code included: a
/// corrected preprocessing must not find the results of the wrong one.
fn key(
    args: &OnArgs,
    (model, backend): (&Checkpoint, Backend),
    (tokenizer, pictures): (&Tokenizer, &Preprocessing),
) -> Result<String> {
    let text = |path: &Option<PathBuf>| match path {
        None => Ok(String::new()),
        Some(path) => std::fs::read_to_string(path)
            .context(|| format!("reading {}", path.display())),
    };

    // The bytes of the weights, and not their path: a folder may get other weights.
    let mut bytes = Vec::with_capacity(4 * model.values.len());
    bytes.extend(model.values.iter().flat_map(|value| value.to_le_bytes()));

    let said = json!({
        "config": model.config.to_json()?,
        "backend": backend.name(),
        "weights": Digest::of_bytes(&bytes).as_str(),
        "tokenizer": tokenizer.json()?,
        "pictures": pictures.json()?,
        "source": source::of_stage(evaluate::STAGE.name, backend.name()),
        "split": args.split,
        "recall_at": args.recall_at,
        "shots": args.shots,
        "train_split": args.train_split,
        "probe_draws": args.probe_draws,
        "probe_classes": args.probe_classes,
        "probe_l2": args.probe_l2,
        "templates": text(&args.templates)?,
        "classnames": text(&args.classnames)?,
        "corrupt_share": args.corrupt_share,
        "bootstrap": args.bootstrap,
        "seed": args.seed,
    });
    Ok(Digest::of_bytes(said.to_string().as_bytes()).as_str().to_owned())
}

/// A result on one line.
fn line(name: &str, outcome: &Outcome) -> String {
    let metrics = outcome.metrics.iter();
    let metrics =
        metrics.filter_map(|(metric, value)| Some(format!("{metric} {:.4}", (*value)?)));
    let metrics = metrics.collect::<Vec<_>>().join(", ");

    let details = &outcome.upcycle;
    let skipped = match details.skipped.len() {
        0 => String::new(),
        count => format!(" ({count} skipped)"),
    };
    format!("{name}: {metrics}; {} pictures{skipped}", details.pictures)
}

/// The mean acc1 of every collection that is complete.
fn means(asked: &[String], outcomes: &BTreeMap<String, Outcome>) -> Vec<String> {
    let mean = |name: &String| {
        let members = names::collection(name)?;
        // The mean of a part of a collection would pass for that of the whole.
        let acc1 = |member: &&str| *outcomes.get(*member)?.metrics.get("acc1")?;
        let values: Vec<f64> = members.iter().map(acc1).collect::<Option<_>>()?;
        let (mean, count) = (crate::num::mean(&values), values.len());
        Some(format!("{name}: acc1 {mean:.4}, mean of {count}"))
    };
    asked.iter().filter_map(mean).collect()
}
