//! `upcycle-init`: from a checkpoint and pictures to a configuration that runs.
//!
//! It reads both, derives what follows from them, chooses a recipe for what does not, says
//! what it chose and why, and writes one file. Everything after that is `make`. What cannot
//! work is refused here, by the code that the stages use.

mod model;
mod recipe;
mod yaml;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgAction, Command};

use self::model::Model;
use self::recipe::{Evidence, Recipe};
use self::yaml::NewConfiguration;
use super::{Location, cost, forecast, output, preflight, tool};
use crate::checkpoint::Hints;
use crate::config::{self, ColumnNames, DatasetConfig, EvaluateConfig, Overrides};
use crate::data::pairs::{self, Census, Detected};
use crate::error::{Context as _, Error, Result};
use crate::pipeline::{grouped, memory};
use crate::stage::{self, plan};

const EXAMPLES: &str = "\
Examples:
  upcycle-init --model clip-vit-base-patch32 --data pictures --out study
  upcycle-init --model ViT-B-32.pt --config ViT-B-32 --activation quick_gelu \\
      --tokenizer bpe_simple_vocab_16e6.txt.gz --preprocess openai --data pairs.tsv --out study
  upcycle-init --model clip --data 'shards/{000..099}.tar' --eval sets/wds_cifar10 --out study
  make CONFIG=study/pipeline.yaml ARTIFACTS=study/artifacts      all the rest
  upcycle-init                                                   every key with its default

The model is a folder of Hugging Face's or open_clip's or a file of weights. The data are a
folder with captions.csv or with a folder for each class, a table (.csv, .tsv), Parquet files,
tar shards of WebDataset, or COCO's JSON.";

/// How long data are counted.
const PATIENCE: Duration = Duration::from_secs(20);

/// The name of the configuration.
const FILE: &str = "pipeline.yaml";

#[derive(Debug, Clone, clap::Args)]
struct InitArgs {
    /// The dense CLIP to start from: a folder, or a file of weights.
    #[arg(long, value_name = "PATH", requires = "data")]
    model: Option<PathBuf>,
    /// The pictures to train on, with their captions or classes.
    #[arg(long, value_name = "PATH", requires = "model")]
    data: Option<String>,
    /// An evaluation set as `CLIP_benchmark` stores it; may be repeated.
    #[arg(long, value_name = "DIR", action = ArgAction::Append, num_args = 1..,
          requires = "model")]
    eval: Vec<PathBuf>,
    /// Where pipeline.yaml is written [default: this folder].
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    out: PathBuf,
    #[command(flatten)]
    hints: Hints,
    /// The model's tokenizer, where there is none beside it.
    #[arg(long, value_name = "FILE", requires = "model")]
    tokenizer: Option<PathBuf>,
    /// How pictures are prepared, where the model does not say: `openai`, or a file that says it.
    #[arg(long, value_name = "FILE", requires = "model")]
    preprocess: Option<PathBuf>,
    /// The column of the pictures in a table or in Parquet, where it has an unusual name.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    image_column: String,
    /// The column of the captions.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    caption_column: String,
    /// The column of the classes.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    label_column: String,
}

/// Runs `upcycle-init`.
pub fn main() -> ExitCode {
    let command = Command::new("init")
        .bin_name("upcycle-init")
        .display_name("upcycle-init")
        .about(
            "Writes the configuration for a checkpoint and pictures, or the default one.",
        )
        .after_help(EXAMPLES);
    tool(command, |args: InitArgs| run(&args))
}

fn run(args: &InitArgs) -> Result<Vec<String>> {
    let path = args.out.join(FILE);
    if path.exists() {
        let place = path.display();
        return Err(Error::usage(format!(
            "{place} exists, and nothing is overwritten: remove it, or give another --out"
        )));
    }
    if let (Some(model), Some(data)) = (&args.model, &args.data) {
        return study(args, model, data, &path);
    }
    write(&path, config::shipped())?;
    let place = path.display();
    Ok(vec![format!("wrote {place} with every key, its default and its reason")])
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)
            .context(|| format!("creating {}", folder.display()))?;
    }
    output::file(path, |scratch| {
        std::fs::write(scratch, text).context(|| format!("writing {}", path.display()))
    })
}

/// The configuration for a model and data.
fn study(args: &InitArgs, from: &Path, data: &str, path: &Path) -> Result<Vec<String>> {
    // Data come first: they are refused faster than a model is read.
    let (dataset, detected) = dataset(args, data)?;
    let census = census(&dataset)?;
    let sets = sets(args)?;
    let Model { folder, shape, lines } = model::take(args, from, &args.out)?;

    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let defaults = config::load_default(&Overrides::default())?;
    let recipe = Recipe::choose(&Evidence {
        shape: &shape,
        concepts: census.concepts(),
        trained: census.trained(),
        retrieval: census.retrieval(),
        memory: memory::free(),
        speed: cost::speed(&defaults, threads)?,
        lanes: defaults.train.optim.lanes,
    });
    let plan = NewConfiguration {
        title: title(from, data),
        checkpoint: &folder,
        shape: &shape,
        dataset: &dataset,
        recipe: &recipe,
        sets: &sets,
    };
    write(path, &plan.text()?)?;

    // What was written is read as the stages will read it: a refusal leaves no file.
    let pictures = census.splits().values().sum::<usize>() - census.trained();
    let told = checked(path, pictures, threads).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })?;
    Ok(say(args, (lines, &detected, &census), &recipe, &told, path))
}

