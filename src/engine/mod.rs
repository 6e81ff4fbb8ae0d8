//! Engines: what runs a model forward and backward, behind one trait.
//!
//! The seam lies at the level of a *step*, as between a server and its back ends: whoever
//! trains, records, evaluates or analyzes hands over pairs and receives embeddings, rows or
//! statistics. Weights, gradients, moments, teacher and workspaces belong to the engine, so
//! that they can stay on a device from the first step to the last.
//!
//! [`cpu`] is the product's engine on processors; [`candle`] is the slow, obvious reference
//! beside it, on automatic differentiation. Both implement [`Engine`], and a test trains
//! both on the same batches.
//!
//! Axes: B pairs, T positions of a caption, S side of a picture, N rows, d width, E experts,
//! K experts per row, P embedding width.

mod auxiliary;
mod backend;
pub mod candle;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_absent.rs"]
pub mod cuda;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use crate::config::{EesdTarget, OptimConfig};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::io::tensors::Put;
use crate::model::names::{Parameter, ParameterId};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};
use crate::ranks::Ranks;

pub use auxiliary::{StatsGradient, auxiliary};
pub use backend::{Backend, open, open_model};

/// Pixels and token ids of B pairs.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// Pictures [B, 3, S, S].
    pub pixels: Pixels<'a>,
    /// Captions [B, T], padded behind the end-of-text token.
    pub ids: &'a [u32],
}

/// What one tower reads.
#[derive(Debug, Clone, Copy)]
pub enum TowerInput<'a> {
    /// Pictures [n, 3, S, S].
    Pixels(Pixels<'a>),
    /// Captions [n, T], padded behind the end-of-text token.
    Ids(&'a [u32]),
}

/// The FFN inputs of some blocks of one tower over n samples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FfnInputs {
    /// Sample s owns rows `starts[s]..starts[s + 1]`; captions are ragged.
    pub starts: Vec<usize>,
    /// Rows that enter losses, statistics and recordings `[N]`: all of a picture; of a caption
    /// neither the start token nor what follows the end of text.
    pub counted: Vec<bool>,
    /// LN2 outputs [N, d] by block.
    pub rows: BTreeMap<usize, Vec<f32>>,
}

/// How one MoE layer routed the counted rows of its tower.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerRouting {
    /// The layer's block.
    pub block: usize,
    /// LN2 outputs of the counted rows [N, d].
    pub inputs: Vec<f32>,
    /// Routing probabilities [N, E].
    pub probabilities: Vec<f32>,
    /// The experts of each row [N, K], best first.
    pub chosen: Vec<u32>,
}

/// Whether a tensor trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainable {
    /// It keeps its values: no gradient enters the norm, no moment is kept.
    Frozen,
    /// It trains.
    Train {
        /// Whether weight decay applies.
        decay: bool,
    },
}

impl Trainable {
    /// Every tensor of a model trains, and weight decay applies where its role says so.
    pub fn all(config: &ClipConfig) -> Vec<Self> {
        let layout = Layout::new(config);
        let train = |decay| Self::Train { decay };
        layout.iter().map(|(parameter, _)| train(parameter.role.decays())).collect()
    }

    /// As [`Trainable::all`] where `trains` says so; every other tensor is frozen.
    pub fn only(config: &ClipConfig, trains: impl Fn(ParameterId) -> bool) -> Vec<Self> {
        let layout = Layout::new(config);
        let all = layout.iter().zip(Self::all(config));
        let choose = |((parameter, _), own): ((&Parameter, _), Self)| {
            if trains(parameter.id) { own } else { Self::Frozen }
        };
        all.map(choose).collect()
    }
}

/// Weights of the auxiliary losses, METHOD §4.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Objective {
    /// λ of the load balance.
    pub balance: f64,
    /// λ of the router z-loss.
    pub router_z: f64,
    /// λ of the self-distillation.
    pub eesd: f64,
    /// Fraction of the contrastive target that is spread evenly over the batch.
    pub label_smoothing: f64,
}

