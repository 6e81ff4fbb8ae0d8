//! Stage `pretrain`: a dense model, trained from scratch or taken over.
//!
//! Reads the training and validation data; writes `model.safetensors`, `config.json`, and
//! when it trains `log.parquet` and `validation.parquet`.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{files, training};
use crate::checkpoint::{self, Hints};
use crate::config::{Config, ModelConfig, OptimConfig};
use crate::engine::{Objective, Trainable, Training};
use crate::error::{Error, Result};
use crate::model::params::Layout;
use crate::model::{Checkpoint, ClipConfig, TextConfig, VisionConfig, init};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::train;

/// This stage.
pub const STAGE: Stage = Stage {
    name: "pretrain",
    version: 1,
    width: Width::Whole,
    reach: Reach::Ranks,
    about: "Trains the dense model from scratch, or takes over a checkpoint.",
    run,
};

/// Stage `pretrain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum PretrainParams {
    /// Train a dense model from scratch.
    Train {
        /// Section `model`.
        model: ModelConfig,
        /// Section `pretrain.optim`.
        optim: Box<OptimConfig>,
        /// Seed of this base.
        seed: u64,
    },
    /// Take over the checkpoint at `path("checkpoint")`.
    Import {},
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    match job.params()? {
        PretrainParams::Train { model, optim, seed } => {
            train_dense(job, &model, *optim, seed)
        }
        // There is nothing in it for other ranks to do.
        PretrainParams::Import {} if job.ranks.leads() => take_over(job),
        PretrainParams::Import {} => Ok(()),
    }
}

/// Trains a dense model with the contrastive loss alone.
fn train_dense(
    job: &mut Job<'_>,
    model: &ModelConfig,
    optim: OptimConfig,
    seed: u64,
) -> Result<()> {
    // The data decide the sizes that they have: of pictures, captions and the vocabulary.
    let pictures = training::open(job)?;
    let data = &pictures.dataset.meta;
    let config = shape(model, [data.image_size, data.context, data.vocabulary]);
    let batches = training::batches(&pictures, &optim, seed)?;

    let steps = optim.steps;
    let training = Training {
        optim,
        trainable: Trainable::all(&config),
        objective: Objective::default(),
        teacher: None,
    };
    let backend = files::backend(job)?;
    let scratch = Some(job.draft.scratch()?);
    let plan = train::Plan { training, backend, scratch, ranks: Arc::clone(&job.ranks) };

    let mut watch = training::Watch::new(&pictures, job.progress.clone(), steps);
    let start = init::dense(&config, seed);
    let trained = train::train(start, &batches, &plan, &mut watch)?;

    job.draft.metric("parameters", trained.checkpoint.values.len() as f64);
    training::write(job, &trained)
}

/// The dense architecture: the configuration's towers over the picture size, the context and
/// the vocabulary of the data.
pub(crate) fn shape(model: &ModelConfig, data: [usize; 3]) -> ClipConfig {
    let [image_size, context, vocabulary] = data;
    let (v, t) = (&model.vision, &model.text);

    ClipConfig {
        embed_dim: model.embed_dim,
        activation: model.activation,
        vision: VisionConfig {
            image_size,
            patch: v.patch,
            width: v.width,
            layers: v.layers,
            heads: v.heads,
            hidden: v.hidden,
        },
        text: TextConfig {
            context,
            vocabulary,
            width: t.width,
            layers: t.layers,
            heads: t.heads,
            hidden: t.hidden,
        },
        moe: None,
    }
}

/// Writes a published model as one of ours.
fn take_over(job: &Job<'_>) -> Result<()> {
    let (config, tensors) =
        checkpoint::import(job.path("checkpoint")?, &Hints::default())?;

    // Tokens and pictures of the data set must be what the model was trained on.
    let pictures = training::open(job)?;
    let data = &pictures.dataset.meta;
    for (what, model, found) in [
        ("picture size", config.vision.image_size, data.image_size),
        ("context", config.text.context, data.context),
        ("vocabulary", config.text.vocabulary, data.vocabulary),
    ] {
        if model != found {
            return Err(Error::usage(format!(
                "pretrain.checkpoint: the model has {what} {model}, the data set {found}; set the \
                 data set's to the model's"
            )));
        }
    }

    let values = Layout::new(&config).flatten(&config, &tensors)?;
    files::write_model(job, &Checkpoint { config, values }, "model.safetensors")
}

/// The dense model's shape: the checkpoint's if one is given and there, else the
/// configuration's.
pub(crate) fn dense(config: &Config) -> Result<ClipConfig> {
    let data = &config.dataset;
    let data = [data.image_size, data.context, data.vocabulary];
    let own = shape(&config.model, data);

    // A folder that is not there yet is missed when the stage runs, with a better message.
    let folder = Path::new(&config.pretrain.checkpoint);
    if config.pretrain.checkpoint.is_empty() || !folder.is_dir() {
        return Ok(own);
    }

    let given = checkpoint::shape(folder, &Hints::default())?;
    refuse_others(&own, &given)?;
    Ok(given)
}

/// A checkpoint must be the model that the configuration describes: blocks are planned from
/// the latter. The vocabulary is that of the data and compared when both are there.
fn refuse_others(own: &ClipConfig, given: &ClipConfig) -> Result<()> {
    let (v, t) = ((&own.vision, &given.vision), (&own.text, &given.text));

    // The message is ready to be typed behind --set.
    let mut keys: Vec<String> = [
        ("model.embed_dim", own.embed_dim, given.embed_dim),
        ("model.vision.patch", v.0.patch, v.1.patch),
        ("model.vision.width", v.0.width, v.1.width),
        ("model.vision.layers", v.0.layers, v.1.layers),
        ("model.vision.heads", v.0.heads, v.1.heads),
        ("model.vision.hidden", v.0.hidden, v.1.hidden),
        ("model.text.width", t.0.width, t.1.width),
        ("model.text.layers", t.0.layers, t.1.layers),
        ("model.text.heads", t.0.heads, t.1.heads),
        ("model.text.hidden", t.0.hidden, t.1.hidden),
        ("dataset.image_size", v.0.image_size, v.1.image_size),
        ("dataset.context", t.0.context, t.1.context),
    ]
    .into_iter()
    .filter(|(_, own, given)| own != given)
    .map(|(key, _, given)| format!("{key}={given}"))
    .collect();

    if own.activation != given.activation {
        keys.push(format!("model.activation={}", given.activation.name()));
    }
    if keys.is_empty() {
        return Ok(());
    }

    let keys = keys.join(" ");
    Err(Error::usage(format!(
        "pretrain.checkpoint is another model than the configuration says; leave these keys \
         out, because the checkpoint says them, or set: {keys}"
    )))
}
