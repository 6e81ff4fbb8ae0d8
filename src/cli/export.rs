//! `upcycle-export`: a checkpoint of ours in a layout that others load.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;

use super::import::{describe, preprocessing};
use super::{output, tool};
use crate::checkpoint::{self, Hints, Preprocessing};
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  upcycle-export --checkpoint artifacts/pretrain/s1/current --layout hf --out dense-hf
  upcycle-export --checkpoint artifacts/train/sparse-s1/current --layout upcycle \\
      --shard-size 2GB --out moe       load it with examples/python/upcycle_moe.py
  upcycle-export --checkpoint dense --layout open_clip --preprocess dataset.json --out oc

How pictures are prepared is taken from the checkpoint's folder, or from the data set that a
result of this pipeline was trained on; where neither says it, --preprocess must.

The first two layouts are for dense models. `upcycle` holds any: config.json and
safetensors, whose dense parts have open_clip's names (docs/checkpoints.md).";

/// The layouts that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    /// `open_clip_config.json` and `open_clip_model.safetensors`.
    OpenClip,
    /// `CLIPModel`: `config.json`, `preprocessor_config.json` and `model.safetensors`.
    Hf,
    /// Ours, dense or MoE: `config.json` and `model.safetensors`.
    Upcycle,
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// A checkpoint: a folder with `config.json` and weights.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Whose layout.
    #[arg(long, value_enum)]
    layout: Target,
    /// Largest file of weights, as 500MB or 2GiB; more go into shards with an index.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,
    /// How pictures are prepared: `openai`, or a `preprocess.json`, a data set's `dataset.json`,
    /// or a file of `open_clip`'s or Hugging Face's [default: what the checkpoint says].
    #[arg(long, value_name = "FILE")]
    preprocess: Option<PathBuf>,
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

#[expect(clippy::needless_pass_by_value, reason = "the arguments end here")]
fn run(args: ExportArgs) -> Result<Vec<String>> {
    let mut model = checkpoint::read_as_kept(&args.checkpoint, &args.hints)?;
    if args.merge {
        model = model.merged();
    }
    let (config, shard) = (&model.config, args.shard_size);
    let pictures = match &args.preprocess {
        Some(path) => Some(preprocessing(path)?),
        None => Preprocessing::of_checkpoint(&args.checkpoint)?,
    };
    if args.layout == Target::OpenClip && shard.is_some() {
        return Err(Error::usage("--shard-size: open_clip reads one file only"));
    }

    match args.layout {
        Target::Upcycle => output::folder(&args.out, |folder| {
            checkpoint::export_upcycle(folder, &model, pictures.as_ref(), shard)
        })?,
        Target::OpenClip | Target::Hf => {
            let (pictures, tensors) =
                (required(pictures.as_ref(), &args)?, model.tensors());
            output::folder(&args.out, |folder| match args.layout {
                Target::Hf => checkpoint::export_hugging_face(
                    folder, config, &tensors, pictures, shard,
                ),
                _ => checkpoint::export_open_clip(folder, config, &tensors, pictures),
            })?;
        }
    }

    let mut lines = describe(config);
    lines.push(pictures.map_or_else(
        || "nothing says how pictures are prepared: --preprocess adds it".to_owned(),
        |pictures| told(&pictures, config.vision.image_size),
    ));
    lines.push(format!("wrote {}", args.out.display()));
    Ok(lines)
}

/// These layouts hold how pictures are prepared, and wrong numbers silently lower accuracy.
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
