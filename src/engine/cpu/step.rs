//! One training step: forward, losses, backward. Optimizer and teacher stand outside.
//!
//! The gradients of the losses need the statistics of the whole batch, so the order is: all
//! groups forward, contrastive loss and sums, all groups backward. Where a batch comes in
//! micro-batches, only the embeddings and the sums outlive the first forward, and each
//! micro-batch runs forward a second time before its backward: the gradient is that of the
//! whole batch to the last bit, the activations in memory are those of one micro-batch.
//!
//! A rank runs its own groups. What the losses need of the others are the embeddings and the
//! sums of every group; the gradient that comes out here is the sum over the own groups alone.

use super::clip::{BlockGradients, Clip, GROUP};
use super::ops::contrastive::{Contrastive, STRIP, Unit};
use super::passes::{Deal, EmbeddingGradients, Part, Passes, Sum};
use super::tower::{Flat, MoeMode};
use crate::engine::{
    ImageLoss, LayerStats, Losses, Objective, Pairs, StatsGradient, auxiliary,
};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::model::Tower;
use crate::model::names::ParameterId;
use crate::num::round_f32;
use crate::ranks::Ranks;

// A rank has whole groups of samples, so it has whole strips of similarities.
const _: () = assert!(GROUP.is_multiple_of(STRIP), "strips do not cross groups");

/// What is distilled into the student during a step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Distillation<'a> {
    /// Nothing.
    None,
    /// Each MoE layer's output, towards the ensemble of the teacher's experts.
    Layers {
        /// The teacher's weights.
        teacher: &'a [f32],
        /// Fraction of the counted rows.
        fraction: f64,
    },
    /// The final embeddings, towards those of the teacher with every layer run as its dense
    /// ensemble.
    Embeddings {
        /// The teacher's weights.
        teacher: &'a [f32],
    },
}

/// What a step is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) pairs: Pairs<'a>,
    pub(super) objective: Objective,
    pub(super) distillation: Distillation<'a>,
    pub(super) cut: Cut,
}

/// How the pairs of a rank are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Sums of gradients that the rank forms side by side, a power of two.
    pub(super) lanes: usize,
    /// Pairs whose activations are in memory at a time; 0 for all.
    pub(super) micro_batch: usize,
}

/// Buffers of a step.
#[derive(Debug, Clone)]
pub(super) struct Step {
    student: Passes,
    teacher: Option<Passes>,
    contrastive: Contrastive,
    images: Vec<f32>,
    texts: Vec<f32>,
}

impl Step {
    /// No buffers yet: they grow with the first batch.
    pub(super) fn new() -> Self {
        Self {
            student: Passes::default(),
            teacher: None,
            contrastive: Contrastive::default(),
            images: Vec::new(),
            texts: Vec::new(),
        }
    }

