//! What a checkpoint that somebody brings says about itself: its model, its tokenizer and its
//! pictures.
//!
//! With `pretrain.checkpoint` none of it need be repeated in the configuration. It is laid
//! beneath the user's file, so a key that is given all the same is compared and not
//! overruled in silence.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::artifact::External;
use crate::checkpoint::{self, Hints, Lineage, PREPARATION, PREPROCESS, Preprocessing};
use crate::error::{Context as _, Error, Result};
use crate::text::{self, Tokenizer};

/// The description of a data set of ours, which says how its pictures are prepared too.
const DATASET: &str = "dataset.json";

/// What the folder `checkpoint` says, as a layer of the configuration: the section `model`,
/// the sizes of pictures and captions, and where the tokenizer is, unless `like` names it.
/// `None` where no checkpoint is given.
pub fn layer(checkpoint: &str, like: &str) -> Result<Option<Value>> {
    if checkpoint.is_empty() {
        return Ok(None);
    }
    let folder = Path::new(checkpoint);
    if !folder.is_dir() {
        let what = if folder.exists() { "is a file" } else { "does not exist" };
        return Err(Error::usage(format!(
            "pretrain.checkpoint: {checkpoint} {what}, expected the folder of a dense CLIP; \
             `upcycle-init --model {checkpoint} --data DATA --out DIR` or `upcycle-import \
             --from {checkpoint} --out DIR` makes one"
        )));
    }

    let shape = checkpoint::shape(folder, &Hints::default())
        .context(|| "pretrain.checkpoint".to_owned())?;
    if shape.moe.is_some() {
        return Err(Error::usage(format!(
            "pretrain.checkpoint: {checkpoint} has experts already, expected a dense CLIP"
        )));
    }

    let like = match like {
        "" => tokenizer_of(folder)?.display().to_string(),
        given => given.to_owned(),
    };
    let (v, t) = (&shape.vision, &shape.text);
    Ok(Some(json!({
        "model": {
            "activation": shape.activation,
            "embed_dim": shape.embed_dim,
            "vision": {
                "patch": v.patch, "width": v.width, "layers": v.layers, "heads": v.heads,
                "hidden": v.hidden,
            },
            "text": {
                "width": t.width, "layers": t.layers, "heads": t.heads, "hidden": t.hidden,
            },
        },
        "dataset": {
            "image_size": v.image_size,
            "context": t.context,
            "vocabulary": t.vocabulary,
            "like": like,
        },
    })))
}

/// The folder with the tokenizer of a checkpoint: its own, or that of the data set which a
/// result of this pipeline was trained on.
fn tokenizer_of(checkpoint: &Path) -> Result<PathBuf> {
    if text::FILES.iter().any(|file| checkpoint.join(file).is_file()) {
        return Ok(checkpoint.to_owned());
    }
    if let Some(lineage) = Lineage::of(checkpoint)? {
        return Ok(lineage.dataset);
    }
    let (place, files) = (checkpoint.display(), text::FILES.join(", "));
    Err(Error::usage(format!(
        "pretrain.checkpoint: {place} has no tokenizer ({files}): put the model's own there, \
         or name the folder that has it with dataset.like"
    )))
}

/// The files of `dataset.like` that are read; none where it is empty.
pub fn files(like: &Path) -> Vec<External> {
    if like.as_os_str().is_empty() {
        return Vec::new();
    }
    let file =
        |name: &&str| External { name: format!("like/{name}"), path: like.join(name) };
    let names = [&PREPARATION[..], &[DATASET], &text::FILES[..]].concat();
    names.iter().filter(|name| like.join(name).is_file()).map(file).collect()
}

/// What lets a data set be encoded and normalized as a model's own was.
#[derive(Debug)]
pub struct Adopted {
    /// Its tokenizer, with its cleaning of captions.
    pub tokenizer: Tokenizer,
    /// How its pictures are prepared.
    pub pictures: Preprocessing,
}

impl Adopted {
    /// Reads both from the folder that `dataset.like` names.
    pub fn read(like: &Path) -> Result<Self> {
        let place = || "dataset.like".to_owned();
        let tokenizer = Tokenizer::open(like).context(place)?;
        let tokenizer =
            checkpoint::cleaned(tokenizer, like, &Hints::default()).context(place)?;
        Ok(Self { tokenizer, pictures: pictures(like).context(place)? })
    }
}

/// How pictures are prepared, by our own file, a data set's, or those of other libraries.
fn pictures(like: &Path) -> Result<Preprocessing> {
    let ours = [PREPROCESS, DATASET].map(|file| like.join(file));
    if let Some(path) = ours.iter().find(|path| path.is_file()) {
        return Preprocessing::read(path);
    }
    Preprocessing::of_checkpoint(like)?.ok_or_else(|| {
        let (place, files) = (like.display(), PREPARATION.join(", "));
        Error::usage(format!(
            "{place} does not say how pictures are prepared ({files}): import it with \
             `upcycle-import --from {place} --preprocess openai --out DIR`, or with the file \
             that says it"
        ))
    })
}
