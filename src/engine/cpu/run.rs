//! A training run: gradient, optimizer and teacher beside the weights.

use std::ops::Range;

use super::clip::Clip;
use super::optim::{AdamW, Average};
use super::step::{Distillation, Request, Step};
use super::tower::Flat;
use super::weights::Weights;
use crate::config::EesdTarget;
use crate::engine::{Losses, Pairs, TeacherPlan, Trainable, Training, TrainingState};
use crate::error::{Error, Result};
use crate::model::ClipConfig;
use crate::model::names::ParameterId;
use crate::model::params::Layout;

/// The logarithm of the largest logit scale; the smallest is 0 (METHOD §4).
fn largest_scale() -> f32 {
    100.0_f32.ln()
}

/// Everything that a run keeps besides the weights.
#[derive(Debug)]
pub(super) struct Run {
    training: Training,
    optimizer: AdamW,
    teacher: Option<Teacher>,
    step: Step,
    /// The gradient with respect to whole experts.
    gradient: Vec<f32>,
    /// The gradient with respect to experts of low rank; empty where experts train whole.
    low_rank_gradient: Vec<f32>,
    is_low_rank: bool,
    /// Ranges of the frozen tensors.
    frozen: Vec<Range<usize>>,
    /// The logit scale, where it trains.
    scale: Option<usize>,
    /// Whether there is a gradient that no update has used.
    ready: bool,
}

/// The EMA of the weights.
#[derive(Debug)]
struct Teacher {
    plan: TeacherPlan,
    average: Average,
    values: Vec<f32>,
}

impl Run {
    /// A run that starts at the weights as they are.
    pub(super) fn new(
        clip: &Clip,
        weights: &Weights,
        config: &ClipConfig,
        training: &Training,
    ) -> Result<Self> {
        let whole = weights.whole()?;
        let layout = Layout::new(config);
        let (found, expected) = (training.trainable.len(), layout.iter().count());
        if found != expected {
            return Err(Error::failed(format!(
                "training was given {found} entries of `trainable`, expected {expected}, one \
                 per tensor of the model"
            )));
        }

        let trainable = layout.iter().zip(&training.trainable);
        let ranges: Vec<_> = trainable.map(|((_, range), t)| (range, *t)).collect();
        let is_frozen = |(range, t): &(Range<usize>, Trainable)| {
            (*t == Trainable::Frozen).then(|| range.clone())
        };
        let frozen: Vec<Range<usize>> = ranges.iter().filter_map(is_frozen).collect();

        let scale = layout.range(ParameterId::LogitScale).start;
        let teacher = training.teacher.map(|plan| {
            let average = followed(clip.config(), plan);
            Teacher { plan, values: average.start(whole), average }
        });

        Ok(Self {
            scale: (!frozen.iter().any(|range| range.contains(&scale))).then_some(scale),
            optimizer: AdamW::new(ranges),
            teacher,
            step: Step::new(),
            gradient: vec![0.0; whole.len()],
            low_rank_gradient: Vec::new(),
            is_low_rank: weights.is_low_rank(),
            frozen,
            training: training.clone(),
            ready: false,
        })
    }

    /// Losses and gradient of a batch.
    pub(super) fn step(
        &mut self,
        clip: &Clip,
        weights: &Weights,
        pairs: Pairs<'_>,
    ) -> Result<Losses> {
        check(clip, pairs)?;
        let distillation = match &self.teacher {
            Some(Teacher { plan, values, .. }) => match plan.target {
                EesdTarget::Layer => {
                    Distillation::Layers { teacher: values, fraction: plan.fraction }
                }
                EesdTarget::Embedding => Distillation::Embeddings { teacher: values },
            },
            None => Distillation::None,
        };

        let request = Request {
            pairs,
            objective: self.training.objective,
            distillation,
            micro_batch: self.training.optim.micro_batch,
        };
        let mut flat = Flat { values: weights.whole()?, gradients: &mut self.gradient };
        let losses = self.step.run(clip, &mut flat, &request);

        // Frozen tensors have no part in the gradient, and so none in the norm that
        // clips.
        let gradient = weights.pull_back(&mut self.gradient, &mut self.low_rank_gradient);
        for range in &self.frozen {
            gradient[range.clone()].fill(0.0);
        }
        self.ready = true;
        Ok(losses)
    }

