//! The engine itself: encoding, recording, and training steps on one card.
//!
//! A step runs in micro-batches of `optim.micro_batch` pairs, or at once. With several, a first
//! pass leaves nothing but embeddings and sums, the losses see the whole batch, and a second
//! forward makes again what the backward needs: the gradient is that of the large batch,
//! for a third more arithmetic.
//!
//! The host reads one block of numbers back per step, behind the backward: losses, sums over
//! the batch, and the norm of the gradient, so that [`Engine::update`] waits for nothing.

use std::borrow::Cow;

use cudarc::driver::PinnedHostSlice;

use super::clip::{Clip, HeadState, Rows};
use super::device::{Buffer, Device, Extents, Grid, Kind, Operand, Slice};
use super::ffn::sum_statistics;
use super::layout::{Places, Weights};
use super::pass::{Back, Pass, Scratch, Teacher};
use super::tower::Watch;
use crate::config::{EesdTarget, Precision};
use crate::engine::{
    Engine, FfnInputs, LayerRouting, LayerStats, Losses, Pairs, StateBuffer, TowerInput,
    Trainable, Training, TrainingState, auxiliary,
};
use crate::error::{Error, Result};
use crate::model::names::ParameterId;
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};
use crate::num::round_f32;

/// The largest logarithm of the logit scale: ln 100.
const LARGEST_SCALE: f32 = 4.605_170_2;

/// Blocks that sum the squares of a gradient.
const NORM_BLOCKS: usize = 1024;

/// Where the numbers that are read back begin: loss and logit scale, the distance to a
/// teacher's embeddings, the squared norm of the gradient, then the sums of each layer.
const DISTANCE: usize = 2;
const NORM: usize = 3;
const LAYERS: usize = 4;

/// Pairs that are encoded at once where no backward follows.
const ENCODED: usize = 256;

/// An engine on one card.
#[derive(Debug)]
pub struct Cuda {
    device: Device,
    config: ClipConfig,
    places: Places,
    clip: Clip,
    precision: Precision,
    weights: Weights,
    scratch: Scratch,
    staging: Option<PinnedHostSlice<u8>>,
    /// Both towers' states where no backward follows.
    light: [HeadState; 2],
    loaded: bool,
    trainer: Option<Trainer>,
}

/// What training adds.
#[derive(Debug)]
struct Trainer {
    plan: Training,
    full: [HeadState; 2],
    gradient: Buffer,
    first: Buffer,
    second: Buffer,
    flags: Buffer,
    /// Whether the logit scale is not frozen.
    scale_trains: bool,
    average: Option<Average>,
    steps: usize,
    norm: f64,
    /// Whether there is a gradient that no update has used.
    ready: bool,
    /// Sums that are read back, and a place for those of a second forward.
    numbers: Buffer,
    again: Buffer,
    pulls: Buffer,
    fractions: Buffer,
    loss: Contrastive,
}

/// The teacher and the pages that it follows.
#[derive(Debug)]
struct Average {
    weights: Weights,
    flags: Buffer,
}

/// Buffers of the contrastive loss; `[_; 2]` are pictures and captions.
#[derive(Debug)]
struct Contrastive {
    raw: [Buffer; 2],
    unit: [Buffer; 2],
    inverse: [Buffer; 2],
    taught: [Buffer; 2],
    gradient: [Buffer; 2],
    draw: [Buffer; 2],
    log_sum: [Buffer; 2],
    similarity: Buffer,
    partial: Buffer,
    distance: Buffer,
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