/// The EMA teacher of the self-distillation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TeacherPlan {
    /// What is distilled.
    pub target: EesdTarget,
    /// Fraction of tokens of `target: layer`, the most uncertain first.
    pub fraction: f64,
    /// Decay of the EMA.
    pub decay: f64,
}

/// How a model is trained; everything that does not change from step to step.
#[derive(Debug, Clone)]
pub struct Training {
    /// Betas, epsilon, weight decay and clipping of `AdamW`.
    pub optim: OptimConfig,
    /// One entry per tensor, in the order of the model's layout. A frozen logit scale is
    /// the constant scale of CLIP-MoE.
    pub trainable: Vec<Trainable>,
    /// Weights of the losses.
    pub objective: Objective,
    /// The teacher, if the objective distils.
    pub teacher: Option<TeacherPlan>,
}

/// Sums over the counted rows of one MoE layer; they add up over groups of samples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerStats {
    /// Counted rows N.
    pub rows: f64,
    /// Assignments to each expert `[E]`.
    pub counts: Vec<f64>,
    /// Sum of each expert's probability `[E]`.
    pub probability: Vec<f64>,
    /// Sum of -Σ p ln p, in nats.
    pub entropy: f64,
    /// Sum of (log-sum-exp of the logits)².
    pub log_sum_square: f64,
    /// Sum of `||y - y_ens||²` over distilled rows.
    pub distance: f64,
    /// Sum of `||y_ens||²` over distilled rows.
    pub target_square: f64,
}

impl LayerStats {
    /// Adds the sums of other samples.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.entropy += other.entropy;
        self.log_sum_square += other.log_sum_square;
        self.distance += other.distance;
        self.target_square += other.target_square;

        // Empty sums take the number of experts from the first that are added.
        self.counts.resize(other.counts.len(), 0.0);
        self.probability.resize(other.probability.len(), 0.0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.probability.iter_mut().zip(&other.probability).for_each(|(a, b)| *a += b);
    }

    /// All sums in a row, 5 + 2 E numbers: how they travel from rank to rank.
    pub fn numbers(&self) -> Vec<f64> {
        let single = [
            self.rows,
            self.entropy,
            self.log_sum_square,
            self.distance,
            self.target_square,
        ];
        [&single, self.counts.as_slice(), &self.probability].concat()
    }

    /// The reverse of [`LayerStats::numbers`].
    ///
    /// # Panics
    /// If there are fewer than 5 numbers.
    pub fn of_numbers(numbers: &[f64]) -> Self {
        let (single, by_expert) = numbers.split_at(5);
        let (counts, probability) = by_expert.split_at(by_expert.len() / 2);
        Self {
            rows: single[0],
            entropy: single[1],
            log_sum_square: single[2],
            distance: single[3],
            target_square: single[4],
            counts: counts.to_vec(),
            probability: probability.to_vec(),
        }
    }
}

/// The loss of a step and its parts, not yet weighted, and the routing of each MoE layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Losses {
    /// The weighted sum.
    pub total: f64,
    /// Contrastive loss.
    pub clip: f64,
    /// Load balance.
    pub balance: f64,
    /// Router z-loss.
    pub router_z: f64,
    /// Self-distillation.
    pub eesd: f64,
    /// The logit scale's logarithm during the step.
    pub logit_scale: f64,
    /// Sums over the batch: (tower, block, sums).
    pub layers: Vec<(Tower, usize, LayerStats)>,
}

/// The whole state of a training run after a step, for checkpoints.
///
/// All buffers are flat, in the order of the model's layout; that of the teacher is in the
/// order of the model with its experts merged ([`ClipConfig::merged`]), which is the same for
/// all but experts of low rank.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainingState {
    /// Weights.
    pub values: Vec<f32>,
    /// First moments of `AdamW`.
    pub first: Vec<f32>,
    /// Second moments of `AdamW`.
    pub second: Vec<f32>,
    /// The teacher's weights, where there is a teacher.
    pub average: Option<Vec<f32>>,
    /// Optimizer steps taken.
    pub steps: usize,
}

