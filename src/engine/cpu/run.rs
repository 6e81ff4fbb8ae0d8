//! A training run: gradient, optimizer and teacher beside the weights.

use std::ops::Range;
use std::sync::Arc;

use super::clip::Clip;
use super::optim::{AdamW, Average};
use super::step::{Cut, Distillation, Request, Step};
use super::tower::Flat;
use super::weights::Weights;
use crate::config::{EesdTarget, OptimConfig};
use crate::engine::{
    ImageLoss, Losses, Objective, Pairs, SavedState, StateBuffer, TeacherPlan, Trainable,
    Training, TrainingState,
};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::io::tensors::Put;
use crate::model::ClipConfig;
use crate::model::names::ParameterId;
use crate::model::params::Layout;
use crate::ranks::{Ranks, Shards};

/// The logarithm of the largest logit scale; the smallest is 0 (METHOD §4).
fn largest_scale() -> f32 {
    100.0_f32.ln()
}

/// Everything that a run keeps besides the weights.
#[derive(Debug)]
pub(super) struct Run {
    training: Training,
    ranks: Arc<dyn Ranks>,
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
        (clip, config): (&Clip, &ClipConfig),
        weights: &Weights,
        ranks: Arc<dyn Ranks>,
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
            optimizer: AdamW::new(ranges, &*ranks),
            teacher,
            step: Step::new(),
            gradient: vec![0.0; whole.len()],
            low_rank_gradient: Vec::new(),
            is_low_rank: weights.is_low_rank(),
            frozen,
            training: training.clone(),
            ranks,
            ready: false,
        })
    }

    /// Replaces the weights of the losses.
    pub(super) fn set_objective(&mut self, objective: Objective) {
        self.training.objective = objective;
        self.ready = false;
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
            cut: Cut {
                lanes: self.training.optim.lanes / self.ranks.count(),
                micro_batch: self.training.optim.micro_batch,
            },
        };

        // Should a rank fail, no half-made gradient may be taken for one.
        self.ready = false;
        let mut flat = Flat { values: weights.whole()?, gradients: &mut self.gradient };
        let losses = self.step.run(clip, &mut flat, &*self.ranks, &request)?;
        self.finish(weights)?;
        Ok(losses)
    }

    /// A loss over pictures alone, and its gradient.
    pub(super) fn image_step(
        &mut self,
        clip: &Clip,
        weights: &Weights,
        pixels: Pixels<'_>,
        loss: ImageLoss<'_>,
    ) -> Result<f64> {
        let count = self.ranks.count();
        if count > 1 {
            return Err(Error::usage(format!(
                "a loss over pictures alone was asked of {count} ranks, expected one: \
                 fine-tuning runs on one rank"
            )));
        }
        let (picture, _) = clip.sizes();
        if pixels.is_empty() || !pixels.len().is_multiple_of(picture) {
            let found = pixels.len();
            return Err(Error::failed(format!(
                "a batch has {found} pixel values, expected a multiple of {picture}, the \
                 values of a picture"
            )));
        }

        // Should the loss fail, no half-made gradient may be taken for one.
        self.ready = false;
        let mut flat = Flat { values: weights.whole()?, gradients: &mut self.gradient };
        let pixels = (pixels, self.training.optim.lanes);
        let value = self.step.images(clip, &mut flat, pixels, loss)?;
        self.finish(weights)?;
        Ok(value)
    }

    /// Adds up the gradients of all ranks and brings the sum into the form in which weights
    /// train, without frozen tensors. A rank then has at least its own part of it.
    fn finish(&mut self, weights: &Weights) -> Result<()> {
        if self.is_low_rank {
            // What a factor's gradient is made of belongs to several ranks, so the sum goes out
            // to all, and each makes all of it.
            let whole = Shards::of_all(self.gradient.len(), &*self.ranks);
            whole.sum(&*self.ranks, &mut self.gradient)?;
            whole.share(&*self.ranks, &mut self.gradient)?;
        } else {
            self.optimizer.shards().sum(&*self.ranks, &mut self.gradient)?;
        }

        // Frozen tensors have no part in the gradient.
        let gradient = weights.pull_back(&mut self.gradient, &mut self.low_rank_gradient);
        for range in &self.frozen {
            gradient[range.clone()].fill(0.0);
        }
        self.ready = true;
        Ok(())
    }

    /// One step of the optimizer and of the teacher; the norm of the gradient comes back.
    pub(super) fn update(
        &mut self,
        weights: &mut Weights,
        learning_rate: f64,
    ) -> Result<f64> {
        self.check_ready()?;

        // A gradient serves one update: using it twice would be a step that no batch
        // asked for.
        self.ready = false;
        let gradient =
            if self.is_low_rank { &self.low_rank_gradient } else { &self.gradient };

        let (optimizer, optim) = (&mut self.optimizer, &self.training.optim);
        let norm = weights.change(|values| {
            let both = (&mut *values, gradient.as_slice());
            let norm = optimizer.step(&*self.ranks, both, learning_rate, optim);
            if let Some(scale) = self.scale {
                values[scale] = values[scale].clamp(0.0, largest_scale());
            }
            norm
        })?;

        if let Some(Teacher { average, values, .. }) = &mut self.teacher {
            average.step(values, weights.whole()?);
        }
        Ok(norm)
    }

    fn check_ready(&self) -> Result<()> {
        if self.ready {
            return Ok(());
        }
        Err(Error::failed("there is no gradient: call step first"))
    }

    /// The gradient of the last step, that of all ranks.
    pub(super) fn whole_gradient(&self) -> Result<Vec<f32>> {
        self.check_ready()?;
        if self.is_low_rank {
            return Ok(self.low_rank_gradient.clone());
        }
        let mut whole = self.gradient.clone();
        self.optimizer.shards().share(&*self.ranks, &mut whole)?;
        Ok(whole)
    }

    /// Gives `put` a buffer of the state, in pieces, on rank 0.
    pub(super) fn stream(
        &self,
        weights: &Weights,
        buffer: StateBuffer,
        put: &mut Put<'_>,
    ) -> Result<()> {
        let values = weights.kept()?;
        let average = || self.teacher.as_ref().map(|teacher| teacher.values.as_slice());
        let whole = match buffer {
            StateBuffer::Values => values,
            StateBuffer::Average => average().unwrap_or_default(),
            StateBuffer::First | StateBuffer::Second => {
                let AdamW { first, second, .. } = &self.optimizer;
                let packed = if buffer == StateBuffer::First { first } else { second };
                let moments = (packed.as_slice(), values.len());
                return self.optimizer.shards().stream(&*self.ranks, moments, put);
            }
        };

        // Weights and teacher are whole on every rank.
        if self.ranks.rank() == 0 { put(whole) } else { Ok(()) }
    }

    /// A copy of the run's whole state, on rank 0.
    pub(super) fn state(&self, weights: &Weights) -> Result<TrainingState> {
        let read = |buffer| -> Result<Vec<f32>> {
            let mut values = Vec::new();
            self.stream(weights, buffer, &mut |piece| {
                values.extend_from_slice(piece);
                Ok(())
            })?;
            Ok(values)
        };
        let average = read(StateBuffer::Average)?;
        Ok(TrainingState {
            values: read(StateBuffer::Values)?,
            first: read(StateBuffer::First)?,
            second: read(StateBuffer::Second)?,
            average: self.teacher.is_some().then_some(average),
            steps: self.optimizer.steps,
        })
    }

    /// Continues from a state that was kept.
    pub(super) fn restore(
        &mut self,
        weights: &mut Weights,
        state: &dyn SavedState,
    ) -> Result<()> {
        let expected = weights.kept()?.len();
        for (name, buffer) in [
            ("weights", StateBuffer::Values),
            ("first moments", StateBuffer::First),
            ("second moments", StateBuffer::Second),
        ] {
            same_length(name, state.len(buffer).unwrap_or(0), expected)?;
        }

        // All lengths are checked before anything is overwritten.
        let average = state.len(StateBuffer::Average);
        match (&mut self.teacher, average) {
            (Some(teacher), Some(found)) => {
                same_length("teacher's weights", found, teacher.values.len())?;
                state.read(StateBuffer::Average, 0, &mut teacher.values)?;
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

        weights.change(|values| state.read(StateBuffer::Values, 0, values))?;
        self.optimizer.restore(state)?;
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

/// Refuses a training on more ranks than there are lanes, which are what ranks share.
pub fn check_share(optim: &OptimConfig, ranks: usize) -> Result<()> {
    let lanes = optim.lanes;
    if ranks <= lanes {
        return Ok(());
    }
    Err(Error::usage(format!(
        "optim.lanes: found {lanes}, which {ranks} ranks cannot share; expected {ranks} or more, \
         which trains another model in its last bits, or fewer ranks"
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
