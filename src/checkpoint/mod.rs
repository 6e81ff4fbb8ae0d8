//! Checkpoints of other people: reading theirs as ours, writing ours as theirs.
//!
//! The formats that can be read are Hugging Face's `CLIPModel` (`config.json`, one or several safetensors files
//! or `pytorch_model.bin`), `open_clip`'s published folders (`open_clip_config.json`) and its
//! training checkpoints (`.pt`). A mapping is strict: every tensor of the file is used once
//! and every parameter is filled once, or one error names all that do not fit. The activation
//! function and the number of heads are never guessed: a wrong one silently lowers accuracy
//! (`open_clip` issue 771).

mod config;
#[cfg(test)]
mod container_tests;
mod export;
mod hints;
mod hugging_face;
mod image_processor;
mod layout;
mod lineage;
mod open_clip;
mod package;
mod pickle;
mod positions;
mod preprocess;
mod preprocess_files;
mod section;
#[cfg(test)]
mod settings_tests;
mod shards;
#[cfg(test)]
mod tests;
mod torch;
mod weights;

use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::io::tensors::Tensors;
use crate::model::{Checkpoint, ClipConfig};
use crate::text::{Cleaning, Tokenizer};
use layout::Layout;

pub use export::{export_hugging_face, export_open_clip, export_upcycle};
pub use hints::Hints;
pub use lineage::Lineage;
pub use package::{Card, Package, Results, export_package};
pub use positions::resize_positions;
pub use preprocess::{PREPROCESS, Preprocessing};

/// Weights in a folder, in order of preference, each with the configuration that has to be
/// there too.
const FOLDERS: [(&str, &str); 5] = [
    ("open_clip_model.safetensors", open_clip::FILE),
    ("open_clip_pytorch_model.bin", open_clip::FILE),
    ("model.safetensors", hugging_face::FILE),
    ("model.safetensors.index.json", hugging_face::FILE),
    ("pytorch_model.bin", hugging_face::FILE),
];

/// Reads a checkpoint: a folder in one of the published layouts, or a file of weights.
///
/// The configuration is looked for beside the weights. Without one, shapes are read off the
/// tensors, and `hints` must say the activation and the heads. Where a configuration states
/// them, other hints are refused.
///
/// Values become f32; half precision converts exactly. Files of weights are read whole, so
/// memory for about twice the model is needed.
pub fn import(path: &Path, hints: &Hints) -> Result<(ClipConfig, Tensors)> {
    let weights = weights_of(path)?;
    let foreign = weights::read(&weights)?;
    let folder = weights.parent().unwrap_or_else(|| Path::new(""));

    // A part of a CLIP is told before a hundred missing tensors are.
    layout::check_towers(&weights, &foreign)?;

    let layout = Layout::of(&foreign);
    let config = config::beside(folder, layout, &foreign, hints)
        .context(|| format!("finding the shape of the model in {}", weights.display()))?;
    let tensors = layout::collect(&config, layout, foreign)
        .context(|| format!("importing {}", weights.display()))?;
    Ok((config, tensors))
}

/// [`import`] as a model to run: experts of low rank are merged.
pub fn read(path: &Path, hints: &Hints) -> Result<Checkpoint> {
    read_as_kept(path, hints).map(Checkpoint::merged)
}

/// [`import`] as a model in the form it is kept in.
pub fn read_as_kept(path: &Path, hints: &Hints) -> Result<Checkpoint> {
    let (config, tensors) = import(path, hints)?;
    let values = crate::model::params::Layout::new(&config).flatten(&config, &tensors)?;
    Ok(Checkpoint { config, values })
}

/// The shape of the model in a folder, from its configuration alone.
pub fn shape(folder: &Path, hints: &Hints) -> Result<ClipConfig> {
    config::of_folder(folder, hints)
        .context(|| format!("finding the shape of the model in {}", folder.display()))
}

/// How captions are cleaned for the model, by its configuration if it has `open_clip`'s.
pub fn cleaning(path: &Path, hints: &Hints) -> Result<Cleaning> {
    let beside = folder_of(path).join(open_clip::FILE);
    match &hints.config {
        Some(asked) => open_clip::cleaning(&open_clip::named(asked)?),
        None if beside.is_file() => open_clip::cleaning(&open_clip::read(&beside)?),
        None => Ok(Cleaning::default()),
    }
}

/// The tokenizer with the cleaning of captions that the model's configuration asks for.
///
/// The usual cleaning leaves the tokenizer as it is, because a file of ours may say another.
pub fn cleaned(tokenizer: Tokenizer, path: &Path, hints: &Hints) -> Result<Tokenizer> {
    match cleaning(path, hints)? {
        Cleaning::Lower => Ok(tokenizer),
        other => tokenizer.with_cleaning(other),
    }
}

/// The folder of a checkpoint, which may be named by its file of weights.
pub fn folder_of(checkpoint: &Path) -> &Path {
    if checkpoint.is_dir() {
        return checkpoint;
    }
    checkpoint.parent().unwrap_or_else(|| Path::new(""))
}

/// The file of weights, or the index of several, that a path means.
fn weights_of(path: &Path) -> Result<PathBuf> {
    let place = path.display();
    if !path.exists() {
        return Err(absent(path));
    }
    if !path.is_dir() {
        return Ok(path.to_owned());
    }

    let complete = |(weights, config): &(&str, &str)| {
        path.join(weights).is_file() && path.join(config).is_file()
    };
    if let Some((weights, _)) = FOLDERS.iter().find(|pair| complete(pair)) {
        return Ok(path.join(weights));
    }

    // Half of a pair is the usual slip, so what is there of them is named.
    let mut known: Vec<&str> = FOLDERS.iter().flat_map(|pair| [pair.0, pair.1]).collect();
    known.sort_unstable();
    known.dedup();
    known.retain(|name| path.join(name).is_file());

    let found =
        if known.is_empty() { "none of these".to_owned() } else { known.join(", ") };
    let wanted: Vec<String> = FOLDERS
        .iter()
        .map(|(weights, config)| format!("{weights} with {config}"))
        .collect();
    let wanted = wanted.join(", or ");
    Err(Error::failed(format!(
        "{place} holds no checkpoint: expected {wanted}; found {found}"
    )))
}

/// The error for a path that is not there; a name on Hugging Face's hub looks like one.
fn absent(path: &Path) -> Error {
    let place = path.display().to_string();
    let name = place.strip_prefix("hf-hub:").unwrap_or(&place);

    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &&str| !part.is_empty() && !part.starts_with('.');
    // owner/model, which is neither a path that begins with a dot nor a file of weights.
    let is_name = parts.len() == 2
        && parts.iter().all(plain)
        && path.extension().is_none_or(|extension| {
            !["safetensors", "pt", "pth", "bin", "ckpt", "json"]
                .iter()
                .any(|known| extension == *known)
        });

    let advice = if is_name {
        let folder = parts[1];
        format!(
            "; nothing is downloaded here, so if it is a model on Hugging Face's hub, fetch \
             it first: hf download {name} --local-dir {folder}, and give {folder}"
        )
    } else {
        String::new()
    };
    Error::failed(format!("{place} does not exist{advice}"))
}