    fn fit(&mut self, device: &Device, pairs: usize, width: usize) -> Result<()> {
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

fn index(tower: Tower) -> usize {
    match tower {
        Tower::Vision => 0,
        Tower::Text => 1,
    }
}

/// Refuses shapes that the kernels are not made for, by name.
fn check(config: &ClipConfig) -> Result<()> {
    if config.rank().is_some() {
        return Err(Error::usage(
            "experts of low rank train on the CPU only: choose device: cpu",
        ));
    }
    for tower in Tower::BOTH {
        let (shape, name) = (config.tower(tower), tower.name());
        let head = shape.width / shape.heads;
        if ![16, 32, 64].contains(&head) {
            return Err(Error::usage(format!(
                "the {name} tower has heads of {head} values, expected 16, 32 or 64 on a CUDA \
                 device: choose device: cpu"
            )));
        }
        if shape.width > 1024 || !shape.hidden.is_multiple_of(8) {
            return Err(Error::usage(format!(
                "the {name} tower has width {} and hidden width {}, expected at most 1024 and a \
                 multiple of 8 on a CUDA device: choose device: cpu",
                shape.width, shape.hidden
            )));
        }
    }
    match &config.moe {
        Some(moe) if moe.experts > 32 => Err(Error::usage(format!(
            "the model has {} experts per layer, expected at most 32 on a CUDA device: choose \
             device: cpu",
            moe.experts
        ))),
        _ => Ok(()),
    }
}

impl Cuda {
    /// Opens card `ordinal` for a model of this shape; its weights are zero until
    /// [`Engine::load`].
    pub fn open(
        config: &ClipConfig,
        ordinal: usize,
        precision: Precision,
    ) -> Result<Self> {
        check(config)?;
        let device = Device::open(ordinal, precision)?;
        let places = Places::new(config);
        let clip = Clip::new(config, &places);
        let state = |tower| clip.state(&device, tower, true);
        let light = [state(Tower::Vision)?, state(Tower::Text)?];
        Ok(Self {
            weights: Weights::new(&device, places.len())?,
            scratch: Scratch::new(&device)?,
            staging: None,
            light,
            loaded: false,
            trainer: None,
            config: config.clone(),
            places,
            clip,
            precision,
            device,
        })
    }

    /// The card.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn need_weights(&self) -> Result<()> {
        if self.loaded {
            return Ok(());
        }
        Err(Error::failed("the engine has no weights yet: call load first"))
    }

    /// Replaces the weights and keeps the training, where there is one.
    fn replace(&mut self, values: &[f32]) -> Result<()> {
        let (found, expected) = (values.len(), self.places.host_len());
        if found != expected {
            return Err(Error::failed(format!(
                "the engine was given {found} weights, expected {expected}: they belong to \
                 another model"
            )));
        }
        self.weights.load(&self.device, &self.places.spread(values))?;
        self.loaded = true;
        Ok(())
    }

    fn layers(&self) -> usize {
        Tower::BOTH.iter().map(|&tower| self.config.moe_blocks(tower).len()).sum()
    }

    fn experts(&self) -> usize {
        self.config.moe.as_ref().map_or(0, |moe| moe.experts)
    }

    fn encode(
        &mut self,
        tower: Tower,
        rows: &Rows,
        watch: Watch<'_>,
    ) -> Result<(Buffer, usize)> {
        self.need_weights()?;
        let (samples, width) = (rows.batch.samples(), self.config.embed_dim);
        let raw = self.device.buffer(Kind::F32, samples * width)?;
        let pass = Pass::plain(&self.device, &self.weights);
        let buffers = (&mut self.light[index(tower)], &mut self.scratch);
        self.clip.forward(pass, (tower, rows), buffers, (raw.all(), watch))?;
        Ok((raw, samples))
    }

    fn unit(&mut self, tower: Tower, rows: &Rows) -> Result<Vec<f32>> {
        let (raw, samples) = self.encode(tower, rows, Watch::Nothing)?;
        let width = self.config.embed_dim;
        let inverse = self.device.buffer(Kind::F32, samples)?;
        normalize(&self.device, (raw.all(), inverse.all(), raw.all()), (samples, width))?;
        self.device.download(&raw)
    }

    fn rows(&mut self, input: TowerInput<'_>) -> Result<(Tower, Rows)> {
        let (device, staging) = (&self.device, &mut self.staging);
        match input {
            TowerInput::Pixels(pixels) => {
                Ok((Tower::Vision, self.clip.pictures(device, pixels, None, staging)?))
            }
            TowerInput::Ids(ids) => {
                Ok((Tower::Text, self.clip.captions(device, ids, None)?))
            }
        }
    }

    /// Cuts an input into micro-batches.
    fn pieces<'a>(&self, input: TowerInput<'a>) -> Vec<TowerInput<'a>> {
        let (picture, caption) = self.clip.sizes();
        match input {
            TowerInput::Pixels(pixels) => {
                pixels.chunks(ENCODED * picture).map(TowerInput::Pixels).collect()
            }
            TowerInput::Ids(ids) => {
                ids.chunks(ENCODED * caption).map(TowerInput::Ids).collect()
            }
        }
    }
}

