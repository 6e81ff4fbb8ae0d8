//! Stage `pretrain`: a dense model, trained from scratch or taken over.
//!
//! Reads the training and validation data; writes `model.safetensors`, `config.json`, and
//! when it trains `log.parquet` and `validation.parquet`.

use super::params::PretrainParams;
use super::{Job, Stage, Width, files, training};
use crate::config::{ModelConfig, OptimConfig};
use crate::error::{Error, Result};
use crate::model::params::Layout;
use crate::model::{Checkpoint, ClipConfig, TextConfig, VisionConfig, import, init};
use crate::train::{self, Objective};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "pretrain",
    version: 1,
    width: Width::Whole,
    about: "Trains the dense model from scratch, or takes over a checkpoint.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    match job.params()? {
        PretrainParams::Train { model, optim, seed } => {
            train_dense(job, &model, optim, seed)
        }
        PretrainParams::Import {} => take_over(job),
    }
}

fn train_dense(
    job: &mut Job<'_>,
    model: &ModelConfig,
    optim: OptimConfig,
    seed: u64,
) -> Result<()> {
    let pictures = training::open(job)?;
    let data = &pictures.dataset.meta;
    let config = shape(model, [data.image_size, data.context, data.vocabulary]);
    let batches = training::batches(&pictures, &optim, seed)?;
    let steps = optim.steps;
    let plan = train::Plan {
        optim,
        objective: Objective::default(),
        teacher: None,
        scratch: Some(job.draft.scratch()?),
    };
    let mut watch = training::Watch::new(&pictures, job.progress.clone(), steps);
    let start = init::dense(&config, seed);
    let trained = train::train(start, &batches, &plan, &mut watch)?;
    job.draft.metric("parameters", trained.checkpoint.values.len() as f64);
    job.draft.metric("data_wait_share", trained.waited);
    training::write_record(job, &trained.record)?;
    files::write_model(job, &trained.checkpoint, "model.safetensors")
}

/// The dense architecture: the configuration's towers over the picture size, the context and
/// the vocabulary of the data.
pub(super) fn shape(model: &ModelConfig, data: [usize; 3]) -> ClipConfig {
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

fn take_over(job: &Job<'_>) -> Result<()> {
    let (config, tensors) = import::import(job.path("checkpoint")?, None)?;
    let pictures = training::open(job)?;
    let data = &pictures.dataset.meta;
    for (what, model, found) in [
        ("picture size", config.vision.image_size, data.image_size),
        ("context", config.text.context, data.context),
        ("vocabulary", config.text.vocabulary, data.vocabulary),
    ] {
        if model != found {
            return Err(Error::usage(format!(
                "pretrain.checkpoint: {what} of the model is {model}, of the data set {found}"
            )));
        }
    }
    let values = Layout::new(&config).flatten(&config, &tensors)?;
    files::write_model(job, &Checkpoint { config, values }, "model.safetensors")
}