    /// Losses of the whole batch; the gradient of the own groups overwrites
    /// `flat.gradients`.
    pub(super) fn run(
        &mut self,
        clip: &Clip,
        flat: &mut Flat<'_>,
        ranks: &dyn Ranks,
        request: &Request<'_>,
    ) -> Result<Losses> {
        let &Request { pairs, objective, distillation, cut } = request;
        let width = clip.config().embed_dim;
        let scale_at = clip.layout().range(ParameterId::LogitScale).start;
        let logit_scale = flat.values[scale_at];

        let mode = match distillation {
            Distillation::Layers { teacher, fraction } => {
                MoeMode::Distilled { teacher, fraction }
            }
            Distillation::None | Distillation::Embeddings { .. } => MoeMode::TopK,
        };

        let count = pairs.ids.len() / clip.sizes().1;
        let parts = Deal::new(count, cut.lanes).parts(cut.micro_batch);

        // First, all parts forward. Embeddings and sums are kept, activations only
        // where there is one part.
        let layers = moe_layers(clip);
        let mut groups = vec![Vec::new(); count.div_ceil(GROUP)];
        self.images.resize(count * width, 0.0);
        self.texts.resize(count * width, 0.0);
        for part in &parts {
            self.student.forward(clip, flat.values, (pairs, part), mode);
            self.student.embeddings(part, &mut self.images, &mut self.texts);
            self.student.stats(clip, part, (&layers, &mut groups));
        }

        // Then the losses, which need the whole batch.
        let mut losses =
            Losses { logit_scale: f64::from(logit_scale), ..Losses::default() };
        losses.layers = sum_stats(ranks, &layers, &groups)?;
        self.contrastive.label_smoothing = objective.label_smoothing;
        let raw = (self.images.as_slice(), self.texts.as_slice());
        self.contrastive.run(ranks, raw, width, logit_scale)?;
        losses.clip = self.contrastive.loss;
        if let Distillation::Embeddings { teacher } = distillation {
            let request = (pairs, parts.as_slice(), objective.eesd);
            losses.eesd = self.distill_embeddings(clip, teacher, ranks, request)?;
        } else {
            self.contrastive.finish(None, width);
        }

        let gradients = auxiliary(clip.config(), &objective, &mut losses);
        let by_block = by_block(clip, &losses, gradients);

        // Last, all parts backward with the same upstream gradients.
        let embeddings = EmbeddingGradients {
            images: &self.contrastive.image_gradient,
            texts: &self.contrastive.text_gradient,
        };
        for (index, part) in parts.iter().enumerate() {
            // The activations of the only part are still there.
            if parts.len() > 1 {
                self.student.forward(clip, flat.values, (pairs, part), mode);
            }

            let sum = if index == 0 { Sum::Replace } else { Sum::Add };
            self.student.backward(clip, flat, (part, sum), (embeddings, &by_block));
        }
        self.student.add_lanes(flat.gradients);

        // Every rank knows the whole gradient of the scale; the sum over ranks takes it once.
        let own = if ranks.rank() == 0 { self.contrastive.scale_gradient } else { 0.0 };
        flat.gradients[scale_at] = round_f32(own);

        losses.total = losses.clip
            + objective.balance * losses.balance
            + objective.router_z * losses.router_z
            + objective.eesd * losses.eesd;
        Ok(losses)
    }