/// `unit` [n, P] = the rows of `raw` divided by their lengths.
fn normalize(
    device: &Device,
    (unit, inverse, raw): (Slice<'_>, Slice<'_>, Slice<'_>),
    (samples, width): (usize, usize),
) -> Result<()> {
    let args = [unit.into(), inverse.into(), raw.into(), samples.into(), width.into()];
    device.launch("unit_forward", Grid::warps(samples), &args)
}

impl Trainer {
    /// The teacher of layers, where there is one.
    fn taught(&self) -> Option<f64> {
        let plan = self.plan.teacher.as_ref()?;
        (plan.target == EesdTarget::Layer).then_some(plan.fraction)
    }
}

/// One micro-batch of both towers, and its first pair.
struct Chunk {
    rows: [Rows; 2],
    first: usize,
    pairs: usize,
}

impl Cuda {
    /// Uploads a batch in micro-batches of `size` pairs.
    fn chunks(
        &mut self,
        pairs: Pairs<'_>,
        size: usize,
        taught: Option<f64>,
    ) -> Result<Vec<Chunk>> {
        let (picture, caption) = self.clip.sizes();
        let (device, clip) = (&self.device, &self.clip);
        let pieces =
            pairs.pixels.chunks(size * picture).zip(pairs.ids.chunks(size * caption));
        let mut chunks = Vec::new();
        for (number, (pixels, ids)) in pieces.enumerate() {
            let pictures = clip.pictures(device, pixels, taught, &mut self.staging)?;
            let captions = clip.captions(device, ids, taught)?;
            let own = pictures.batch.samples();
            let rows = [pictures, captions];
            chunks.push(Chunk { rows, first: number * size, pairs: own });
        }
        Ok(chunks)
    }

    /// Embeddings and sums of a whole batch; with one micro-batch, all that its backward
    /// needs stays.
    fn forward(&mut self, trainer: &mut Trainer, chunks: &[Chunk]) -> Result<()> {
        let (device, width) = (&self.device, self.config.embed_dim);
        let average = trainer.average.as_ref().map(|own| &own.weights);
        let target = trainer.plan.teacher.as_ref().map(|plan| plan.target);
        let teacher = match (target, average) {
            (Some(EesdTarget::Layer), Some(average)) => Teacher::Ensemble(average),
            _ => Teacher::None,
        };
        let numbers = trainer.numbers.all();
        let statistics = (self.experts() > 0).then(|| numbers.at(LAYERS..numbers.len()));
        let pass = Pass { device, weights: &self.weights, teacher, statistics };
        for chunk in chunks {
            let range = chunk.first * width..(chunk.first + chunk.pairs) * width;
            for tower in Tower::BOTH {
                let own = index(tower);
                let states =
                    if chunks.len() == 1 { &mut trainer.full } else { &mut self.light };
                let buffers = (&mut states[own], &mut self.scratch);
                let into = (trainer.loss.raw[own].at(range.clone()), Watch::Nothing);
                self.clip.forward(pass, (tower, &chunk.rows[own]), buffers, into)?;
                if let (Some(EesdTarget::Embedding), Some(average)) = (target, average) {
                    let teacher = Teacher::IsEnsemble;
                    let pass =
                        Pass { device, weights: average, teacher, statistics: None };
                    let buffers = (&mut self.light[own], &mut self.scratch);
                    let into =
                        (trainer.loss.taught[own].at(range.clone()), Watch::Nothing);
                    self.clip.forward(pass, (tower, &chunk.rows[own]), buffers, into)?;
                }
            }
        }
        Ok(())
    }

    /// The contrastive loss and, where embeddings are distilled, the distance to the
    /// teacher's: gradients of the raw embeddings, and the logit scale's.
    fn contrast(&self, trainer: &Trainer, pairs: usize) -> Result<()> {
        let (device, width) = (&self.device, self.config.embed_dim);
        let (own, numbers) = (&trainer.loss, &trainer.numbers);
        let shape = (pairs, width);
        for side in 0..2 {
            let io = (own.unit[side].all(), own.inverse[side].all(), own.raw[side].all());
            normalize(device, io, shape)?;
        }
        let [images, texts] = [own.unit[0].all(), own.unit[1].all()];
        let operand = |values| Operand::new(values, width);
        let extents = Extents { m: pairs, n: pairs, k: width };
        let similarity = own.similarity.all();
        let operands = (operand(images), operand(texts).turned());
        device.gemm((similarity, pairs), operands, extents, 0.0)?;
        let scale_at = self.places.range(ParameterId::LogitScale);
        let scale = self.weights.master(&scale_at);
        let [rows, columns] = [own.log_sum[0].all(), own.log_sum[1].all()];
        let args = [rows.into(), similarity.into(), scale.into(), pairs.into()];
        device.launch("contrastive_rows", Grid::new([pairs, 1, 1], 256), &args)?;
        let args = [columns.into(), similarity.into(), scale.into(), pairs.into()];
        let grid = Grid::new([pairs.div_ceil(32), 1, 1], 256);
        device.launch("contrastive_columns", grid, &args)?;
        let smoothing = round_f32(trainer.plan.objective.label_smoothing);
        let args = [
            similarity.into(),
            (&own.partial).into(),
            rows.into(),
            columns.into(),
            scale.into(),
            smoothing.into(),
            pairs.into(),
        ];
        device.launch("contrastive_gradient", Grid::new([pairs, 1, 1], 256), &args)?;
        let args = [
            numbers.at(0..2).into(),
            trainer.gradient.at(scale_at).into(),
            (&own.partial).into(),
            scale.into(),
            pairs.into(),
        ];
        device.launch("contrastive_finish", Grid::new([1, 1, 1], 256), &args)?;

        let extents = Extents { m: pairs, n: width, k: pairs };
        let square = Operand::new(similarity, pairs);
        let into = |side: usize| (own.gradient[side].all(), width);
        device.gemm(into(0), (square, operand(texts)), extents, 0.0)?;
        device.gemm(into(1), (square.turned(), operand(images)), extents, 0.0)?;
        let plan = trainer.plan.teacher.as_ref();
        let distills = plan.is_some_and(|plan| plan.target == EesdTarget::Embedding);
        let count = 2 * pairs;
        let factor = round_f32(2.0 * trainer.plan.objective.eesd / count as f64);
        for side in 0..2 {
            let taught = own.taught[side].all();
            if distills {
                // The student's deviation is kept; the teacher's is not needed any more.
                normalize(device, (taught, rows, taught), shape)?;
            }
            let distance = own.distance.at(side * pairs..(side + 1) * pairs);
            let args = [
                (&own.draw[side]).into(),
                distance.into(),
                (&own.gradient[side]).into(),
                (&own.unit[side]).into(),
                (&own.inverse[side]).into(),
                distills.then_some(taught).into(),
                (if distills { factor } else { 0.0 }).into(),
                pairs.into(),
                width.into(),
            ];
            device.launch("unit_backward", Grid::warps(pairs), &args)?;
        }
        if distills {
            let into = numbers.at(DISTANCE..DISTANCE + 1);
            sum_statistics(device, into, (own.distance.all(), count))?;
        }
        Ok(())
    }

    /// The weights of the auxiliary losses, from the sums over the batch.
    fn auxiliary(&self, trainer: &Trainer) -> Result<()> {
        let (layers, objective) = (self.layers(), &trainer.plan.objective);
        if layers == 0 {
            return Ok(());
        }
        let numbers = trainer.numbers.all();
        let distills = trainer.taught().is_some();
        let args = [
            (&trainer.pulls).into(),
            numbers.at(LAYERS..numbers.len()).into(),
            (&trainer.fractions).into(),
            objective.balance.into(),
            objective.router_z.into(),
            (if distills { objective.eesd } else { 0.0 }).into(),
            layers.into(),
            self.experts().into(),
        ];
        self.device.launch("auxiliary_weights", Grid::new([1, 1, 1], 128), &args)
    }

    fn backward(&mut self, trainer: &mut Trainer, chunks: &[Chunk]) -> Result<()> {
        let (device, width) = (&self.device, self.config.embed_dim);
        let average = trainer.average.as_ref().map(|own| &own.weights);
        let teacher = match (trainer.taught(), average) {
            (Some(_), Some(average)) => Teacher::Ensemble(average),
            _ => Teacher::None,
        };
        let statistics = (self.experts() > 0).then(|| trainer.again.all());
        for (number, chunk) in chunks.iter().enumerate() {
            let range = chunk.first * width..(chunk.first + chunk.pairs) * width;
            let back = Back {
                device,
                weights: &self.weights,
                gradient: &trainer.gradient,
                beta: if number == 0 { 0.0 } else { 1.0 },
                pulls: &trainer.pulls,
            };
            for tower in Tower::BOTH {
                let own = index(tower);
                let rows = (tower, &chunk.rows[own]);
                if chunks.len() > 1 {
                    let weights = &self.weights;
                    let pass = Pass { device, weights, teacher, statistics };
                    let buffers = (&mut trainer.full[own], &mut self.scratch);
                    let into = (trainer.loss.raw[own].at(range.clone()), Watch::Nothing);
                    self.clip.forward(pass, rows, buffers, into)?;
                }
                let draw = trainer.loss.draw[own].at(range.clone());
                let buffers = (&mut trainer.full[own], &mut self.scratch);
                self.clip.backward(back, rows, draw, buffers)?;
            }
        }
        Ok(())
    }

    /// Clears what is frozen, and sums the squares of the rest.
    fn finish(&self, trainer: &Trainer) -> Result<()> {
        let device = &self.device;
        for (range, own) in self.places.ranges().zip(&trainer.plan.trainable) {
            if *own == Trainable::Frozen {
                device.clear(trainer.gradient.at(range))?;
            }
        }
        let partial = trainer.loss.partial.all();
        let blocks = self.places.pages().min(NORM_BLOCKS).min(partial.len());
        let args =
            [partial.into(), (&trainer.gradient).into(), self.places.pages().into()];
        device.launch("squared_norm", Grid::new([blocks, 1, 1], 256), &args)?;
        sum_statistics(device, trainer.numbers.at(NORM..NORM + 1), (partial, blocks))
    }

    /// The pairs of a batch: at least one, and as many pictures as captions.
    fn count(&self, pairs: Pairs<'_>) -> Result<usize> {
        let (picture, caption) = self.clip.sizes();
        let (pixels, ids) = (pairs.pixels.len(), pairs.ids.len());
        let count = ids / caption;
        if count > 0 && count * caption == ids && count * picture == pixels {
            return Ok(count);
        }
        Err(Error::failed(format!(
            "a batch has {pixels} pixel values and {ids} token ids, expected {picture} and \
             {caption} per pair"
        )))
    }

    fn run(&mut self, trainer: &mut Trainer, pairs: Pairs<'_>) -> Result<Losses> {
        let count = self.count(pairs)?;
        // Whole groups of distillation stay together: `micro_batch` is a multiple of theirs.
        let size = match trainer.plan.optim.micro_batch {
            0 => count,
            size => size,
        };
        let chunks = self.chunks(pairs, size, trainer.taught())?;
        trainer.loss.fit(&self.device, count, self.config.embed_dim)?;
        self.device.clear(trainer.numbers.all())?;
        self.forward(trainer, &chunks)?;
        self.contrast(trainer, count)?;
        self.auxiliary(trainer)?;
        self.backward(trainer, &chunks)?;
        self.finish(trainer)?;
        let numbers = self.device.read_back(&trainer.numbers)?.wait::<f64>()?;
        trainer.norm = numbers[NORM].sqrt();
        trainer.ready = true;
        Ok(self.losses(&trainer.plan, &numbers, count))
    }

    /// The losses, from the sums that came back.
    fn losses(&self, plan: &Training, numbers: &[f64], pairs: usize) -> Losses {
        let mut losses =
            Losses { clip: numbers[0], logit_scale: numbers[1], ..Losses::default() };
        let (experts, objective) = (self.experts(), &plan.objective);
        let places = Tower::BOTH.iter().flat_map(|&tower| {
            self.config.moe_blocks(tower).iter().map(move |&block| (tower, block))
        });
        let sums = numbers[LAYERS..].chunks_exact(5 + 2 * experts);
        let layers = places.zip(sums);
        losses.layers = layers
            .map(|((tower, block), own)| (tower, block, layer_stats(own, experts)))
            .collect();
        let target = plan.teacher.as_ref().map(|plan| plan.target);
        if target == Some(EesdTarget::Embedding) {
            losses.eesd = numbers[DISTANCE] / (2 * pairs) as f64;
        }

        // The gradients were needed on the card before the sums came back: a kernel has made
        // them there.
        auxiliary(&self.config, objective, &mut losses);
        losses.total = losses.clip
            + objective.balance * losses.balance
            + objective.router_z * losses.router_z
            + objective.eesd * losses.eesd;
        losses
    }

    fn optimize(&self, trainer: &mut Trainer, learning_rate: f64) -> Result<f64> {
        if !trainer.ready {
            return Err(no_gradient());
        }
        let (device, optim) = (&self.device, &trainer.plan.optim);
        trainer.ready = false;
        trainer.steps += 1;
        let count = i32::try_from(trainer.steps).unwrap_or(i32::MAX);
        let norm = trainer.norm;
        let scale = if norm > optim.clip_norm { optim.clip_norm / norm } else { 1.0 };
        // The same roundings, in the same order, as on the CPU.
        let rate = round_f32(learning_rate);
        let corrections =
            [optim.beta1, optim.beta2].map(|b| round_f32(1.0 - b.powi(count)));
        let copy = self.weights.copy.as_ref().map(Buffer::all);
        let args = [
            (&self.weights.values).into(),
            copy.into(),
            (&trainer.first).into(),
            (&trainer.second).into(),
            (&trainer.gradient).into(),
            (&trainer.flags).into(),
            (rate / corrections[0]).into(),
            (1.0 - rate * round_f32(optim.weight_decay)).into(),
            round_f32(optim.beta1).into(),
            round_f32(optim.beta2).into(),
            round_f32(optim.epsilon).into(),
            (1.0 / corrections[1].sqrt()).into(),
            round_f32(scale).into(),
        ];
        let grid = Grid::new([self.places.pages(), 1, 1], 256);
        device.launch("adamw", grid, &args)?;
        // METHOD §4: a scale that trains stays between 1 and 100.
        if trainer.scale_trains {
            let value = self.weights.master(&self.places.range(ParameterId::LogitScale));
            let args = [value.into(), LARGEST_SCALE.into()];
            device.launch("clamp_scale", Grid::new([1, 1, 1], 32), &args)?;
        }
        if let (Some(average), Some(plan)) = (&trainer.average, &trainer.plan.teacher) {
            let copy = average.weights.copy.as_ref().map(Buffer::all);
            let args = [
                (&average.weights.values).into(),
                copy.into(),
                (&self.weights.values).into(),
                (&average.flags).into(),
                round_f32(plan.decay).into(),
            ];
            device.launch("move_average", grid, &args)?;
        }
        Ok(norm)
    }

    /// A teacher at the given host values; zeros where nothing is followed.
    fn average(&self, target: EesdTarget, values: &[f32]) -> Result<Average> {
        let layout = Layout::new(&self.config);
        let follows = |id: ParameterId| target == EesdTarget::Embedding || id.is_moe();
        let flags = layout.iter().map(|(p, _)| u8::from(follows(p.id)));
        let flags = self.device.upload(Kind::U8, &self.places.flags(flags))?;
        let mut values = values.to_vec();
        for (parameter, range) in layout.iter() {
            if !follows(parameter.id) {
                values[range].fill(0.0);
            }
        }
        let mut weights = Weights::new(&self.device, self.places.len())?;
        weights.load(&self.device, &self.places.spread(&values))?;
        Ok(Average { weights, flags })
    }

    fn trainer(&self) -> Result<&Trainer> {
        self.trainer.as_ref().ok_or_else(untrained)
    }

    /// Lends the trainer to work that needs the rest of the engine too.
    fn with_trainer<T>(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Trainer) -> Result<T>,
    ) -> Result<T> {
        let mut trainer = self.trainer.take().ok_or_else(untrained)?;
        let done = work(self, &mut trainer);
        self.trainer = Some(trainer);
        done
    }

    fn host(&self, buffer: &Buffer) -> Result<Vec<f32>> {
        Ok(self.places.gather(&self.device.download(buffer)?))
    }
}