/// The section `dataset` of a source.
fn dataset(args: &InitArgs, data: &str) -> Result<(DatasetConfig, Detected)> {
    let detected = pairs::detect(data)?;
    let defaults = config::load_default(&Overrides::default())?.dataset;
    let columns = ColumnNames {
        image: args.image_column.clone(),
        caption: args.caption_column.clone(),
        label: args.label_column.clone(),
        ..ColumnNames::default()
    };
    let dataset = DatasetConfig {
        source: detected.source,
        folder: detected.folder.clone(),
        file: detected.file.clone(),
        columns,
        ..defaults
    };
    Ok((dataset, detected))
}

/// Counts the data, for as long as is bearable.
fn census(dataset: &DatasetConfig) -> Result<Census> {
    let clock = Instant::now();
    let about = || {
        "--data (--image-column, --caption-column and --label-column name columns)"
            .to_owned()
    };
    let census =
        Census::of(dataset, &mut |_| clock.elapsed() < PATIENCE).context(about)?;
    let census = census.unwrap_or_default();
    if census.is_complete && census.concepts() < 2 {
        return Err(Error::usage(format!(
            "--data: {} of {} pairs can be trained on, and they show {} different things \
             (classes, or first captions); expected at least 2",
            census.trained(),
            census.read,
            census.concepts()
        )));
    }
    Ok(census)
}

/// Folders of evaluation sets, absolute.
fn sets(args: &InitArgs) -> Result<Vec<String>> {
    let absolute = |set: &PathBuf| {
        let path = set.canonicalize().context(|| format!("--eval {}", set.display()))?;
        Ok(path.display().to_string())
    };
    args.eval.iter().map(absolute).collect()
}

/// `Cluster-aware Upcycling of MODEL on DATA`, by the names of both.
fn title(model: &Path, data: &str) -> String {
    let stem = |path: &Path| {
        let name = path.file_stem().or(path.file_name()).unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    format!("Cluster-aware Upcycling of {} on {}", stem(model), stem(Path::new(data)))
}

/// Loads the new configuration, refuses what cannot work, and tells what it will cost.
fn checked(path: &Path, pictures: usize, threads: usize) -> Result<Vec<String>> {
    let location = Location::at(path);
    let config = location.load()?;
    let nodes = plan(&config, &location.cache)?;
    preflight::check(&config, None)?;

    let mut lines = forecast::lines(&config)?;
    lines.retain(|line| !line.starts_with(' '));
    lines.extend(cost::line(&config, nodes.iter(), pictures, threads)?);
    Ok(lines)
}

/// Everything that a person should know of the choice.
fn say(
    args: &InitArgs,
    (model, detected, census): (Vec<String>, &Detected, &Census),
    recipe: &Recipe,
    told: &[String],
    path: &Path,
) -> Vec<String> {
    let mut lines = vec!["model".to_owned()];
    let indent = |line: &String| format!("  {line}");
    lines.extend(model.iter().map(indent));

    lines.push("data".to_owned());
    let source = detected.source.name();
    lines.push(format!("  source {source}, because {}", detected.reason));
    let more = if census.is_complete { "" } else { "at least " };
    let splits = census.splits();
    let splits: Vec<String> = splits
        .iter()
        .map(|(name, count)| format!("{} {name}", grouped(*count)))
        .collect();
    lines.push(format!(
        "  {more}{} pairs ({}), {} different things in train, {} unusable",
        grouped(census.read),
        splits.join(", "),
        grouped(census.concepts()),
        census.bad
    ));
    if census.bad > 0 {
        lines.push(
            "  unusable pairs are refused: dataset.corrupt_share allows some".to_owned(),
        );
    }

    lines.push("recipe".to_owned());
    for (key, value) in recipe.values() {
        lines.push(format!("  {key}={value}: {}", recipe.reason(key)));
    }
    lines.push("costs".to_owned());
    lines.extend(told.iter().map(indent));
    lines.extend(recipe.warning.iter().map(|text| format!("  warning: {text}")));

    lines.push(format!("wrote {}; next:", path.display()));
    lines.push(format!("  {}", next(path, &args.out.join("artifacts"))));
    lines
}

/// The command line that runs the pipeline.
fn next(config: &Path, artifacts: &Path) -> String {
    let (config, artifacts) = (config.display(), artifacts.display());

    // In the folder of the sources there is a Makefile, and `make install` leaves one with this
    // program. `cargo install` leaves programs alone.
    let program = std::env::current_exe().unwrap_or_default();
    if Path::new("Makefile").is_file() {
        return format!("make CONFIG={config} ARTIFACTS={artifacts}");
    }
    if program.with_file_name("upcycle-make").is_file() {
        return format!("upcycle-make CONFIG={config} ARTIFACTS={artifacts}");
    }
    let stages: Vec<&str> = stage::names().collect();
    format!(
        "for stage in {}; do upcycle-$stage --config {config} --artifacts {artifacts} || \
         break; done",
        stages.join(" ")
    )
}

/// The names of sets, for the comments of the configuration.
fn set_names(sets: &[String]) -> Vec<String> {
    sets.iter().map(|set| EvaluateConfig::set_name(set)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_names_model_and_data() {
        let found = title(Path::new("models/ViT-B-32.pt"), "data/birds");
        assert_eq!(found, "Cluster-aware Upcycling of ViT-B-32 on birds");
    }
}
