//! Stage `activations`: FFN inputs of the blocks that will become MoE layers.
//!
//! Writes `<tower>-<layer>.parquet`.

use serde::{Deserialize, Serialize};

use super::files;
use crate::activations::{self, Recording};
use crate::config::ActivationsConfig;
use crate::data::Dataset;
use crate::engine::{self, Engine};
use crate::error::Result;
use crate::model::{Checkpoint, Tower};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::ranks::Ranks;

/// This stage.
pub const STAGE: Stage = Stage {
    name: "activations",
    version: 1,
    width: Width::Shared,
    reach: Reach::Ranks,
    about: "Records the FFN inputs of every layer that becomes a mixture.",
    run,
};

/// Stage `activations`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationsParams {
    /// Section `activations`.
    pub activations: ActivationsConfig,
    /// Blocks of the image tower to record.
    pub vision_blocks: Vec<usize>,
    /// Blocks of the text tower to record.
    pub text_blocks: Vec<usize>,
    /// Seed of this base.
    pub seed: u64,
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let params: ActivationsParams = job.params()?;
    let model = Checkpoint::read(files::folder(job, "pretrain")?, "model.safetensors")?;
    let data = Dataset::open(files::folder(job, "dataset")?)?;

    // Layers are recorded tower by tower, in the order of their blocks.
    let towers =
        [(Tower::Vision, params.vision_blocks), (Tower::Text, params.text_blocks)];
    let layers = towers
        .into_iter()
        .flat_map(|(tower, blocks)| blocks.into_iter().map(move |block| (tower, block)));
    let recording = Recording {
        samples: params.activations.samples,
        tokens_per_sample: params.activations.tokens_per_sample,
        batch: params.activations.batch,
        layers: layers.collect(),
        seed: params.seed,
    };

    let progress = job.progress.clone();
    progress.start(recording.samples, "samples");

    // Rows go to the files as they come: all of them together may not fit into memory.
    let out = job.draft.folder().to_owned();
    let mut engine = engine::open_model(model, files::backend(job)?)?;
    let who: (&mut dyn Engine, &dyn Ranks) = (&mut *engine, &*job.ranks);
    let rows = activations::record(who, &data, &recording, &out, &mut |done| {
        progress.set(done);
    })?;

    for ((tower, layer), rows) in recording.layers.iter().zip(rows) {
        job.draft.metric(&format!("rows_{}_{layer}", tower.name()), rows as f64);
    }
    Ok(())
}
