//! What training adds to a model on a card: gradient, moments, teacher and losses.

use super::clip::{Clip, HeadState};
use super::device::{Buffer, Device, Kind};
use super::group::Group;
use super::layout::Weights;
use super::store::Store;
use crate::config::EesdTarget;
use crate::engine::{Trainable, Training, TrainingState};
use crate::error::{Error, Result};
use crate::model::names::ParameterId;
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};

/// Where the numbers that are read back begin: loss and logit scale, the distance to a
/// teacher's embeddings, the squared norm of the gradient, then the sums of each layer.
pub(super) const DISTANCE: usize = 2;
pub(super) const NORM: usize = 3;
pub(super) const LAYERS: usize = 4;

/// A training in progress.
#[derive(Debug)]
pub(super) struct Trainer {
    pub(super) plan: Training,
    /// Both towers' states for a backward.
    pub(super) full: [HeadState; 2],
    /// By the weights that towers read: the sum of the first micro-batches, then of all.
    pub(super) gradient: Buffer,
    /// Sums of later micro-batches that wait for their pair (`group.rs`).
    pub(super) waiting: Vec<Buffer>,
    /// Where gradients of other ranks arrive.
    pub(super) received: Buffer,
    /// By the weights as they train, where that is another form.
    pulled: Option<Buffer>,
    pub(super) first: Buffer,
    pub(super) second: Buffer,
    pub(super) flags: Buffer,
    /// Whether the logit scale is not frozen.
    pub(super) scale_trains: bool,
    pub(super) average: Option<Average>,
    pub(super) steps: usize,
    pub(super) norm: f64,
    /// Whether there is a gradient that no update has used.
    pub(super) ready: bool,
    /// Sums that are read back, and a place for those of a second forward.
    pub(super) numbers: Buffer,
    pub(super) again: Buffer,
    /// The sums of each micro-batch of all ranks, where there are several.
    pub(super) parts: Buffer,
    pub(super) pulls: Buffer,
    pub(super) fractions: Buffer,
    pub(super) loss: Contrastive,
}

/// The teacher and the pages that it follows.
#[derive(Debug)]
pub(super) struct Average {
    pub(super) weights: Weights,
    pub(super) flags: Buffer,
}

/// Buffers of the contrastive loss; `[_; 2]` are pictures and captions.
#[derive(Debug)]
pub(super) struct Contrastive {
    pub(super) raw: [Buffer; 2],
    pub(super) unit: [Buffer; 2],
    pub(super) inverse: [Buffer; 2],
    pub(super) taught: [Buffer; 2],
    pub(super) gradient: [Buffer; 2],
    pub(super) draw: [Buffer; 2],
    pub(super) log_sum: [Buffer; 2],
    pub(super) similarity: Buffer,
    pub(super) partial: Buffer,
    pub(super) distance: Buffer,
}

impl Contrastive {
    fn new(device: &Device) -> Result<Self> {
        let float = || device.buffer(Kind::F32, 0);
        let two = || Ok::<_, Error>([float()?, float()?]);
        Ok(Self {
            raw: two()?,
            unit: two()?,
            inverse: two()?,
            taught: two()?,
            gradient: two()?,
            draw: [device.buffer(device.real(), 0)?, device.buffer(device.real(), 0)?],
            log_sum: two()?,
            similarity: float()?,
            partial: device.buffer(Kind::F64, 0)?,
            distance: device.buffer(Kind::F64, 0)?,
        })
    }

    /// Makes room for a batch.
    pub(super) fn fit(
        &mut self,
        device: &Device,
        pairs: usize,
        width: usize,
    ) -> Result<()> {
        let each = [&mut self.raw, &mut self.unit, &mut self.taught, &mut self.gradient];
        for buffer in each.into_iter().flatten().chain(&mut self.draw) {
            device.fit(buffer, pairs * width)?;
        }
        for buffer in self.inverse.iter_mut().chain(&mut self.log_sum) {
            device.fit(buffer, pairs)?;
        }

        device.fit(&mut self.similarity, pairs * pairs)?;
        device.fit(&mut self.partial, 2 * pairs)?;
        device.fit(&mut self.distance, 2 * pairs)
    }
}

impl Average {
    /// A teacher at the weights that towers read; zeros where nothing is followed.
    fn new(
        device: &Device,
        store: &Store,
        (config, target): (&ClipConfig, EesdTarget),
    ) -> Result<Self> {
        let layout = Layout::new(&config.merged());
        let follows = |id: ParameterId| target == EesdTarget::Embedding || id.is_moe();
        let flags = layout.iter().map(|(p, _)| u8::from(follows(p.id)));
        let flags = device.upload(Kind::U8, &store.places.flags(flags))?;

        let weights = Weights::new(device, store.places.len())?;
        device.copy(weights.values.all(), store.weights.values.all())?;

        for ((parameter, _), range) in layout.iter().zip(store.places.ranges()) {
            if !follows(parameter.id) {
                device.clear(weights.values.at(range))?;
            }
        }
        weights.refresh(device)?;
        Ok(Self { weights, flags })
    }
}

