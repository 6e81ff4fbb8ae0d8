//! `upcycle-export`: a checkpoint of ours in a layout that others load.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Command};

use super::import::{check_vocabulary, describe, preprocessing};
use super::{output, tool};
use crate::checkpoint::{self, Card, Hints, Lineage, Package, Preprocessing, Results};
use crate::error::{Context as _, Error, Result};
use crate::model::{Checkpoint, ClipConfig};
use crate::text::{FILES, Tokenizer};

const EXAMPLES: &str = "\
Examples:
  upcycle-export --checkpoint artifacts/pretrain/s1/current --layout hf --out dense-hf
  upcycle-export --checkpoint artifacts/train/sparse-s1/current --layout upcycle \\
      --metrics artifacts/evaluate/sparse-s1/current/metrics.json --shard-size 2GB --out moe
  upcycle-export --checkpoint dense --layout open_clip --preprocess dataset.json --out oc

How pictures are prepared is taken from the checkpoint's folder, or from the data set that a
result of this pipeline was trained on; where neither says it, --preprocess must. For the
tokenizer, which the layout `upcycle` holds too, the same is true of --tokenizer.

The first two layouts are for dense models. `upcycle` holds any, in one folder that loads in
transformers, in PyTorch alone and here (docs/pytorch.md).";

/// The layouts that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    /// `open_clip_config.json` and `open_clip_model.safetensors`.
    OpenClip,
    /// `CLIPModel`: `config.json`, `preprocessor_config.json` and `model.safetensors`.
    Hf,
    /// Ours, dense or MoE: weights with the code that runs them, tokenizer, preprocessing and
    /// a model card.
    Upcycle,
}

/// The arguments of `upcycle-export`.
#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// A checkpoint: a folder with `config.json` and weights.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The layout to write.
    #[arg(long, value_enum)]
    layout: Target,
    /// Size of a file of weights at most, as 500MB or 2GiB; larger models are cut into shards
    /// with an index.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,
    /// How pictures are prepared: `openai`, or a `preprocess.json`, a data set's `dataset.json`,
    /// or a file of `open_clip`'s or Hugging Face's [default: what the checkpoint says].
    #[arg(long, value_name = "FILE")]
    preprocess: Option<PathBuf>,
    /// The model's tokenizer, for the layout `upcycle` [default: the one in its folder, else
    /// that of the data set it was trained on].
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Measurements for the model card of the layout `upcycle`: `metrics.json` of the stage
    /// `evaluate`, or a set's JSON file of `upcycle-evaluate on`; may be repeated [default: what
    /// the pipeline measured of its own model].
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    metrics: Vec<PathBuf>,
    #[command(flatten)]
    hints: Hints,
    /// Merge experts of low rank (`ders-lm`) into whole ones; others are whole already.
    #[arg(long)]
    merge: bool,
    /// The new folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs `upcycle-export`.
pub fn main() -> ExitCode {
    let command = Command::new("export")
        .bin_name("upcycle-export")
        .display_name("upcycle-export")
        .about("Writes a checkpoint in a layout that others load.")
        .after_help(EXAMPLES);
    tool(command, run)
}

/// Exports a model; returns the lines about it.
#[expect(clippy::needless_pass_by_value, reason = "the arguments end here")]
fn run(args: ExportArgs) -> Result<Vec<String>> {
    let mut model = checkpoint::read_as_kept(&args.checkpoint, &args.hints)?;
    if args.merge {
        model = model.merged();
    }
    let (config, shard) = (&model.config, args.shard_size);

    // Everything that can be refused is refused before the folder is begun.
    let pictures = match &args.preprocess {
        Some(path) => Some(preprocessing(path)?),
        None => Preprocessing::of_checkpoint(&args.checkpoint)?,
    };
    if args.layout == Target::OpenClip && shard.is_some() {
        return Err(Error::usage("--shard-size: open_clip reads one file only"));
    }
    let pictures = required(pictures.as_ref(), &args)?;

    match args.layout {
        Target::Upcycle => {
            let extras = Extras::find(&args, config)?;
            let package = extras.package(&model, pictures);
            output::folder(&args.out, |folder| {
                checkpoint::export_package(folder, &package, shard)
            })?;
        }
        Target::OpenClip | Target::Hf => {
            let tensors = model.tensors();
            output::folder(&args.out, |folder| match args.layout {
                Target::Hf => checkpoint::export_hugging_face(
                    folder, config, &tensors, pictures, shard,
                ),
                _ => checkpoint::export_open_clip(folder, config, &tensors, pictures),
            })?;
        }
    }

    let mut lines = describe(config);
    lines.push(told(pictures, config.vision.image_size));
    lines.push(format!("wrote {}", args.out.display()));
    Ok(lines)
}

