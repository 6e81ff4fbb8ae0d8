//! One training step: forward, losses, backward, and one block of numbers back.
//!
//! A step runs in micro-batches of `optim.micro_batch` pairs, or at once. With several, a first
//! pass leaves nothing but embeddings and sums, the losses see the whole batch, and a second
//! forward makes again what the backward needs: the gradient is that of the large batch,
//! for a third more arithmetic. Each micro-batch is sent twice then, and only two are on the
//! card at a time.
//!
//! The host reads one block of numbers back per step, behind the backward: losses, sums over
//! the batch, and the norm of the gradient, so that an update waits for nothing.

use super::clip::{Clip, HeadState};
use super::contrast;
use super::device::{Device, Grid, Uploads};
use super::ops::{normalize, sum_statistics};
use super::pass::{Back, Pass, Scratch, Teacher};
use super::store::Store;
use super::tower::Watch;
use super::trainer::{DISTANCE, LAYERS, NORM, Trainer};
use super::uploaded::{Uploaded, sizes};
use crate::config::EesdTarget;
use crate::engine::{
    ImageLoss, LayerStats, Losses, Pairs, Trainable, Training, auxiliary,
};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::model::{ClipConfig, Tower};

/// Blocks that sum the squares of a gradient.
const NORM_BLOCKS: usize = 1024;

/// The order of the towers: pictures may still be on their way while captions run.
const ORDER: [(Tower, usize); 2] = [(Tower::Text, 1), (Tower::Vision, 0)];

/// What a step needs of the engine.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) device: &'a Device,
    pub(super) config: &'a ClipConfig,
    pub(super) clip: &'a Clip,
    pub(super) store: &'a Store,
    pub(super) scratch: &'a mut Scratch,
    pub(super) uploads: &'a mut Uploads,
    pub(super) light: &'a mut [HeadState; 2],
    pub(super) trainer: &'a mut Trainer,
}

/// One micro-batch on the host, and its first pair.
#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    pixels: Pixels<'a>,
    ids: &'a [u32],
    first: usize,
    pairs: usize,
}