impl Trainer {
    /// Fresh moments, and the teacher at the weights.
    pub(super) fn new(
        (device, group): (&Device, &Group),
        (store, clip): (&Store, &Clip),
        (config, plan): (&ClipConfig, &Training),
    ) -> Result<Self> {
        let layout = Layout::new(config);
        let (found, expected) = (plan.trainable.len(), layout.iter().count());
        if found != expected {
            return Err(Error::failed(format!(
                "a training names {found} tensors, expected {expected}"
            )));
        }

        let scale_trains = layout.iter().zip(&plan.trainable).any(|((own, _), t)| {
            own.id == ParameterId::LogitScale && *t != Trainable::Frozen
        });
        let average = match &plan.teacher {
            Some(teacher) => Some(Average::new(device, store, (config, teacher.target))?),
            None => None,
        };

        // Flags of pages, as the optimizer's kernel reads them.
        let flag = |own: &Trainable| match own {
            Trainable::Frozen => 0,
            Trainable::Train { decay: false } => 1,
            Trainable::Train { decay: true } => 2,
        };
        let trained = store.trained_places();
        let flags = trained.flags(plan.trainable.iter().map(flag));

        // Each MoE layer has five sums, and two for each of its experts.
        let fractions = fractions(config);
        let experts = config.moe.as_ref().map_or(0, |moe| moe.experts);
        let sums = fractions.len() * (5 + 2 * experts);

        let moment = || device.buffer(Kind::F32, trained.len());
        let state = |tower| clip.state(device, tower, false);

        Ok(Self {
            plan: plan.clone(),
            full: [state(Tower::Vision)?, state(Tower::Text)?],
            gradient: device.buffer(Kind::F32, group.padded(store.places.len()))?,
            waiting: Vec::new(),
            received: device.buffer(Kind::F32, 0)?,
            pulled: if store.is_low_rank() { Some(moment()?) } else { None },
            first: moment()?,
            second: moment()?,
            flags: device.upload(Kind::U8, &flags)?,
            scale_trains,
            average,
            steps: 0,
            norm: 0.0,
            ready: false,
            numbers: device.buffer(Kind::F64, LAYERS + sums)?,
            again: device.buffer(Kind::F64, sums)?,
            parts: device.buffer(Kind::F64, 0)?,
            pulls: device.buffer(Kind::F32, fractions.len() * (experts + 2))?,
            fractions: device.upload(Kind::F32, &fractions)?,
            loss: Contrastive::new(device)?,
        })
    }

    /// Makes sure that there is a place for a gradient beside so many sums of others.
    pub(super) fn make_room(&mut self, device: &Device, sums: usize) -> Result<()> {
        while self.waiting.len() < sums {
            self.waiting.push(device.buffer(Kind::F32, self.gradient.len())?);
        }
        Ok(())
    }

    /// A sum of gradients, by its place.
    pub(super) fn sum(&self, index: usize) -> &Buffer {
        if index == 0 { &self.gradient } else { &self.waiting[index - 1] }
    }

    /// The fraction of tokens that a teacher of layers sees, where there is one.
    pub(super) fn taught(&self) -> Option<f64> {
        let plan = self.plan.teacher.as_ref()?;
        (plan.target == EesdTarget::Layer).then_some(plan.fraction)
    }

    /// The gradient by the weights as they train.
    pub(super) fn trained_gradient(&self) -> &Buffer {
        self.pulled.as_ref().unwrap_or(&self.gradient)
    }

    /// Refuses a checkpoint of another model, or one with a teacher where the run has none.
    pub(super) fn accept(&self, store: &Store, state: &TrainingState) -> Result<()> {
        let expected = store.trained_places().host_len();
        same_length("first moments", state.first.len(), expected)?;
        same_length("second moments", state.second.len(), expected)?;

        let teaches = self.average.is_some();
        match &state.average {
            Some(average) if teaches => {
                let expected = store.places.host_len();
                same_length("teacher's weights", average.len(), expected)
            }
            None if !teaches => Ok(()),
            found => {
                let is = |there| if there { "a teacher" } else { "no teacher" };
                let (state, run) = (is(found.is_some()), is(teaches));
                Err(Error::failed(format!(
                    "the checkpoint has {state}, the run has {run}"
                )))
            }
        }
    }

    /// Goes on from the moments and the teacher of a checkpoint.
    pub(super) fn restore(
        &mut self,
        device: &Device,
        store: &Store,
        state: &TrainingState,
    ) -> Result<()> {
        let trained = store.trained_places();
        device.write(&mut self.first, &trained.spread(&state.first))?;
        device.write(&mut self.second, &trained.spread(&state.second))?;

        if let (Some(average), Some(values)) = (&mut self.average, &state.average) {
            average.weights.load(device, &store.places.spread(values))?;
        }

        // A gradient from before belongs to other weights.
        self.steps = state.steps;
        self.ready = false;
        Ok(())
    }
}

/// The weight of each MoE layer in the auxiliary losses: a mean over the layers of a tower,
/// then over the towers that have some.
fn fractions(config: &ClipConfig) -> Vec<f32> {
    let layers = |tower| config.moe_blocks(tower).len();
    let towers = Tower::BOTH.iter().filter(|&&t| layers(t) > 0).count();
    let fraction = |tower| 1.0 / (layers(tower) * towers).max(1) as f32;
    Tower::BOTH.iter().flat_map(|&t| vec![fraction(t); layers(t)]).collect()
}

/// Refuses a buffer of a checkpoint that belongs to another model.
fn same_length(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the checkpoint has {found} {name}, expected {expected}: it belongs to another model"
    )))
}
