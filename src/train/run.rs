//! The training loop: batches in, steps, validation through a hook, resumable.

use std::path::PathBuf;
use std::sync::Arc;

use super::record::{Facts, Record};
use super::resume::State;
use super::schedule::Schedule;
use super::{Distiller, Objective, Stepper};
use crate::config::{EesdTarget, OptimConfig};
use crate::data::{Batches, Prefetch};
use crate::engine::cpu::clip::{Clip, Engine, Pairs};
use crate::engine::cpu::optim::{AdamW, Average};
use crate::error::{Error, Result};
use crate::model::low_rank::LowRank;
use crate::model::names::Place;
use crate::model::params::Layout;
use crate::model::{Checkpoint, ClipConfig};

/// Batches made ahead.
const AHEAD: usize = 4;

/// What is trained and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Optimisation.
    pub optim: OptimConfig,
    /// Weights of the auxiliary losses.
    pub objective: Objective,
    /// The teacher, if the objective distils.
    pub teacher: Option<TeacherPlan>,
    /// Where checkpoints go; `None` for none.
    pub scratch: Option<PathBuf>,
}

/// How the EMA teacher works.
#[derive(Debug, Clone, Copy)]
pub struct TeacherPlan {
    /// What is distilled.
    pub target: EesdTarget,
    /// Share of tokens of `target: layer`.
    pub share: f64,
    /// Decay of the EMA.
    pub decay: f64,
}

/// What the loop tells the outside, and asks of it.
pub trait Watcher {
    /// Called after each step with the number of steps done and the loss.
    fn stepped(&mut self, done: usize, loss: f64);
    /// Measures a model on the validation split.
    fn validate(&mut self, clip: &Clip, values: &[f32]) -> Result<Vec<(String, f64)>>;
}

/// A trained model and what was recorded on the way.
#[derive(Debug)]
pub struct Trained {
    /// The model.
    pub checkpoint: Checkpoint,
    /// The record.
    pub record: Record,
    /// Share of the time the loop waited for data.
    pub waited: f64,
}

/// Trains `start` for `plan.optim.steps` steps.
pub fn train(
    start: Checkpoint,
    batches: &Arc<Batches>,
    plan: &Plan,
    watcher: &mut dyn Watcher,
) -> Result<Trained> {
    let Checkpoint { config, values } = start;
    let layout = Layout::new(&config);
    let mut model = Model::new(&config, &values);
    let clip = Clip::new(&config.merged());
    let ranges = layout.iter().map(|(p, range)| (range, p.role.decays())).collect();
    let averaging = plan.teacher.map(|teacher| averaging(clip.config(), teacher));
    let average =
        averaging.as_ref().map(|following| following.start(model.values(&values)));
    let optimiser = AdamW::new(ranges);
    let mut state = State { values, optimiser, average, record: Record::default() };
    let resumed = plan.scratch.as_ref().is_some_and(|scratch| state.restore(scratch));
    if resumed {
        model.merge(&state.values);
    } else {
        let metrics = watcher.validate(&clip, model.values(&state.values))?;
        state.record.validation(0, metrics);
    }
    let mut stepper = Stepper::new(Engine::new(clip));
    let mut gradients = vec![0.0; model.values(&state.values).len()];
    let schedule = Schedule::new(&plan.optim);
    let steps = plan.optim.steps;
    let scale_at = layout.range(Place::LogitScale).start;
    let first = state.optimiser.steps;
    let mut queue = Prefetch::start(Arc::clone(batches), first..steps, AHEAD)?;
    while let Some(batch) = queue.take()? {
        let pairs = Pairs { pixels: &batch.pixels, ids: &batch.ids };
        let logit_scale = f64::from(state.values[scale_at]);
        let distiller = distiller(plan, state.average.as_deref());
        let losses = stepper.run(
            (model.values(&state.values), &mut gradients),
            pairs,
            &plan.objective,
            distiller,
        );
        let done = batch.step + 1;
        check_finite(losses.total, batch.step)?;
        let learning_rate = schedule.at(batch.step);
        let gradients = model.pull_back(&state.values, &gradients);
        let norm = state.optimiser.step(
            &mut state.values,
            gradients,
            learning_rate,
            &plan.optim,
        );
        // METHOD §4: the scale stays between 1 and 100.
        state.values[scale_at] = state.values[scale_at].clamp(0.0, 100.0_f32.ln());
        model.merge(&state.values);
        let values = model.values(&state.values);
        if let (Some(averaging), Some(average)) = (&averaging, &mut state.average) {
            averaging.step(average, values);
        }
        let facts = Facts {
            step: batch.step,
            samples: done * plan.optim.batch,
            learning_rate,
            gradient_norm: norm,
            logit_scale,
        };
        state.record.step(facts, &losses);
        watcher.stepped(done, losses.total);
        if done == steps || is_multiple(done, plan.optim.validate_every) {
            let metrics = watcher.validate(stepper.engine().clip(), values)?;
            state.record.validation(done, metrics);
        }
        if let Some(scratch) = &plan.scratch
            && done < steps
            && is_multiple(done, plan.optim.checkpoint_every)
        {
            state.save(scratch)?;
        }
    }
    let waited = queue.waited_share();
    let checkpoint = Checkpoint { config, values: state.values };
    Ok(Trained { checkpoint, record: state.record, waited })
}

fn check_finite(loss: f64, step: usize) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    Err(Error::failed(format!("the loss became {loss} in step {step}")))
}

/// The parameters as the engine wants them: the trained ones themselves, or merged from them
/// where they are of low rank.
struct Model {
    form: Option<LowRank>,
    merged: Vec<f32>,
    pulled: Vec<f32>,
}

impl Model {
    fn new(config: &ClipConfig, values: &[f32]) -> Self {
        let form = LowRank::of(config);
        let merged = vec![0.0; form.as_ref().map_or(0, LowRank::merged_len)];
        let pulled = vec![0.0; if form.is_some() { values.len() } else { 0 }];
        let mut model = Self { form, merged, pulled };
        model.merge(values);
        model
    }

    /// To be called whenever the trained values have changed.
    fn merge(&mut self, trained: &[f32]) {
        if let Some(form) = &self.form {
            form.merge(trained, &mut self.merged);
        }
    }

    fn values<'a>(&'a self, trained: &'a [f32]) -> &'a [f32] {
        if self.form.is_some() { &self.merged } else { trained }
    }

    fn pull_back<'a>(&'a mut self, trained: &[f32], gradients: &'a [f32]) -> &'a [f32] {
        let Some(form) = &self.form else { return gradients };
        form.pull_back(trained, gradients, &mut self.pulled);
        &self.pulled
    }
}

fn is_multiple(done: usize, every: usize) -> bool {
    every > 0 && done.is_multiple_of(every)
}

/// What the EMA follows: routers and experts, or everything if embeddings are distilled;
/// the rest of the teacher is never used.
pub fn averaging(config: &ClipConfig, teacher: TeacherPlan) -> Average {
    let layout = Layout::new(config);
    let whole = teacher.target == EesdTarget::Embedding;
    let own = layout.iter().filter(|(p, _)| whole || p.place.is_moe());
    Average::new(own.map(|(_, range)| range), teacher.decay)
}

fn distiller<'a>(plan: &Plan, average: Option<&'a [f32]>) -> Distiller<'a> {
    match (&plan.teacher, average) {
        (Some(teacher), Some(average)) => match teacher.target {
            EesdTarget::Layer => Distiller::Layers(average, teacher.share),
            EesdTarget::Embedding => Distiller::Embeddings(average),
        },
        _ => Distiller::None,
    }
}