    /// One step of the optimizer and of the teacher; the norm of the gradient comes back.
    pub(super) fn update(
        &mut self,
        weights: &mut Weights,
        learning_rate: f64,
    ) -> Result<f64> {
        self.gradient()?;

        // A gradient serves one update: using it twice would be a step that no batch
        // asked for.
        self.ready = false;
        let gradient =
            if self.is_low_rank { &self.low_rank_gradient } else { &self.gradient };

        let (optimizer, optim) = (&mut self.optimizer, &self.training.optim);
        let norm = weights.change(|values| {
            let norm = optimizer.step(values, gradient, learning_rate, optim);
            if let Some(scale) = self.scale {
                values[scale] = values[scale].clamp(0.0, largest_scale());
            }
            norm
        });

        if let Some(Teacher { average, values, .. }) = &mut self.teacher {
            average.step(values, weights.whole()?);
        }
        Ok(norm)
    }

    /// The gradient of the last step.
    pub(super) fn gradient(&self) -> Result<&[f32]> {
        if !self.ready {
            return Err(Error::failed("there is no gradient: call step first"));
        }
        Ok(if self.is_low_rank { &self.low_rank_gradient } else { &self.gradient })
    }

    pub(super) fn first(&self) -> &[f32] {
        &self.optimizer.first
    }

    pub(super) fn second(&self) -> &[f32] {
        &self.optimizer.second
    }

    pub(super) fn average(&self) -> Option<&[f32]> {
        self.teacher.as_ref().map(|teacher| teacher.values.as_slice())
    }

    /// A copy of the run's whole state.
    pub(super) fn state(&self, weights: &Weights) -> Result<TrainingState> {
        Ok(TrainingState {
            values: weights.kept()?.to_vec(),
            first: self.first().to_vec(),
            second: self.second().to_vec(),
            average: self.average().map(<[f32]>::to_vec),
            steps: self.optimizer.steps,
        })
    }

    /// Continues from a copy.
    pub(super) fn restore(
        &mut self,
        weights: &mut Weights,
        state: &TrainingState,
    ) -> Result<()> {
        let buffers = [
            ("first moments", &state.first, self.optimizer.first.len()),
            ("second moments", &state.second, self.optimizer.second.len()),
        ];
        for (name, found, expected) in buffers {
            same_length(name, found.len(), expected)?;
        }

        // All lengths are checked before anything is overwritten.
        let average = state.average.as_deref();
        match (&mut self.teacher, average) {
            (Some(teacher), Some(values)) => {
                same_length("teacher's weights", values.len(), teacher.values.len())?;
                teacher.values.copy_from_slice(values);
            }
            (None, None) => {}
            (teacher, _) => {
                let is = |there| if there { "a teacher" } else { "no teacher" };
                let (run, state) = (is(teacher.is_some()), is(average.is_some()));
                return Err(Error::failed(format!(
                    "the checkpoint has {state}, the run has {run}"
                )));
            }
        }

        weights.replace(state.values.clone())?;
        self.optimizer.first.copy_from_slice(&state.first);
        self.optimizer.second.copy_from_slice(&state.second);
        self.optimizer.steps = state.steps;
        self.ready = false;
        Ok(())
    }
}

/// What the EMA follows: routers and experts, or everything if embeddings are distilled; the
/// rest of the teacher is never used.
fn followed(config: &ClipConfig, plan: TeacherPlan) -> Average {
    let layout = Layout::new(config);
    let whole = plan.target == EesdTarget::Embedding;
    let own = layout.iter().filter(|(p, _)| whole || p.id.is_moe());
    Average::new(own.map(|(_, range)| range), plan.decay)
}

fn same_length(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the checkpoint has {found} {name}, expected {expected}: it belongs to another model"
    )))
}

/// A batch has at least one pair, and as many pictures as captions.
fn check(clip: &Clip, pairs: Pairs<'_>) -> Result<()> {
    let (picture, caption) = clip.sizes();
    let (pixels, ids) = (pairs.pixels.len(), pairs.ids.len());
    let count = ids / caption;
    if count > 0 && count * caption == ids && count * picture == pixels {
        return Ok(());
    }
    Err(Error::failed(format!(
        "a batch has {pixels} pixel values and {ids} token ids, expected {picture} and \
         {caption} per pair"
    )))
}