fn untrained() -> Error {
    Error::failed("the engine does not train yet: call start_training first")
}

fn no_gradient() -> Error {
    Error::failed("there is no gradient: call step first")
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

fn layer_stats(own: &[f64], experts: usize) -> LayerStats {
    LayerStats {
        rows: own[0],
        entropy: own[1],
        log_sum_square: own[2],
        counts: own[3..3 + experts].to_vec(),
        probability: own[3 + experts..3 + 2 * experts].to_vec(),
        distance: own[3 + 2 * experts],
        target_square: own[4 + 2 * experts],
    }
}

impl Engine for Cuda {
    fn backend(&self) -> &'static str {
        super::backend(self.precision)
    }

    fn config(&self) -> &ClipConfig {
        &self.config
    }

    fn load(&mut self, values: &[f32]) -> Result<()> {
        self.trainer = None;
        self.replace(values)
    }

    fn values(&self) -> Result<Vec<f32>> {
        self.need_weights()?;
        self.host(&self.weights.values)
    }

    fn encode_images(&mut self, pixels: &[f32]) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for piece in self.pieces(TowerInput::Pixels(pixels)) {
            let (tower, rows) = self.rows(piece)?;
            out.extend(self.unit(tower, &rows)?);
        }
        Ok(out)
    }

    fn encode_texts(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for piece in self.pieces(TowerInput::Ids(ids)) {
            let (tower, rows) = self.rows(piece)?;
            out.extend(self.unit(tower, &rows)?);
        }
        Ok(out)
    }

    fn ffn_inputs(
        &mut self,
        input: TowerInput<'_>,
        blocks: &[usize],
    ) -> Result<FfnInputs> {
        let mut all = FfnInputs { starts: vec![0], ..FfnInputs::default() };
        all.rows = blocks.iter().map(|&block| (block, Vec::new())).collect();
        for piece in self.pieces(input) {
            let (tower, rows) = self.rows(piece)?;
            self.encode(tower, &rows, Watch::Inputs(&mut all.rows))?;
            let before = all.counted.len();
            all.starts
                .extend(rows.batch.host_starts()[1..].iter().map(|row| before + row));
            all.counted.extend_from_slice(rows.batch.host_counted());
        }
        Ok(all)
    }

    fn routing(&mut self, input: TowerInput<'_>) -> Result<Vec<LayerRouting>> {
        let mut all: Vec<LayerRouting> = Vec::new();
        for piece in self.pieces(input) {
            let (tower, rows) = self.rows(piece)?;
            let mut layers = Vec::new();
            self.encode(tower, &rows, Watch::Routing(&mut layers))?;
            if all.is_empty() {
                all = layers;
                continue;
            }
            for (all, own) in all.iter_mut().zip(layers) {
                all.inputs.extend(own.inputs);
                all.probabilities.extend(own.probabilities);
                all.chosen.extend(own.chosen);
            }
        }
        Ok(all)
    }

    fn start_training(&mut self, training: &Training) -> Result<()> {
        let layout = Layout::new(&self.config);
        if training.trainable.len() != layout.iter().count() {
            return Err(Error::failed(format!(
                "a training names {} tensors, expected {}",
                training.trainable.len(),
                layout.iter().count()
            )));
        }
        self.need_weights()?;
        let scale_trains = layout.iter().zip(&training.trainable).any(|((own, _), t)| {
            own.id == ParameterId::LogitScale && *t != Trainable::Frozen
        });
        // The old training's memory goes before the new one's comes.
        self.trainer = None;
        let device = &self.device;
        let flag = |own: &Trainable| match own {
            Trainable::Frozen => 0,
            Trainable::Train { decay: false } => 1,
            Trainable::Train { decay: true } => 2,
        };
        let flags = self.places.flags(training.trainable.iter().map(flag));
        let average = match &training.teacher {
            Some(plan) => Some(self.average(plan.target, &self.values()?)?),
            None => None,
        };
        let layers = |tower| self.config.moe_blocks(tower).len();
        let towers = Tower::BOTH.iter().filter(|&&t| layers(t) > 0).count();
        let fraction = |tower| 1.0 / (layers(tower) * towers).max(1) as f32;
        let fractions = Tower::BOTH.iter().flat_map(|&t| vec![fraction(t); layers(t)]);
        let fractions: Vec<f32> = fractions.collect();
        let sums = self.layers() * (5 + 2 * self.experts());
        let state = |tower| self.clip.state(device, tower, false);
        let flat = || device.buffer(Kind::F32, self.places.len());
        let trainer = Trainer {
            plan: training.clone(),
            full: [state(Tower::Vision)?, state(Tower::Text)?],
            gradient: flat()?,
            first: flat()?,
            second: flat()?,
            flags: device.upload(Kind::U8, &flags)?,
            scale_trains,
            average,
            steps: 0,
            norm: 0.0,
            ready: false,
            numbers: device.buffer(Kind::F64, LAYERS + sums)?,
            again: device.buffer(Kind::F64, sums)?,
            pulls: device.buffer(Kind::F32, self.layers() * (self.experts() + 2))?,
            fractions: device.upload(Kind::F32, &fractions)?,
            loss: Contrastive::new(device)?,
        };
        self.trainer = Some(trainer);
        Ok(())
    }

    fn step(&mut self, pairs: Pairs<'_>) -> Result<Losses> {
        self.with_trainer(|engine, trainer| engine.run(trainer, pairs))
    }

    fn update(&mut self, learning_rate: f64) -> Result<f64> {
        self.with_trainer(|engine, trainer| engine.optimize(trainer, learning_rate))
    }

    fn gradient(&self) -> Result<Vec<f32>> {
        let trainer = self.trainer()?;
        if !trainer.ready {
            return Err(no_gradient());
        }
        self.host(&trainer.gradient)
    }

    fn training_state(&self) -> Result<TrainingState> {
        let trainer = self.trainer()?;
        let average = trainer.average.as_ref();
        Ok(TrainingState {
            values: self.values()?,
            first: self.host(&trainer.first)?,
            second: self.host(&trainer.second)?,
            average: average.map(|own| self.host(&own.weights.values)).transpose()?,
            steps: trainer.steps,
        })
    }

    fn state_buffer(&self, buffer: StateBuffer) -> Result<Cow<'_, [f32]>> {
        let trainer = self.trainer()?;
        let own = match buffer {
            StateBuffer::Values => Some(&self.weights.values),
            StateBuffer::First => Some(&trainer.first),
            StateBuffer::Second => Some(&trainer.second),
            StateBuffer::Average => {
                trainer.average.as_ref().map(|own| &own.weights.values)
            }
        };
        Ok(Cow::Owned(own.map_or(Ok(Vec::new()), |own| self.host(own))?))
    }

    fn restore(&mut self, state: &TrainingState) -> Result<()> {
        let expected = self.places.host_len();
        same_length("first moments", state.first.len(), expected)?;
        same_length("second moments", state.second.len(), expected)?;
        let teaches = self.trainer()?.average.is_some();
        match &state.average {
            Some(average) if teaches => {
                same_length("teacher's weights", average.len(), expected)?;
            }
            None if !teaches => {}
            found => {
                let is = |there| if there { "a teacher" } else { "no teacher" };
                let (state, run) = (is(found.is_some()), is(teaches));
                return Err(Error::failed(format!(
                    "the checkpoint has {state}, the run has {run}"
                )));
            }
        }

        self.replace(&state.values)?;
        self.with_trainer(|engine, trainer| {
            let (device, places) = (&engine.device, &engine.places);
            device.write(&mut trainer.first, &places.spread(&state.first))?;
            device.write(&mut trainer.second, &places.spread(&state.second))?;
            if let (Some(average), Some(values)) = (&mut trainer.average, &state.average)
            {
                average.weights.load(device, &places.spread(values))?;
            }
            trainer.steps = state.steps;
            trainer.ready = false;
            Ok(())
        })
    }
}
