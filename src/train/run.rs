//! The training loop: batches in, steps, validation through a hook, resumable.

use std::path::PathBuf;
use std::sync::Arc;

use super::ratio;
use super::record::{Facts, Record};
use super::resume;
use super::schedule::Schedule;
use crate::data::{BatchPixels, Batches, Prefetch};
use crate::engine::{self, Backend, Engine, Pairs, Pixels, Training};
use crate::error::{Error, Result};
use crate::model::Checkpoint;

/// Number of batches that are made ahead of the step that uses them.
const AHEAD: usize = 4;

/// What is trained and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Optimization, losses and teacher.
    pub training: Training,
    /// What runs the model.
    pub backend: Backend,
    /// Where checkpoints go; `None` for none.
    pub scratch: Option<PathBuf>,
}

/// What the loop tells the outside, and asks of it.
pub trait Watcher {
    /// Called before the first step of a run that goes on after so many.
    fn resumed(&mut self, done: usize);
    /// Called after each step with the number of steps done and the loss.
    fn stepped(&mut self, done: usize, loss: f64);
    /// Measures the model in training on the validation split.
    fn validate(&mut self, engine: &mut dyn Engine) -> Result<Vec<(String, f64)>>;
}

/// A trained model and what was recorded on the way.
#[derive(Debug)]
pub struct Trained {
    /// The model.
    pub checkpoint: Checkpoint,
    /// The record.
    pub record: Record,
    /// Fraction of the time that the loop waited for data.
    pub waited: f64,
}

/// Trains `start` for the steps of the plan, from the newest checkpoint in `scratch` if there is
/// one. The result has the same bits whether or not the run was interrupted.
pub fn train(
    start: Checkpoint,
    batches: &Arc<Batches>,
    plan: &Plan,
    watcher: &mut dyn Watcher,
) -> Result<Trained> {
    let config = start.config.clone();
    let mut engine = engine::open_model(start, plan.backend)?;
    engine.start_training(&plan.training)?;

    // A run that resumes has its first validation in the record already.
    let scratch = plan.scratch.as_deref();
    let shape = resume::Shape::of(&config, &plan.training);
    let (mut first, mut record) = (0, Record::default());
    if let Some(resumed) = scratch.and_then(|folder| resume::read(folder, shape)) {
        engine.restore(&resumed)?;
        (first, record) = (resumed.steps, resumed.record);
        watcher.resumed(first);
    } else {
        record.validation(0, watcher.validate(&mut *engine)?);
    }

    let optim = &plan.training.optim;
    let schedule = Schedule::new(optim);

    // Batches depend on the seed and their step alone, so the queue may begin anywhere.
    let mut queue = Prefetch::start(Arc::clone(batches), first..optim.steps, AHEAD)?;
    while let Some(batch) = queue.take()? {
        let pixels = match &batch.pixels {
            BatchPixels::Values(values) => Pixels::Values(values),
            BatchPixels::Levels(levels, normalise) => Pixels::Levels(levels, *normalise),
        };
        let pairs = Pairs { pixels, ids: &batch.ids };
        let without =
            ratio::undistilled(&mut *engine, &plan.training, pairs, batch.step)?;
        let losses = engine.step(pairs)?;

        // A loss that is not a number would spoil the weights in the update.
        check_finite(losses.total, batch.step)?;
        let eesd_gradient_ratio = match without {
            Some(without) => ratio::eesd_ratio(&*engine, &without)?,
            None => record.eesd_gradient_ratio(),
        };
        let learning_rate = schedule.at(batch.step);
        let gradient_norm = engine.update(learning_rate)?;

        let done = batch.step + 1;
        let facts = Facts {
            step: batch.step,
            samples: done * optim.batch,
            learning_rate,
            gradient_norm,
            eesd_gradient_ratio,
        };
        record.step(facts, &losses);
        watcher.stepped(done, losses.total);

        if done == optim.steps || is_multiple(done, optim.validate_every) {
            record.validation(done, watcher.validate(&mut *engine)?);
        }

        // After the last step the model itself is written.
        if let Some(folder) = scratch
            && done < optim.steps
            && is_multiple(done, optim.checkpoint_every)
        {
            resume::write(folder, &*engine, shape, (done, &record))?;
        }
    }

    let waited = queue.waited_share();
    let checkpoint = Checkpoint { config, values: engine.into_values()? };
    Ok(Trained { checkpoint, record, waited })
}

/// Refuses a loss that is not a finite number.
fn check_finite(loss: f64, step: usize) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the loss became {loss} in step {step}; a lower learning rate or a longer warm-up \
         usually helps"
    )))
}

/// Whether something that happens every so many steps happens now; 0 means never.
fn is_multiple(done: usize, every: usize) -> bool {
    every > 0 && done.is_multiple_of(every)
}
