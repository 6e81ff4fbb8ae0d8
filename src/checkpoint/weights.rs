//! Tensors from foreign files: safetensors of any float type, shards, and PyTorch's files.
//!
//! Marks that wrappers leave in names are taken off, and buffers that are not weights are left
//! out. Both follow short lists, and everything else is kept for the accounting in
//! [`super::layout`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::tensor::SafeTensors;

use super::torch::{self, Named};
use crate::error::{Context, Error, Result};
use crate::io::foreign;
use crate::io::hostile::check_names;
use crate::io::tensors::{Tensor, Tensors};

/// Parts of names that wrappers leave anywhere in them: `DistributedDataParallel` and
/// `DataParallel`, `torch.compile`, FSDP, activation checkpointing, and Lightning's Fabric.
const MARKS: [&str; 5] = [
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// Tensors that every image tower has; what stands before them in a name is the attribute
/// under which a wrapper, such as Lightning's module, keeps the model.
const ANCHORS: [&str; 2] =
    ["visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"];

/// What `CustomTextCLIP` puts before the text tower's names.
const CUSTOM_TEXT: &str = "text.";

/// Entries that are not weights: three scalars of `OpenAI`'s archives, the causal mask, and
/// Hugging Face's old buffers 0, 1, 2, ..
const IGNORED: [&str; 6] = [
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
];

/// Reads a file of weights by its extension.
pub(super) fn read(path: &Path) -> Result<Tensors> {
    let named = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => read_shards(path)?,
        Some("safetensors") => read_safetensors(path)?,
        Some("pt" | "pth" | "bin" | "ckpt") => torch::read(path, &is_weight)?,
        _ => {
            let place = path.display();
            return Err(Error::usage(format!(
                "{place} is not a checkpoint: expected a name that ends in .safetensors, .pt, \
                 .pth, .bin, .ckpt or .index.json"
            )));
        }
    };
    own_names(path, named)
}

/// The name without the marks of wrappers.
fn unmarked(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !MARKS.contains(part)).collect();
    parts.join(".")
}

/// Whether a name is that of a weight, and not that of a buffer on the list.
fn is_weight(name: &str) -> bool {
    let name = unmarked(name);
    // A wrapper's prefix may stand before it, but not half a word.
    let ignored = |entry: &str| {
        name.strip_suffix(entry)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !IGNORED.iter().any(|entry| ignored(entry))
}

/// Gives tensors the names that `open_clip` or Hugging Face would have saved.
///
/// Refuses a second tensor of a name, values that are not finite, and several models in one
/// file.
fn own_names(path: &Path, named: Named) -> Result<Tensors> {
    let place = path.display();
    let prefix = prefix(path, &named)?;

    let mut tensors = Tensors::new();
    for (name, tensor) in named {
        if let Some(value) = tensor.data.iter().find(|value| !value.is_finite()) {
            return Err(Error::corrupt(format!(
                "{place}: tensor {name} holds {value} as f32"
            )));
        }

        // Marks may stand before the prefix, inside of it and behind it, so they go first.
        let unmarked = unmarked(&name);
        let own = unmarked.strip_prefix(&prefix).unwrap_or(&unmarked);
        let own = own.strip_prefix(CUSTOM_TEXT).unwrap_or(own).to_owned();
        if tensors.contains_key(&own) {
            return Err(Error::corrupt(format!(
                "{place}: tensor {own} is there twice; the second time as {name}"
            )));
        }
        tensors.insert(own, tensor);
    }
    Ok(tensors)
}

/// What stands before the names of the model's tensors, with its dot.
fn prefix(path: &Path, named: &Named) -> Result<String> {
    let found: BTreeSet<String> = named
        .iter()
        .map(|(name, _)| unmarked(name))
        .filter_map(|name| {
            let rest = ANCHORS.iter().find_map(|anchor| name.strip_suffix(anchor))?;
            (rest.is_empty() || rest.ends_with('.')).then(|| rest.to_owned())
        })
        .collect();

    // A model without a wrapper is meant, whatever else lies beside it.
    if found.len() > 1 && !found.contains("") {
        let (place, found) = (path.display(), Vec::from_iter(found).join(", "));
        return Err(Error::failed(format!(
            "{place} holds several models, whose names begin with {found}; save the one that \
             you mean by itself"
        )));
    }
    Ok(found.into_iter().next().unwrap_or_default())
}

/// Reads the weights of one safetensors file of any float type.
fn read_safetensors(path: &Path) -> Result<Named> {
    let place = path.display();
    let bytes = std::fs::read(path).context(|| format!("reading {place}"))?;

    // The safetensors crate keeps one of two tensors of the same name without a word.
    check_names(&bytes).context(|| format!("reading {place}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| {
        Error::corrupt(format!("{place} is not a safetensors file")).caused_by(e)
    })?;

    let mut named = Named::new();
    for (name, view) in file.tensors() {
        if !is_weight(&name) {
            continue;
        }
        let data = foreign::floats(&view).ok_or_else(|| {
            let found = view.dtype();
            Error::failed(format!(
                "{place}: tensor {name} has type {found:?}, expected F16, BF16, F32 or F64"
            ))
        })?;
        named.push((name, Tensor::new(view.shape().to_vec(), data)?));
    }
    Ok(named)
}

/// Hugging Face's index of shards: `weight_map` says which file holds which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads the shards that an index names, and checks that they hold exactly what it says.
fn read_shards(path: &Path) -> Result<Named> {
    let place = path.display();
    let text = std::fs::read_to_string(path).context(|| format!("reading {place}"))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| {
        Error::corrupt(format!("{place} is not an index of shards")).caused_by(e)
    })?;

    let mut named = Named::new();
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    for shard in shards {
        // A shard lies beside its index: a name that leads elsewhere is an attack.
        if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
            return Err(Error::corrupt(format!(
                "{place}: {shard} is not a plain file name"
            )));
        }
        named.extend(read_safetensors(&path.with_file_name(shard))?);
    }

    // A shard of another model with the right name would otherwise go unnoticed.
    let listed: BTreeSet<&str> = index
        .weight_map
        .keys()
        .map(String::as_str)
        .filter(|name| is_weight(name))
        .collect();

    let found: BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    let differing: Vec<&str> = listed.symmetric_difference(&found).copied().collect();
    if differing.is_empty() {
        Ok(named)
    } else {
        let names = differing.join(", ");
        Err(Error::corrupt(format!("{place} and its shards disagree about {names}")))
    }
}