/// A buffer of [`TrainingState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateBuffer {
    /// Weights.
    Values,
    /// First moments.
    First,
    /// Second moments.
    Second,
    /// The teacher's weights.
    Average,
}

/// The state of a run as it was kept, of which an engine reads what it needs: the parts of a
/// large file need not be in memory at once.
pub trait SavedState {
    /// Optimizer steps taken.
    fn steps(&self) -> usize;

    /// Values of a buffer; `None` if there is no such buffer.
    fn len(&self, buffer: StateBuffer) -> Option<usize>;

    /// Fills `out` with the values of a buffer from `start` on.
    fn read(&self, buffer: StateBuffer, start: usize, out: &mut [f32]) -> Result<()>;
}

impl TrainingState {
    /// A buffer, if there is one.
    fn buffer(&self, buffer: StateBuffer) -> Option<&[f32]> {
        match buffer {
            StateBuffer::Values => Some(&self.values),
            StateBuffer::First => Some(&self.first),
            StateBuffer::Second => Some(&self.second),
            StateBuffer::Average => self.average.as_deref(),
        }
    }

    /// All of a state that was kept.
    pub fn read_whole(saved: &dyn SavedState) -> Result<Self> {
        let read = |buffer| -> Result<Option<Vec<f32>>> {
            let Some(len) = saved.len(buffer) else { return Ok(None) };
            let mut values = vec![0.0; len];
            saved.read(buffer, 0, &mut values)?;
            Ok(Some(values))
        };
        Ok(Self {
            values: read(StateBuffer::Values)?.unwrap_or_default(),
            first: read(StateBuffer::First)?.unwrap_or_default(),
            second: read(StateBuffer::Second)?.unwrap_or_default(),
            average: read(StateBuffer::Average)?,
            steps: saved.steps(),
        })
    }
}

impl SavedState for TrainingState {
    fn steps(&self) -> usize {
        self.steps
    }

    fn len(&self, buffer: StateBuffer) -> Option<usize> {
        self.buffer(buffer).map(<[f32]>::len)
    }

    fn read(&self, buffer: StateBuffer, start: usize, out: &mut [f32]) -> Result<()> {
        let values = self.buffer(buffer).unwrap_or_default();
        let found = values.get(start..start + out.len()).ok_or_else(|| {
            let (found, expected) = (values.len(), start + out.len());
            Error::corrupt(format!(
                "the state has {found} values of {buffer:?}, expected {expected} or more"
            ))
        })?;
        out.copy_from_slice(found);
        Ok(())
    }
}

/// A loss over the unit embeddings [n, P] of pictures: its value, and its gradient by them.
pub type ImageLoss<'a> = &'a mut dyn FnMut(&[f32]) -> Result<(f64, Vec<f32>)>;

/// A number that the chunks of every engine on processors divide.
const ENCODED: usize = 16;

/// A model in an engine.
///
/// Results depend on weights and inputs alone, never on the number of threads or on what ran
/// before. Methods take `&mut self` because workspaces are reused.
pub trait Engine: Debug + Send {
    /// The name of the engine in the keys of results whose bytes depend on it: `cpu-f32`,
    /// `cuda-bf16`.
    fn backend(&self) -> &'static str;

    /// The model's shape.
    fn config(&self) -> &ClipConfig;

    /// Replaces the weights by a flat buffer in the order of the model's layout.
    fn load(&mut self, values: &[f32]) -> Result<()>;

    /// Replaces the weights by a buffer that the caller gives away. An engine on processors
    /// keeps that buffer, so that the weights are in memory once.
    fn adopt(&mut self, values: Vec<f32>) -> Result<()> {
        self.load(&values)
    }

    /// The weights as they are now.
    fn values(&self) -> Result<Vec<f32>>;

    /// Consumes the engine and returns its weights: the counterpart of [`Engine::adopt`].
    fn into_values(self: Box<Self>) -> Result<Vec<f32>> {
        self.values()
    }

