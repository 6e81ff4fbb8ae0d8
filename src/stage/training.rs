//! What `pretrain` and `train` share: batches, the progress bar, validation on `val`.

use std::sync::Arc;

use super::files::Pictures;
use crate::config::OptimConfig;
use crate::data::{BatchSettings, Batches};
use crate::engine::Engine;
use crate::error::Result;
use crate::eval;
use crate::pipeline::{Job, Progress, grouped};
use crate::train::{Trained, Watcher};

/// Number of pictures that a validation embeds at a time.
const VALIDATION_BATCH: usize = 256;

/// The split that choices are made on.
const VALIDATION: &str = "val";

/// The training batches of a run.
pub(super) fn batches(
    pictures: &Pictures,
    optim: &OptimConfig,
    seed: u64,
) -> Result<Arc<Batches>> {
    let split = Arc::new(pictures.dataset.split("train")?);
    let context = pictures.dataset.meta.context;
    let settings =
        BatchSettings { batch: optim.batch, context, seed, augment: optim.augment };
    Ok(Arc::new(Batches::new(split, &pictures.dataset.tokenizer, settings)?))
}

/// Opens the data set for training: the validation split is decoded at once.
pub(super) fn open(job: &Job<'_>) -> Result<Pictures> {
    Pictures::open(super::files::folder(job, "dataset")?, &[VALIDATION])
}

/// Shows the loss and validates.
pub(super) struct Watch<'a> {
    pictures: &'a Pictures,
    progress: Progress,
    started: bool,
    steps: usize,
    /// The loss as the bar shows it: a moving average.
    smooth: Option<f64>,
    /// The latest accuracy on the validation split, from 0 to 1.
    accuracy: Option<f64>,
}

impl<'a> Watch<'a> {
    /// A watcher of a run of `steps` steps.
    pub(super) fn new(pictures: &'a Pictures, progress: Progress, steps: usize) -> Self {
        Self { pictures, progress, started: false, steps, smooth: None, accuracy: None }
    }
}

impl Watcher for Watch<'_> {
    fn resumed(&mut self, done: usize) {
        self.progress.line(&format!("resumed at step {}", grouped(done)));
    }

    fn stepped(&mut self, done: usize, loss: f64) {
        if !self.started {
            self.progress.start(self.steps, "steps");
            self.started = true;
        }

        // About the last twenty steps. Only people see it; the record keeps every loss.
        let smooth = self.smooth.map_or(loss, |before| 0.95 * before + 0.05 * loss);
        self.smooth = Some(smooth);
        self.progress.set(done);

        let accuracy = self.accuracy.map(|a| format!(", val {:.1} %", 100.0 * a));
        self.progress
            .message(format!("loss {smooth:.3}{}", accuracy.unwrap_or_default()));
    }

    fn validate(&mut self, mut engine: &mut dyn Engine) -> Result<Vec<(String, f64)>> {
        let tokenize = |texts: &[String]| self.pictures.tokenize(texts);
        let vocabulary = self.pictures.vocabulary(&tokenize);

        // The role is a type: this split can be used for choices, and a test split cannot.
        let validation = self.pictures.role::<eval::Validation>(VALIDATION)?;
        let batch = VALIDATION_BATCH;
        let metrics = eval::validate(&mut engine, &vocabulary, &validation, batch)?;

        self.accuracy = metrics.first().map(|(_, value)| *value);
        Ok(metrics)
    }
}

/// Writes the model, the tables of its record, and what was measured on the way; on rank 0,
/// whose record is whole.
pub(super) fn write(job: &mut Job<'_>, trained: &Trained) -> Result<()> {
    if !job.ranks.leads() {
        return Ok(());
    }

    let Trained { checkpoint, record, waited, collectives } = trained;
    record.write(|file| job.output(file))?;
    job.draft.metric("loss", record.recent_loss(50));
    job.draft.metric("data_wait_share", *waited);
    if job.ranks.count() > 1 {
        job.draft.metric("ranks", job.ranks.count() as f64);
        job.draft.metric("collective_seconds", *collectives);
    }
    super::files::write_model(job, checkpoint, "model.safetensors")
}
