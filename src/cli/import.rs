//! `upcycle-import`: a published dense CLIP becomes a checkpoint of ours.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;

use super::{output, tool};
use crate::checkpoint::{self, Hints, PREPROCESS, Preprocessing};
use crate::error::{Context as _, Error, Result};
use crate::io::tensors;
use crate::model::params::parameter_counts;
use crate::model::{ClipConfig, Tower};
use crate::text::{Cleaning, Tokenizer};

const EXAMPLES: &str = "\
Examples:
  upcycle-import --from clip-vit-base-patch32 --out dense     Hugging Face's folder
  upcycle-import --from CLIP-ViT-B-16 --out dense             open_clip's folder
  upcycle-import --from epoch_32.pt --config ViT-B-32 --activation quick_gelu --out dense
  upcycle-import --from epoch_32.pt --config open_clip_config.json --out dense
  upcycle-import --from ViT-B-16 --image-size 384 --out dense resize the position embeddings
  upcycle-import --from ViT-B-32 --tokenizer bpe_simple_vocab_16e6.txt.gz --out dense
  make SET='pretrain.checkpoint=dense dataset.like=dense'     upcycle it

The activation and the attention heads are taken from the configuration beside the weights;
without one they must be given, because wrong ones silently lower accuracy. If a tensor is
missing, unexpected or of another shape, it is named and nothing is written.";

/// Files of a tokenizer that are taken along, the first complete set.
const TOKENIZERS: [&[&str]; 3] = [
    &["tokenizer.json"],
    &["vocab.json", "merges.txt"],
    &["bpe_simple_vocab_16e6.txt.gz"],
];

