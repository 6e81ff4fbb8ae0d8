//! Checkpoints of other people: reading theirs as ours, writing ours as theirs.
//!
//! Understood are Hugging Face's `CLIPModel` (`config.json`, one or several safetensors files
//! or `pytorch_model.bin`), `open_clip`'s published folders (`open_clip_config.json`) and its
//! training checkpoints (`.pt`). A mapping is strict: every tensor of the file is used once
//! and every parameter is filled once, or one error names all that do not fit. The activation
//! function is never guessed: a wrong one costs accuracy without a word
//! (`open_clip` issue 771).

mod config;
mod export;
mod layout;
mod lineage;
mod package;
mod pickle;
mod positions;
mod preprocess;
mod shards;
#[cfg(test)]
mod tests;
mod weights;

use std::path::{Path, PathBuf};

use crate::config::Activation;
use crate::error::{Context, Error, Result};
use crate::io::tensors::Tensors;
use crate::model::{Checkpoint, ClipConfig};
use layout::Layout;

pub use export::{export_hugging_face, export_open_clip};
pub use lineage::Lineage;
pub use package::{Card, Package, Results, export_upcycle};
pub use positions::resize_positions;
pub use preprocess::{PREPROCESS, Preprocessing};

/// Weights in a folder, in order of preference, each with the configuration that has to be
/// there too.
const FOLDERS: [(&str, &str); 5] = [
    ("open_clip_model.safetensors", config::OPEN_CLIP),
    ("open_clip_pytorch_model.bin", config::OPEN_CLIP),
    ("model.safetensors", config::HUGGING_FACE),
    ("model.safetensors.index.json", config::HUGGING_FACE),
    ("pytorch_model.bin", config::HUGGING_FACE),
];

/// Reads a checkpoint: a folder in one of the published layouts, or a file of weights.
///
/// The configuration is looked for beside the weights. Without one, shapes are read off the
/// tensors (with `OpenAI`'s rule of 64 values a head) and `activation` must be given. Where a
/// configuration names an activation, another `activation` is refused.
///
/// Values become f32; half precision converts exactly. Files of weights are read whole, so
/// memory for about twice the model is needed.
pub fn import(
    path: &Path,
    activation: Option<Activation>,
) -> Result<(ClipConfig, Tensors)> {
    let weights = weights_of(path)?;
    let foreign = weights::read(&weights)?;
    let layout = Layout::of(&foreign);
    let folder = weights.parent().unwrap_or_else(|| Path::new(""));
    let config = config::beside(folder, layout, &foreign, activation)
        .context(|| format!("finding the shape of the model in {}", weights.display()))?;
    let tensors = layout::collect(&config, layout, foreign)
        .context(|| format!("importing {}", weights.display()))?;
    Ok((config, tensors))
}

/// [`import`] as a model to run: experts of low rank are merged.
pub fn read(path: &Path, activation: Option<Activation>) -> Result<Checkpoint> {
    read_as_kept(path, activation).map(Checkpoint::merged)
}

/// [`import`] as a model in the form it is kept in.
pub fn read_as_kept(path: &Path, activation: Option<Activation>) -> Result<Checkpoint> {
    let (config, tensors) = import(path, activation)?;
    let values = crate::model::params::Layout::new(&config).flatten(&config, &tensors)?;
    Ok(Checkpoint { config, values })
}

/// The shape of the model in a folder, from its configuration alone.
pub fn shape(folder: &Path, activation: Option<Activation>) -> Result<ClipConfig> {
    config::of_folder(folder, activation)
        .context(|| format!("finding the shape of the model in {}", folder.display()))
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
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let complete = |(weights, config): &(&str, &str)| {
        path.join(weights).is_file() && path.join(config).is_file()
    };
    if let Some((weights, _)) = FOLDERS.iter().find(|pair| complete(pair)) {
        return Ok(path.join(weights));
    }
    let wanted: Vec<String> = FOLDERS
        .iter()
        .map(|(weights, config)| format!("{weights} with {config}"))
        .collect();
    let (place, wanted) = (path.display(), wanted.join(", or "));
    Err(Error::failed(format!("{place} holds no checkpoint: expected {wanted}")))
}
