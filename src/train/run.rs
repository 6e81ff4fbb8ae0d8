//! The training loop: batches in, steps, validation through a hook, resumable.
//!
//! The loop is the same on one rank and on several. Every rank makes its own part of a batch
//! and takes every step; what is told, measured and kept comes from rank 0. Bits do not depend
//! on the number of ranks, and a run may be resumed on another number.

use std::path::PathBuf;
use std::sync::Arc;

use super::ratio;
use super::record::{Facts, Record};
use super::resume;
use super::schedule::Schedule;
use super::similarity::similarities;
use crate::config::OptimConfig;
use crate::data::{Batches, Prefetch, Share};
use crate::engine::{self, Backend, Engine, Pairs, Training};
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::ranks::Ranks;

/// Number of batches that are made ahead of the step that uses them.
const AHEAD: usize = 4;

/// Pairs of a group, the smallest unit of every sum: no two ranks share one.
const GROUP: usize = 16;

/// What is trained and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Optimization, losses and teacher.
    pub training: Training,
    /// What runs the model.
    pub backend: Backend,
    /// Where checkpoints go, a folder that all ranks see; `None` for none.
    pub scratch: Option<PathBuf>,
    /// Who trains together.
    pub ranks: Arc<dyn Ranks>,
}

/// What the loop tells the outside, and asks of it.
pub trait Watcher {
    /// Called before the first step of a run that goes on after so many.
    fn resumed(&mut self, done: usize);
    /// Called after each step with the number of steps done and the loss.
    fn stepped(&mut self, done: usize, loss: f64);
    /// Measures the model in training on the validation split; on rank 0 alone.
    fn validate(&mut self, engine: &mut dyn Engine) -> Result<Vec<(String, f64)>>;
}

/// A trained model and what was recorded on the way; the record is whole on rank 0.
#[derive(Debug)]
pub struct Trained {
    /// The model.
    pub checkpoint: Checkpoint,
    /// The record.
    pub record: Record,
    /// Fraction of the time that the loop waited for data.
    pub waited: f64,
    /// Seconds that this rank spent in collectives.
    pub collectives: f64,
}

/// Trains `start` for the steps of the plan, from the newest checkpoint in `scratch` if there is
/// one. The result has the same bits whether or not the run was interrupted, and on any number
/// of ranks.
pub fn train(
    start: Checkpoint,
    batches: &Arc<Batches>,
    plan: &Plan,
    watcher: &mut dyn Watcher,
) -> Result<Trained> {
    let ranks = &*plan.ranks;
    let leads = ranks.leads();
    // All ranks would find the same: the first says it once, while the others wait for it.
    if leads {
        check_cut(&plan.training.optim, plan.backend, ranks.count())?;
    }
    let before = ranks.spent();

    let config = start.config.clone();
    let mut engine = engine::open_model(start, plan.backend)?;
    engine.join(Arc::clone(&plan.ranks))?;
    engine.start_training(&plan.training)?;

    // A run that resumes has its first validation in the record already.
    let scratch = plan.scratch.as_deref();
    let shape = resume::Shape::of(&config, &plan.training);
    let (mut first, mut record) = (0, Record::default());
    let resumed = scratch.and_then(|folder| resume::read(folder, shape));
    agree(ranks, resumed.as_ref().map_or(0, |resumed| resumed.steps))?;
    if let Some(resumed) = resumed {
        engine.restore(&resumed)?;
        (first, record) = (resumed.steps, resumed.record);
        watcher.resumed(first);
    } else if leads {
        look(&mut record, 0, &mut *engine, watcher)?;
    }

    let optim = &plan.training.optim;
    let schedule = Schedule::new(optim);

    // Batches depend on the seed and their step alone, so the queue may begin anywhere.
    let share = Share { rank: ranks.rank(), count: ranks.count() };
    let parts = (Arc::clone(batches), share);
    let mut queue = Prefetch::start(parts, first..optim.steps, AHEAD)?;
    while let Some(batch) = queue.take()? {
        ranks.enter(&format!("step {}", batch.step));
        let pairs = Pairs { pixels: batch.pixels.view(), ids: &batch.ids };
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

        if leads && (done == optim.steps || is_multiple(done, optim.validate_every)) {
            look(&mut record, done, &mut *engine, watcher)?;
        }

        // After the last step the model itself is written.
        if let Some(folder) = scratch
            && done < optim.steps
            && is_multiple(done, optim.checkpoint_every)
        {
            ranks.enter(&format!("the checkpoint after step {}", batch.step));
            let state = (&*engine, shape);
            if leads {
                resume::write(folder, state, (done, &record))?;
            } else {
                resume::serve(state)?;
            }
        }
    }

    let waited = queue.waited_share();
    let checkpoint = Checkpoint { config, values: engine.into_values()? };
    let collectives = ranks.spent().as_secs_f64() - before.as_secs_f64();
    Ok(Trained { checkpoint, record, waited, collectives })
}

/// Records what the model has become after `done` steps.
fn look(
    record: &mut Record,
    done: usize,
    engine: &mut dyn Engine,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    record.validation(done, watcher.validate(engine)?);
    record.similarity(done, similarities(engine)?);
    Ok(())
}

/// Refuses a batch that ranks cannot share evenly, in groups or in what their engine adds up.
fn check_cut(optim: &OptimConfig, backend: Backend, ranks: usize) -> Result<()> {
    let batch = optim.batch;
    if ranks > 1 && !batch.is_multiple_of(GROUP * ranks) {
        let expected = GROUP * ranks;
        return Err(Error::usage(format!(
            "optim.batch: found {batch} pairs, which {ranks} ranks cannot share evenly in groups \
             of {GROUP}; expected a multiple of {expected}, or fewer ranks"
        )));
    }
    backend.check_share(optim, ranks)
}

/// Refuses ranks that found checkpoints of different steps.
fn agree(ranks: &dyn Ranks, steps: usize) -> Result<()> {
    ranks.enter("the start of the training");
    let mut all = vec![0; ranks.count()];
    ranks.gather(&[steps as u64], &mut all)?;
    match all.iter().position(|found| *found != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::failed(format!(
            "rank {rank} found a checkpoint after {} steps, rank 0 one after {}; all ranks must \
             see the same files: put --artifacts on a shared file system",
            all[rank], all[0]
        ))),
    }
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