impl Step<'_> {
    /// Losses of a batch; the gradient stays on the card.
    pub(super) fn run(&mut self, pairs: Pairs<'_>) -> Result<Losses> {
        let count = self.count(pairs)?;
        let chunks = self.chunks(pairs, count);

        self.trainer.loss.fit(self.device, count, self.config.embed_dim)?;
        // Sums are added to these numbers, so they start at zero.
        self.device.clear(self.trainer.numbers.all())?;

        // With one micro-batch, its rows and all that its backward needs stay.
        let mut kept = None;
        for chunk in &chunks {
            let rows = self.send(*chunk)?;
            self.forward(chunk, &rows, chunks.len() == 1)?;
            if chunks.len() == 1 {
                kept = Some(rows);
            } else {
                self.release(rows)?;
            }
        }

        // The losses need all embeddings; the order of the stream sees to that.
        contrast::run(self.device, (self.config, self.store), self.trainer, count)?;
        self.auxiliary()?;

        for (number, chunk) in chunks.iter().enumerate() {
            let rows = match kept.take() {
                Some(rows) => rows,
                None => self.send(*chunk)?,
            };
            self.backward((chunk, &rows), number == 0, chunks.len() == 1)?;
            self.release(rows)?;
        }

        let numbers = self.finish()?;
        Ok(self.losses(&self.trainer.plan, &numbers, count))
    }

    /// A loss over the unit embeddings of pictures alone; its gradient stays on the card.
    ///
    /// The loss is the caller's, so embeddings go to the host and their gradient comes back:
    /// the host waits once more than in [`Self::run`].
    pub(super) fn images(
        &mut self,
        pixels: Pixels<'_>,
        loss: ImageLoss<'_>,
    ) -> Result<f64> {
        let (device, width) = (self.device, self.config.embed_dim);
        let rows = Uploaded::pictures(device, self.config, pixels, None, self.uploads)?;
        let count = rows.batch.samples();
        self.trainer.loss.fit(device, count, width)?;

        let value = self.image_loss(&rows, loss)?;
        self.image_gradient(&rows)?;
        self.release_one(rows)?;

        self.finish()?;
        Ok(value)
    }

    /// The forward of some pictures, the caller's loss, and the gradient of their raw
    /// embeddings.
    fn image_loss(&mut self, rows: &Uploaded, loss: ImageLoss<'_>) -> Result<f64> {
        let (device, shape) =
            (self.device, (rows.batch.samples(), self.config.embed_dim));
        let Trainer { full, loss: own, .. } = &mut *self.trainer;

        let raw = own.raw[0].all();
        let pass = Pass::plain(device, &self.store.weights);
        let buffers = (&mut full[0], &mut *self.scratch);
        let into = (raw, Watch::Nothing);
        self.clip.forward(pass, (Tower::Vision, rows), buffers, into)?;
        normalize(device, (own.unit[0].all(), own.inverse[0].all(), raw), shape)?;

        let (value, gradient) = loss(&device.download::<f32>(&own.unit[0])?)?;
        let (found, expected) = (gradient.len(), shape.0 * shape.1);
        if found != expected {
            return Err(Error::failed(format!(
                "a loss over pictures has {found} values of gradient, expected {expected}"
            )));
        }
        device.write(&mut own.gradient[0], &gradient)?;
        contrast::unit_backward(device, own, 0, (None, shape))?;
        Ok(value)
    }

    /// The image tower's gradient from that of the raw embeddings; zeros everywhere else.
    fn image_gradient(&mut self, rows: &Uploaded) -> Result<()> {
        let device = self.device;
        let Trainer { full, gradient, pulls, numbers, loss, .. } = &mut *self.trainer;

        // No auxiliary loss pulls at a router, and sums are added to numbers.
        for buffer in [&*gradient, &*pulls, &*numbers] {
            device.clear(buffer.all())?;
        }
        let weights = &self.store.weights;
        let back = Back { device, weights, gradient, beta: 0.0, pulls };
        let buffers = (&mut full[0], &mut *self.scratch);
        self.clip.backward(back, (Tower::Vision, rows), loss.draw[0].all(), buffers)
    }

    /// The pairs of a batch: at least one, and as many pictures as captions.
    fn count(&self, pairs: Pairs<'_>) -> Result<usize> {
        let (picture, caption) = sizes(self.config);
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

    /// Cuts a batch into micro-batches. Whole groups of distillation stay together:
    /// `micro_batch` is a multiple of theirs.
    fn chunks<'a>(&self, pairs: Pairs<'a>, count: usize) -> Vec<Chunk<'a>> {
        let (picture, caption) = sizes(self.config);

        // 0 stands for the whole batch.
        let size = match self.trainer.plan.optim.micro_batch {
            0 => count,
            size => size,
        };
        let chunk = |first: usize| {
            let last = (first + size).min(count);
            Chunk {
                pixels: pairs.pixels.part(first * picture..last * picture),
                ids: &pairs.ids[first * caption..last * caption],
                first,
                pairs: last - first,
            }
        };
        (0..count).step_by(size).map(chunk).collect()
    }

    fn send(&mut self, chunk: Chunk<'_>) -> Result<[Uploaded; 2]> {
        let (device, config, taught) = (self.device, self.config, self.trainer.taught());
        let pictures =
            Uploaded::pictures(device, config, chunk.pixels, taught, self.uploads)?;
        Ok([pictures, Uploaded::captions(device, config, chunk.ids, taught)?])
    }

    fn release(&mut self, rows: [Uploaded; 2]) -> Result<()> {
        rows.into_iter().try_for_each(|own| self.release_one(own))
    }

    fn release_one(&mut self, rows: Uploaded) -> Result<()> {
        rows.release(self.device, self.uploads)
    }

    /// Embeddings and sums of a micro-batch, and what its backward needs where it is to
    /// `stay`.
    fn forward(
        &mut self,
        chunk: &Chunk<'_>,
        rows: &[Uploaded; 2],
        stay: bool,
    ) -> Result<()> {
        let (device, width) = (self.device, self.config.embed_dim);
        let Trainer { plan, full, average, numbers, loss, .. } = &mut *self.trainer;

        // A teacher of layers runs within the student's pass, one of embeddings below.
        let average = average.as_ref().map(|own| &own.weights);
        let target = plan.teacher.as_ref().map(|plan| plan.target);
        let teacher = match (target, average) {
            (Some(EesdTarget::Layer), Some(average)) => Teacher::Ensemble(average),
            _ => Teacher::None,
        };

        let all = numbers.all();
        let statistics = self.config.moe.is_some().then(|| all.at(LAYERS..all.len()));
        let pass = Pass { device, weights: &self.store.weights, teacher, statistics };
        let range = chunk.first * width..(chunk.first + chunk.pairs) * width;

        for (tower, own) in ORDER {
            let state = if stay { &mut full[own] } else { &mut self.light[own] };
            let buffers = (state, &mut *self.scratch);
            let into = (loss.raw[own].at(range.clone()), Watch::Nothing);
            self.clip.forward(pass, (tower, &rows[own]), buffers, into)?;

            // No backward goes through the teacher, so a light state will do.
            if let (Some(EesdTarget::Embedding), Some(average)) = (target, average) {
                let teacher = Teacher::IsEnsemble;
                let pass = Pass { device, weights: average, teacher, statistics: None };
                let buffers = (&mut self.light[own], &mut *self.scratch);
                let into = (loss.taught[own].at(range.clone()), Watch::Nothing);
                self.clip.forward(pass, (tower, &rows[own]), buffers, into)?;
            }
        }
        Ok(())
    }

    /// The weights of the auxiliary losses, from the sums over the batch.
    fn auxiliary(&self) -> Result<()> {
        let trainer = &*self.trainer;
        let (layers, objective) = (trainer.fractions.len(), &trainer.plan.objective);
        if layers == 0 {
            return Ok(());
        }

        // Sums of all micro-batches are complete here, by the order of the stream.
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

    /// Adds a micro-batch to the gradient; the `first` one replaces it. What did not `stay`
    /// is made again.
    fn backward(
        &mut self,
        (chunk, rows): (&Chunk<'_>, &[Uploaded; 2]),
        first: bool,
        stayed: bool,
    ) -> Result<()> {
        let (device, width) = (self.device, self.config.embed_dim);
        let taught = self.trainer.taught();
        let Trainer { full, average, gradient, pulls, again, loss, .. } =
            &mut *self.trainer;
        let teacher = match (taught, average.as_ref()) {
            (Some(_), Some(average)) => Teacher::Ensemble(&average.weights),
            _ => Teacher::None,
        };

        // A second forward makes its sums again: they go where nobody reads them.
        let weights = &self.store.weights;
        let statistics = self.config.moe.is_some().then(|| again.all());
        let pass = Pass { device, weights, teacher, statistics };

        let beta = if first { 0.0 } else { 1.0 };
        let back = Back { device, weights, gradient, beta, pulls };
        let range = chunk.first * width..(chunk.first + chunk.pairs) * width;

        for (tower, own) in ORDER {
            let rows = (tower, &rows[own]);
            if !stayed {
                let buffers = (&mut full[own], &mut *self.scratch);
                let into = (loss.raw[own].at(range.clone()), Watch::Nothing);
                self.clip.forward(pass, rows, buffers, into)?;
            }
            let draw = loss.draw[own].at(range.clone());
            let buffers = (&mut full[own], &mut *self.scratch);
            self.clip.backward(back, rows, draw, buffers)?;
        }
        Ok(())
    }

    /// Brings the gradient into the form in which weights train, clears what is frozen, and
    /// reads back the numbers of the step, the norm of the rest among them.
    fn finish(&mut self) -> Result<Vec<f64>> {
        let (device, trainer) = (self.device, &mut *self.trainer);
        let (places, gradient) =
            (self.store.trained_places(), trainer.trained_gradient());
        self.store.pull_back(device, gradient, &trainer.gradient)?;

        // What is frozen must not count in the norm.
        for (range, own) in places.ranges().zip(&trainer.plan.trainable) {
            if *own == Trainable::Frozen {
                device.clear(gradient.at(range))?;
            }
        }

        // The loss's partial sums have been read: their f64 memory serves the norm.
        let partial = trainer.loss.partial.all();
        let blocks = places.pages().min(NORM_BLOCKS).min(partial.len());
        let args = [partial.into(), gradient.into(), places.pages().into()];
        device.launch("squared_norm", Grid::new([blocks, 1, 1], 256), &args)?;
        let norm = trainer.numbers.at(NORM..NORM + 1);
        sum_statistics(device, norm, (partial, blocks))?;

        // The host waits here until the whole step has run.
        let numbers = device.read_back(&trainer.numbers)?.wait::<f64>()?;
        trainer.norm = numbers[NORM].sqrt();
        trainer.ready = true;
        Ok(numbers)
    }

    fn experts(&self) -> usize {
        self.config.moe.as_ref().map_or(0, |moe| moe.experts)
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
        auxiliary(self.config, objective, &mut losses);
        losses.total = losses.clip
            + objective.balance * losses.balance
            + objective.router_z * losses.router_z
            + objective.eesd * losses.eesd;
        losses
    }
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
