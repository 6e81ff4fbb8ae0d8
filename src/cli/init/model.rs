//! The model of `upcycle-init`: used where it lies if its folder says everything, imported
//! beside the new configuration if not.

use std::path::{Path, PathBuf};

use super::InitArgs;
use crate::checkpoint::{self, Hints, Preprocessing};
use crate::cli::import::{self, ImportArgs};
use crate::error::{Context as _, Error, Result};
use crate::model::ClipConfig;
use crate::text;

/// A dense CLIP that the pipeline can start from.
#[derive(Debug)]
pub(super) struct Model {
    /// Its folder, absolute.
    pub(super) folder: PathBuf,
    pub(super) shape: ClipConfig,
    /// What was found, for people.
    pub(super) lines: Vec<String>,
}

/// Reads the model that was named, weights included, so that a file that does not fit is
/// refused now.
pub(super) fn take(args: &InitArgs, from: &Path, out: &Path) -> Result<Model> {
    let mut lines = Vec::new();
    let folder = if is_complete(args, from)? {
        from.canonicalize().context(|| format!("looking for {}", from.display()))?
    } else {
        require_tokenizer(args, from)?;
        require_pictures(args, from)?;
        let folder = std::path::absolute(out.join("dense"))
            .context(|| format!("looking for {}", out.display()))?;
        std::fs::create_dir_all(out).context(|| format!("creating {}", out.display()))?;
        import::import(&ImportArgs {
            from: from.to_owned(),
            hints: args.hints.clone(),
            image_size: None,
            tokenizer: args.tokenizer.clone(),
            preprocess: args.preprocess.clone(),
            out: folder.clone(),
        })?;
        lines.push(format!("imported to {}, with all that it needs", folder.display()));
        folder
    };

    let (shape, _weights) = checkpoint::import(&folder, &Hints::default())?;
    if shape.moe.is_some() {
        return Err(Error::usage(format!(
            "--model: {} has experts already, expected a dense CLIP",
            from.display()
        )));
    }
    lines.splice(0..0, import::describe(&shape));
    Ok(Model { folder, shape, lines })
}

/// Whether a folder says everything itself: configuration, tokenizer and pictures.
fn is_complete(args: &InitArgs, from: &Path) -> Result<bool> {
    let Hints { activation, heads, text_heads, config } = &args.hints;
    let is_told = activation.is_some() || heads.is_some() || text_heads.is_some();
    let is_told = is_told || config.is_some() || args.tokenizer.is_some();
    if is_told || args.preprocess.is_some() || !from.is_dir() || !has_tokenizer(from) {
        return Ok(false);
    }
    Ok(Preprocessing::of_checkpoint(from)?.is_some())
}

fn has_tokenizer(folder: &Path) -> bool {
    text::FILES.iter().any(|file| folder.join(file).is_file())
}

/// A model without a tokenizer is refused before anything is written.
fn require_tokenizer(args: &InitArgs, from: &Path) -> Result<()> {
    if !from.exists()
        || args.tokenizer.is_some()
        || has_tokenizer(checkpoint::folder_of(from))
    {
        return Ok(());
    }
    let files = text::FILES.join(", ");
    Err(Error::usage(format!(
        "--model: there is no tokenizer beside {} ({files}): give --tokenizer, for CLIP's own \
         bpe_simple_vocab_16e6.txt.gz",
        from.display()
    )))
}

/// As [`require_tokenizer`], for how pictures are prepared.
fn require_pictures(args: &InitArgs, from: &Path) -> Result<()> {
    let is_told = args.preprocess.is_some() || args.hints.config.is_some();
    if is_told || !from.exists() || Preprocessing::of_checkpoint(from)?.is_some() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "--model: {} does not say how pictures are prepared: give --preprocess openai, or the \
         file that says it",
        from.display()
    )))
}
