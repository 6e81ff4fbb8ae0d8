//! One training step: forward, losses, backward, and one block of numbers back.
//!
//! A step runs in micro-batches of `optim.micro_batch` pairs, or at once. With several, a first
//! pass leaves nothing but embeddings and sums, the losses see the whole batch, and a second
//! forward makes again what the backward needs: the gradient is that of the large batch,
//! for a third more arithmetic. Each micro-batch is sent twice then, and only two are on the
//! card at a time. Gradients of micro-batches are added in the tree of `group.rs`, which goes
//! on over ranks: a rank runs its own micro-batches, and the losses see those of all.
//!
//! The host reads one block of numbers back per step, behind the backward: losses, sums over
//! the batch, and the norm of the gradient, so that an update waits for nothing.

use super::clip::{Clip, HeadState};
use super::contrast;
use super::device::{Device, Grid, Uploads};
use super::group::{Group, add, additions};
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
use crate::model::names::ParameterId;
use crate::model::{ClipConfig, Tower};

/// Blocks that sum the squares of a gradient.
const NORM_BLOCKS: usize = 1024;

/// The order of the towers: pictures may still be on their way while captions run.
const ORDER: [(Tower, usize); 2] = [(Tower::Text, 1), (Tower::Vision, 0)];

/// What a step needs of the engine.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) device: &'a Device,
    pub(super) group: &'a Group,
    pub(super) config: &'a ClipConfig,
    pub(super) clip: &'a Clip,
    pub(super) store: &'a Store,
    pub(super) scratch: &'a mut Scratch,
    pub(super) uploads: &'a mut Uploads,
    pub(super) light: &'a mut [HeadState; 2],
    pub(super) trainer: &'a mut Trainer,
}

/// One micro-batch on the host, and its place among those of all ranks.
#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    pixels: Pixels<'a>,
    ids: &'a [u32],
    /// Its number, of so many.
    number: usize,
    of: usize,
    /// Its first pair within the batch, and how many it has.
    first: usize,
    pairs: usize,
}