    /// A loss over pictures alone; its gradient overwrites `flat.gradients`.
    ///
    /// The passes run both towers, so every picture gets the shortest of captions, of one
    /// token, whose embedding enters no loss and gets no gradient.
    pub(super) fn images(
        &mut self,
        clip: &Clip,
        flat: &mut Flat<'_>,
        (pixels, lanes): (Pixels<'_>, usize),
        loss: ImageLoss<'_>,
    ) -> Result<f64> {
        let (picture, caption) = clip.sizes();
        let (count, width) = (pixels.len() / picture, clip.config().embed_dim);
        let ids = vec![0; count * caption];
        let pairs = Pairs { pixels, ids: &ids };
        self.images.resize(count * width, 0.0);
        self.texts.resize(count * width, 0.0);
        let parts = Deal::new(count, lanes).parts(0);
        for part in &parts {
            self.student.forward(clip, flat.values, (pairs, part), MoeMode::TopK);
            self.student.embeddings(part, &mut self.images, &mut self.texts);
        }

        let mut unit = Unit::default();
        unit.normalize(&self.images, width);
        let (value, mut gradient) = loss(&unit.rows)?;
        let (found, expected) = (gradient.len(), unit.rows.len());
        if found != expected {
            return Err(Error::failed(format!(
                "a loss over pictures has {found} values of gradient, expected {expected}"
            )));
        }
        unit.backward(&mut gradient, width);

        self.texts.fill(0.0);
        let embeddings = EmbeddingGradients { images: &gradient, texts: &self.texts };
        // No auxiliary loss: zeros for every expert, whose number the routers read here.
        let experts = clip.config().moe.as_ref().map_or(0, |moe| moe.experts);
        let zero =
            StatsGradient { probability: vec![0.0; experts], ..StatsGradient::default() };
        let empty = |tower| vec![zero.clone(); clip.config().tower(tower).layers];
        let stats =
            BlockGradients { vision: empty(Tower::Vision), text: empty(Tower::Text) };
        for part in &parts {
            let sum = (part, Sum::Replace);
            self.student.backward(clip, flat, sum, (embeddings, &stats));
        }
        self.student.add_lanes(flat.gradients);
        Ok(value)
    }

    /// Mean squared distance of unit embeddings to the teacher's, over both towers; adds
    /// its gradient to the contrastive one.
    fn distill_embeddings(
        &mut self,
        clip: &Clip,
        teacher: &[f32],
        ranks: &dyn Ranks,
        (pairs, parts, weight): (Pairs<'_>, &[Part], f64),
    ) -> Result<f64> {
        let width = clip.config().embed_dim;
        let passes = self.teacher.get_or_insert_with(Passes::default);
        let (mut images, mut texts) =
            (vec![0.0; self.images.len()], vec![0.0; self.texts.len()]);
        for part in parts {
            passes.forward(clip, teacher, (pairs, part), MoeMode::Ensemble);
            passes.embeddings(part, &mut images, &mut texts);
        }

        // The mean over all embeddings of both towers; d‖y - t‖²/dy = 2 (y - t).
        let count = (images.len() + texts.len()) / width * ranks.count();
        let factor = round_f32(2.0 * weight / count as f64);

        // Raw embeddings of the teacher become gradients, and squares are summed by group.
        let group = GROUP * width;
        let mut distances = vec![0.0; images.len().div_ceil(group)];
        let (own_images, own_texts) = self.contrastive.unit_rows();
        for (raw, own) in [(&mut images, own_images), (&mut texts, own_texts)] {
            let mut unit = Unit::default();
            unit.normalize(raw, width);
            for (gradient, (y, t)) in raw.iter_mut().zip(own.iter().zip(&unit.rows)) {
                *gradient = y - t;
            }

            for (sum, own) in distances.iter_mut().zip(raw.chunks_mut(group)) {
                *sum += own.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                for v in own {
                    *v *= factor;
                }
            }
        }
        self.contrastive.finish(Some((&images, &texts)), width);

        let mut all = vec![0.0; distances.len() * ranks.count()];
        ranks.gather(&distances, &mut all)?;
        Ok(all.iter().sum::<f64>() / count as f64)
    }
}

/// Every MoE layer.
fn moe_layers(clip: &Clip) -> Vec<(Tower, usize)> {
    let layers = |tower| clip.config().moe_blocks(tower).iter().map(move |&b| (tower, b));
    Tower::BOTH.into_iter().flat_map(layers).collect()
}

/// The statistics of every MoE layer over the whole batch, from those of the own groups: sums
/// in the order of the groups.
fn sum_stats(
    ranks: &dyn Ranks,
    layers: &[(Tower, usize)],
    groups: &[Vec<LayerStats>],
) -> Result<Vec<(Tower, usize, LayerStats)>> {
    let own: Vec<f64> = groups.iter().flatten().flat_map(LayerStats::numbers).collect();
    let mut all = vec![0.0; own.len() * ranks.count()];
    ranks.gather(&own, &mut all)?;

    let sums = layers.iter().map(|&(tower, block)| (tower, block, LayerStats::default()));
    let mut sums: Vec<(Tower, usize, LayerStats)> = sums.collect();

    // All layers have the same experts, so all have as many numbers.
    let width = own.len().checked_div(groups.len() * layers.len()).unwrap_or(1);
    for (index, numbers) in all.chunks_exact(width).enumerate() {
        sums[index % layers.len()].2.add(&LayerStats::of_numbers(numbers));
    }
    Ok(sums)
}

/// The gradients of the MoE layers, which come in the order of `losses.layers`, and empty
/// ones of the dense blocks.
fn by_block(
    clip: &Clip,
    losses: &Losses,
    gradients: Vec<StatsGradient>,
) -> BlockGradients {
    let empty = |tower| vec![StatsGradient::default(); clip.config().tower(tower).layers];
    let mut all =
        BlockGradients { vision: empty(Tower::Vision), text: empty(Tower::Text) };
    for ((tower, block, _), gradient) in losses.layers.iter().zip(gradients) {
        match tower {
            Tower::Vision => all.vision[*block] = gradient,
            Tower::Text => all.text[*block] = gradient,
        }
    }
    all
}
