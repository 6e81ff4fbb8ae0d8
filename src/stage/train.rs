//! Stage `train`: training of the upcycled models.
//!
//! Writes `model.safetensors`, `init.safetensors`, `config.json`, `log.parquet`,
//! `validation.parquet` and, for MoE models, `routing.parquet` and `similarity.parquet`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{files, training};
use crate::config::{TrainConfig, Trains};
use crate::engine::{Objective, TeacherPlan, Trainable, Training};
use crate::error::Result;
use crate::model::names::{ParameterId, Part};
use crate::model::{Checkpoint, ClipConfig};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::train;

/// This stage.
pub const STAGE: Stage = Stage {
    name: "train",
    version: 1,
    width: Width::Shared,
    reach: Reach::Ranks,
    about: "Trains the upcycled models.",
    run,
};

/// Stage `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainParams {
    /// Section `train`.
    pub train: TrainConfig,
    /// λ of EESD in this run.
    pub eesd: f64,
    /// Which tensors train.
    #[serde(default, skip_serializing_if = "Trains::is_all")]
    pub trains: Trains,
    /// Seed of this run.
    pub seed: u64,
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let TrainParams { train, eesd, trains, seed } = job.params()?;
    let pictures = training::open(job)?;
    let start =
        Checkpoint::read_as_kept(files::folder(job, "upcycle")?, "model.safetensors")?;

    // Another order than the dense model saw, the same for every run of a seed.
    let batches = training::batches(&pictures, &train.optim, order_seed(seed))?;
    let steps = train.optim.steps;

    // The dense model of the comparison has no experts that could teach.
    let distills = start.config.moe.is_some() && eesd > 0.0;
    let teacher = TeacherPlan {
        target: train.eesd.target,
        fraction: train.eesd.tokens,
        decay: train.eesd.decay_over(steps),
    };

    let training = Training {
        trainable: trainable(&start.config, trains),
        objective: Objective {
            balance: train.balance,
            router_z: train.router_z,
            eesd,
            label_smoothing: 0.0,
        },
        optim: train.optim,
        teacher: distills.then_some(teacher),
    };
    let backend = files::backend(job)?;
    let scratch = Some(job.draft.scratch()?);
    let plan = train::Plan { training, backend, scratch, ranks: Arc::clone(&job.ranks) };

    // The start is kept beside the end, because evaluation and analysis compare the two.
    if job.ranks.leads() {
        files::write_model(job, &start, "init.safetensors")?;
    }
    let mut watch = training::Watch::new(&pictures, job.progress.clone(), steps);
    let trained = train::train(start, &batches, &plan, &mut watch)?;

    let (total, active) = trained.checkpoint.counts();
    job.draft.metric("parameters_total", total as f64);
    job.draft.metric("parameters_active", active as f64);
    training::write(job, &trained)
}

/// One entry per tensor of the model.
fn trainable(config: &ClipConfig, trains: Trains) -> Vec<Trainable> {
    match trains {
        Trains::All => Trainable::all(config),
        Trains::Routers => Trainable::only(config, |id| {
            matches!(id, ParameterId::Block(_, _, Part::Router))
        }),
    }
}

/// The seed of the order of batches.
fn order_seed(seed: u64) -> u64 {
    use crate::rng::RngExt;
    crate::rng::stream(seed, "train/order").random()
}