impl Step<'_> {
    /// Losses of a batch; the gradient stays on the card.
    pub(super) fn run(&mut self, pairs: Pairs<'_>) -> Result<Losses> {
        let own = self.count(pairs)?;
        let chunks = self.chunks(pairs, own)?;
        let count = own * self.group.count();

        let Trainer { loss, numbers, again, parts, .. } = &mut *self.trainer;
        loss.fit(self.device, count, self.config.embed_dim)?;
        // Sums are added to these numbers, so they start at zero.
        self.device.fit(parts, chunks[0].of * again.len())?;
        for sums in [&*numbers, &*parts] {
            self.device.clear(sums.all())?;
        }

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
        self.gather()?;
        contrast::run(self.device, (self.config, self.store), self.trainer, count)?;
        self.auxiliary(chunks[0].of)?;

        // Every rank knows the whole gradient of the scale; the sum over ranks takes it once.
        if self.group.rank() > 0 {
            let scale = self.store.places.range(ParameterId::LogitScale);
            self.device.clear(self.trainer.gradient.at(scale))?;
        }

        let mut sums = 0;
        for (chunk, pairs) in chunks.iter().zip(additions(chunks.len())) {
            let rows = match kept.take() {
                Some(rows) => rows,
                None => self.send(*chunk)?,
            };
            self.backward((chunk, &rows), sums, chunks.len() == 1)?;
            self.release(rows)?;
            sums += 1;
            for _ in 0..pairs {
                sums -= 1;
                let (left, right) = (self.trainer.sum(sums - 1), self.trainer.sum(sums));
                add(self.device, left.all(), right.all())?;
            }
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
        let ranks = self.group.count();
        if ranks > 1 {
            return Err(Error::usage(format!(
                "a loss over pictures alone was asked of {ranks} ranks, expected one: \
                 fine-tuning runs on one rank"
            )));
        }
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
        let back = Back { device, weights, gradient, pulls };
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

    /// Cuts the own part of a batch into micro-batches. Whole groups of distillation stay
    /// together: `micro_batch` is a multiple of theirs.
    fn chunks<'a>(&self, pairs: Pairs<'a>, count: usize) -> Result<Vec<Chunk<'a>>> {
        let (picture, caption) = sizes(self.config);
        let (rank, ranks) = (self.group.rank(), self.group.count());

        // 0 stands for the whole batch, of which several ranks have parts.
        let size = match self.trainer.plan.optim.micro_batch {
            0 if ranks == 1 => count,
            size => size,
        };
        if ranks > 1 && (size == 0 || !count.is_multiple_of(size)) {
            return Err(Error::failed(format!(
                "one of {ranks} ranks has {count} pairs in micro-batches of {size}, expected \
                 whole ones"
            )));
        }

        let number = count.div_ceil(size);
        let chunk = |first: usize| {
            let last = (first + size).min(count);
            Chunk {
                pixels: pairs.pixels.part(first * picture..last * picture),
                ids: &pairs.ids[first * caption..last * caption],
                number: rank * number + first / size,
                of: ranks * number,
                first: rank * count + first,
                pairs: last - first,
            }
        };
        Ok((0..count).step_by(size).map(chunk).collect())
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
        let Trainer { plan, full, average, numbers, again, parts, loss, .. } =
            &mut *self.trainer;

        // A teacher of layers runs within the student's pass, one of embeddings below.
        let average = average.as_ref().map(|own| &own.weights);
        let target = plan.teacher.as_ref().map(|plan| plan.target);
        let teacher = match (target, average) {
            (Some(EesdTarget::Layer), Some(average)) => Teacher::Ensemble(average),
            _ => Teacher::None,
        };

        // The sums of the only micro-batch are those of the batch.
        let sums = again.len();
        let into = match chunk {
            Chunk { of: 1, .. } => numbers.at(LAYERS..numbers.len()),
            Chunk { number, .. } => parts.at(number * sums..(number + 1) * sums),
        };
        let statistics = self.config.moe.is_some().then_some(into);
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

    /// Brings what the losses need from all ranks to each: raw embeddings, those of a teacher,
    /// and the sums of every micro-batch.
    fn gather(&self) -> Result<()> {
        let Trainer { plan, parts, loss, .. } = &*self.trainer;
        let target = plan.teacher.as_ref().map(|plan| plan.target);
        let taught = (target == Some(EesdTarget::Embedding)).then_some(&loss.taught);
        let all = loss.raw.iter().chain(taught.into_iter().flatten());
        all.chain([parts]).try_for_each(|own| self.group.gather(self.device, own.all()))
    }

    /// The weights of the auxiliary losses, from the sums over the batch, which come in so many
    /// parts.
    fn auxiliary(&self, parts: usize) -> Result<()> {
        let trainer = &*self.trainer;
        let (layers, objective) = (trainer.fractions.len(), &trainer.plan.objective);
        if layers == 0 {
            return Ok(());
        }

        // Sums of all micro-batches are complete here, by the order of the stream. They are
        // added in one order, whoever formed them.
        let numbers = trainer.numbers.all();
        if parts > 1 {
            let into = numbers.at(LAYERS..numbers.len());
            sum_statistics(self.device, into, (trainer.parts.all(), parts))?;
        }
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

    /// The gradient of a micro-batch, beside so many `sums` of others. What did not `stay` is
    /// made again.
    fn backward(
        &mut self,
        (chunk, rows): (&Chunk<'_>, &[Uploaded; 2]),
        sums: usize,
        stayed: bool,
    ) -> Result<()> {
        let (device, width) = (self.device, self.config.embed_dim);
        let taught = self.trainer.taught();
        self.trainer.make_room(device, sums)?;
        let Trainer { full, average, gradient, waiting, pulls, again, loss, .. } =
            &mut *self.trainer;
        let gradient = if sums == 0 { &*gradient } else { &waiting[sums - 1] };
        let teacher = match (taught, average.as_ref()) {
            (Some(_), Some(average)) => Teacher::Ensemble(&average.weights),
            _ => Teacher::None,
        };

        // A second forward makes its sums again: they go where nobody reads them.
        let weights = &self.store.weights;
        let statistics = self.config.moe.is_some().then(|| again.all());
        let pass = Pass { device, weights, teacher, statistics };

        let back = Back { device, weights, gradient, pulls };
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

    /// Adds up the gradients of all ranks, brings the sum into the form in which weights train,
    /// clears what is frozen, and reads back the numbers of the step, the norm of the rest
    /// among them.
    fn finish(&mut self) -> Result<Vec<f64>> {
        let (device, trainer) = (self.device, &mut *self.trainer);
        self.group.sum(device, &trainer.gradient, &mut trainer.received)?;

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