    /// Samples that are encoded at once: parts of an input that begin at multiples of it have
    /// the bits that they have within the whole.
    fn encoded(&self) -> usize {
        ENCODED
    }

    /// Unit embeddings [n, P] of pictures [n, 3, S, S].
    fn encode_images(&mut self, pixels: Pixels<'_>) -> Result<Vec<f32>>;

    /// Unit embeddings [n, P] of captions [n, T].
    fn encode_texts(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// The inputs of the FFNs of some blocks.
    fn ffn_inputs(
        &mut self,
        input: TowerInput<'_>,
        blocks: &[usize],
    ) -> Result<FfnInputs>;

    /// How every MoE layer of a tower routes, blocks ascending.
    fn routing(&mut self, input: TowerInput<'_>) -> Result<Vec<LayerRouting>>;

    /// Makes this engine one of several that train the same model, each in a process of its
    /// own. From then on steps, updates and what reads the state are collectives: every rank
    /// calls them, with its own part of the batch. Call it before [`Engine::start_training`].
    fn join(&mut self, ranks: Arc<dyn Ranks>) -> Result<()> {
        let (backend, count) = (self.backend(), ranks.count());
        if count == 1 {
            return Ok(());
        }
        Err(Error::usage(format!(
            "--ranks: found {count} ranks, but the engine {backend} trains on one; set \
             `device: cpu` or leave --ranks out"
        )))
    }

    /// Prepares to train the loaded weights: moments are zero, and the teacher starts as a copy
    /// of the weights.
    fn start_training(&mut self, training: &Training) -> Result<()>;

    /// Replaces the weights of the losses for the steps that follow.
    fn set_objective(&mut self, objective: Objective) -> Result<()>;

    /// Losses and gradient of a batch at the current weights; the gradient stays inside. On
    /// several ranks, `pairs` are the own part, and losses and gradient are those of all.
    fn step(&mut self, pairs: Pairs<'_>) -> Result<Losses>;

    /// A loss over pictures [n, 3, S, S] alone and its gradient, at the current weights; the
    /// gradient stays inside, and is zero where the image tower reads nothing.
    fn image_step(&mut self, pixels: Pixels<'_>, loss: ImageLoss<'_>) -> Result<f64> {
        let _ = (pixels, loss);
        let backend = self.backend();
        Err(Error::usage(format!(
            "the engine {backend} cannot train the image tower alone; expected the engine \
             cpu-f32: set `device: cpu`, or `evaluate.fine_tuning.steps: 0` to go without \
             fine-tuning"
        )))
    }

    /// One step of clipping and `AdamW` on the gradient of the last [`Engine::step`], then one
    /// step of the teacher; a logit scale that trains is kept within [1, 100]. Returns the norm
    /// of the gradient before clipping.
    fn update(&mut self, learning_rate: f64) -> Result<f64>;

    /// The gradient of the last [`Engine::step`], flat; zeros where a tensor is frozen.
    fn gradient(&self) -> Result<Vec<f32>>;

    /// What a checkpoint keeps.
    fn training_state(&self) -> Result<TrainingState>;

    /// One buffer of [`Engine::training_state`], so that writing a checkpoint needs the memory
    /// of one at most; empty where there is no teacher.
    fn state_buffer(&self, buffer: StateBuffer) -> Result<Cow<'_, [f32]>> {
        let state = self.training_state()?;
        Ok(Cow::Owned(match buffer {
            StateBuffer::Values => state.values,
            StateBuffer::First => state.first,
            StateBuffer::Second => state.second,
            StateBuffer::Average => state.average.unwrap_or_default(),
        }))
    }

    /// Gives `put` one buffer of [`Engine::training_state`] from its first value to its last,
    /// in pieces; on rank 0 alone.
    fn stream_state(&self, buffer: StateBuffer, put: &mut Put<'_>) -> Result<()> {
        put(&self.state_buffer(buffer)?)
    }

    /// Continues from a checkpoint; call [`Engine::start_training`] first.
    fn restore(&mut self, state: &dyn SavedState) -> Result<()>;
}