#[derive(Debug, clap::Args)]
struct ImportArgs {
    /// A folder of Hugging Face's or `open_clip`'s, or a file of weights (.safetensors, .pt,
    /// .pth, .bin, an index of shards).
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    #[command(flatten)]
    hints: Hints,
    /// Resize the position embeddings for pictures of this side.
    #[arg(long, value_name = "N")]
    image_size: Option<usize>,
    /// A tokenizer to put beside the model, where the source has none.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// How pictures are prepared: `openai`, or a `preprocess.json`, a data set's `dataset.json`,
    /// or a file of `open_clip`'s or Hugging Face's [default: what the source says].
    #[arg(long, value_name = "FILE")]
    preprocess: Option<PathBuf>,
    /// The new folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs `upcycle-import`.
pub fn main() -> ExitCode {
    let command = Command::new("import")
        .bin_name("upcycle-import")
        .display_name("upcycle-import")
        .about("Turns a published dense CLIP into a checkpoint of ours.")
        .after_help(EXAMPLES);
    tool(command, run)
}

/// Imports a model; returns the lines about it. Nothing is written unless all of it is read.
#[expect(clippy::needless_pass_by_value, reason = "the arguments end here")]
fn run(args: ImportArgs) -> Result<Vec<String>> {
    let (mut config, mut tensors) = checkpoint::import(&args.from, &args.hints)?;
    let before = config.vision.image_size;
    let pictures = pictures(&args, before)?;
    if let Some(side) = args.image_size {
        checkpoint::resize_positions(&mut config, &mut tensors, side)?;
    }

    // The folder appears whole or not at all.
    let mut taken = Vec::new();
    output::folder(&args.out, |folder| {
        write(&folder.join("config.json"), &config.to_json()?)?;
        if let Some(pictures) = &pictures {
            write(&folder.join(PREPROCESS), &pictures.json()?)?;
        }
        taken = take_tokenizer(&args, &config, folder)?;
        tensors::write(&folder.join("model.safetensors"), &tensors)
    })?;

    let mut lines = describe(&config);
    if before != config.vision.image_size {
        let side = config.vision.image_size;
        lines.push(format!("position embeddings resized from {before} to {side} pixels"));
    }
    // Weights alone may be all that is wanted, so this is a line and not an error.
    if pictures.is_none() {
        lines.push(
            "the source does not say how pictures are prepared: give --preprocess"
                .to_owned(),
        );
    }
    lines.extend(taken.iter().map(|file| format!("with its {file}")));
    lines.push(format!("wrote {}", args.out.display()));
    Ok(lines)
}

/// How the model's pictures are prepared, for the size that it is imported for; `None` if
/// nobody says.
fn pictures(args: &ImportArgs, own_side: usize) -> Result<Option<Preprocessing>> {
    // A configuration that stands in for the missing one says this too.
    let config = args.hints.config.as_deref().filter(|config| config.is_file());
    let found = match (&args.preprocess, config) {
        (Some(path), _) => Some(preprocessing(path)?),
        (None, Some(config)) => Preprocessing::of_configuration(config)?,
        (None, None) => Preprocessing::of_checkpoint(&args.from)?,
    };
    let Some(found) = found else { return Ok(None) };

    // What the source says is for its own size; another size keeps all but the sides.
    match args.image_size {
        Some(side) if found.size != Some(side) => found.for_side(side).map(Some),
        _ => {
            let side = args.image_size.unwrap_or(own_side);
            found.framing(side)?;
            Ok(Some(Preprocessing { size: Some(side), ..found }))
        }
    }
}

/// What `--preprocess` means.
pub(super) fn preprocessing(path: &Path) -> Result<Preprocessing> {
    if path.as_os_str() == "openai" {
        return Ok(Preprocessing::OPENAI);
    }
    Preprocessing::read(path)
}

/// The model in a few lines.
pub(super) fn describe(config: &ClipConfig) -> Vec<String> {
    let (total, active) = parameter_counts(config);

    let mut lines = vec![format!(
        "{total} parameters ({active} active), activation {}, embedding {}",
        config.activation.name(),
        config.embed_dim
    )];
    for tower in Tower::BOTH {
        let shape = config.tower(tower);
        let (layers, width, heads, hidden) =
            (shape.layers, shape.width, shape.heads, shape.hidden);
        let input = match tower {
            Tower::Vision => {
                let vision = &config.vision;
                format!(
                    "{0} x {0} pixels, patches of {1}",
                    vision.image_size, vision.patch
                )
            }
            Tower::Text => {
                let text = &config.text;
                format!("{} tokens of {} entries", text.context, text.vocabulary)
            }
        };

        let name = tower.name();
        lines.push(format!(
            "{name}: {input}; {layers} blocks of width {width}, {heads} heads, FFN {hidden}"
        ));
    }
    lines
}

/// Puts the model's tokenizer into the folder; returns the names of its files.
///
/// Files are copied where they say everything. Where the model cleans captions in another
/// way than they tell, a file of ours is written that does.
fn take_tokenizer(
    args: &ImportArgs,
    config: &ClipConfig,
    folder: &Path,
) -> Result<Vec<&'static str>> {
    let from = args.from.as_path();
    let source = if from.is_dir() { from } else { from.parent().unwrap_or(from) };
    let complete =
        |files: &&&[&str]| files.iter().all(|file| source.join(file).is_file());
    let files = TOKENIZERS.iter().find(complete).copied().unwrap_or_default();

    // A tokenizer that was asked for is opened, so that a wrong one is found here. The usual
    // cleaning is what the copied files mean.
    let cleaning = checkpoint::cleaning(from, &args.hints)?;
    let path = match (&args.tokenizer, files.first()) {
        (Some(path), _) => Some(path.clone()),
        (None, first) => first.map(|file| source.join(file)),
    };

    if let Some(path) = path
        && (args.tokenizer.is_some() || cleaning != Cleaning::Lower)
    {
        let tokenizer = checkpoint::cleaned(Tokenizer::open(&path)?, from, &args.hints)?;
        check_vocabulary(config, &tokenizer)?;
        write(&folder.join("tokenizer.json"), &tokenizer.json()?)?;
        return Ok(vec!["tokenizer.json"]);
    }

    for file in files {
        let bytes =
            std::fs::read(source.join(file)).context(|| format!("reading {file}"))?;
        std::fs::write(folder.join(file), bytes).context(|| format!("writing {file}"))?;
    }
    Ok(files.to_vec())
}

/// Refuses a tokenizer that cannot be the model's: ids would mean other words, or none.
pub(super) fn check_vocabulary(config: &ClipConfig, tokenizer: &Tokenizer) -> Result<()> {
    let (found, expected) = (tokenizer.vocabulary(), config.text.vocabulary);
    if found == expected {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the tokenizer has {found} entries, the model expects {expected}: give its own with \
         --tokenizer"
    )))
}

/// Writes a file of text.
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).context(|| format!("writing {}", path.display()))
}