/// How pictures are prepared, which every layout has to say: a wrong preparation silently
/// lowers accuracy, so nothing is assumed.
fn required<'a>(
    pictures: Option<&'a Preprocessing>,
    args: &ExportArgs,
) -> Result<&'a Preprocessing> {
    let place = args.checkpoint.display();
    pictures.ok_or_else(|| {
        Error::usage(format!(
            "{place} does not say how its pictures are prepared: give --preprocess with its \
             data set's dataset.json, or openai if the model came with OpenAI's constants"
        ))
    })
}

/// What the layout `upcycle` holds beside the weights and the preprocessing.
struct Extras {
    tokenizer: Tokenizer,
    card: Card,
}

impl Extras {
    /// Takes the tokenizer that the arguments name, else the one beside the checkpoint, else
    /// that of the data set that the checkpoint was trained on.
    fn find(args: &ExportArgs, config: &ClipConfig) -> Result<Self> {
        let place = args.checkpoint.display();
        let lineage = Lineage::of(&args.checkpoint)?;

        let beside = checkpoint::folder_of(&args.checkpoint);
        let has_vocabulary = FILES.iter().any(|file| beside.join(file).is_file());
        let tokenizer = match (&args.tokenizer, &lineage) {
            (Some(path), _) => {
                Tokenizer::open(path).context(|| "--tokenizer".to_owned())?
            }
            (None, _) if has_vocabulary => Tokenizer::open(beside)?,
            (None, Some(lineage)) => Tokenizer::open(&lineage.dataset)?,
            (None, None) => {
                return Err(Error::usage(format!(
                    "{place} has no tokenizer, and the layout upcycle holds one: give \
                     --tokenizer"
                )));
            }
        };
        let tokenizer = checkpoint::cleaned(tokenizer, &args.checkpoint, &args.hints)?;
        check_vocabulary(config, &tokenizer)?;

        // The model is called what its folder is called.
        let name = args.out.file_name().unwrap_or_default().to_string_lossy();
        // A pipeline knows what it measured of its own models.
        let results = match &lineage {
            Some(lineage) if args.metrics.is_empty() => Results::of(lineage)?,
            _ => Results::read(&args.metrics)?,
        };
        let card = Card::new(&name, lineage.as_ref(), results)?;
        Ok(Self { tokenizer, card })
    }

    /// All that the folder will hold.
    fn package<'a>(
        &'a self,
        model: &'a Checkpoint,
        pictures: &'a Preprocessing,
    ) -> Package<'a> {
        let Self { tokenizer, card } = self;
        Package { model, tokenizer, pictures, card }
    }
}

/// How pictures are prepared, in one line.
fn told(pictures: &Preprocessing, side: usize) -> String {
    let Preprocessing { mean, std, resize_mode, interpolation, .. } = pictures;
    let (mode, filter) = (resize_mode.name(), interpolation.name());
    format!("pictures: {side} x {side}, {mode}, {filter}, mean {mean:?}, std {std:?}")
}

/// Bytes, as in `5GB`, `512MiB` or `1000000`.
fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err("expected bytes with a unit, as 500MB or 2GiB".to_owned()),
    };

    let number: u64 = number.parse().map_err(|e| format!("{e}"))?;
    let bytes = number.checked_mul(factor).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected more than no bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_kinds_of_units() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("2 gib"), Ok(2 << 30));
        assert_eq!(size("17"), Ok(17));
        for bad in ["", "GB", "0", "-1MB", "1.5GB", "9999999999999GB", "3XB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
