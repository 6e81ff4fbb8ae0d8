//! One training step: forward, losses, backward. Optimizer and teacher stand outside.
//!
//! The gradients of the losses need the statistics of the whole batch, so the order is: all
//! groups forward, contrastive loss and sums, all groups backward. Where a batch comes in
//! micro-batches, only the embeddings and the sums outlive the first forward, and each
//! micro-batch runs forward a second time before its backward: the gradient is that of the
//! whole batch, the activations in memory are those of one micro-batch.

use std::ops::Range;

use super::clip::{BlockGradients, Clip};
use super::ops::contrastive::{Contrastive, Unit};
use super::passes::{EmbeddingGradients, Passes, Sum, part};
use super::tower::{Flat, MoeMode};
use crate::engine::{
    ImageLoss, LayerStats, Losses, Objective, Pairs, Pixels, StatsGradient, auxiliary,
};
use crate::error::{Error, Result};
use crate::model::Tower;
use crate::model::names::ParameterId;
use crate::num::round_f32;

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

    /// Losses of a batch; the gradient overwrites `flat.gradients`.
    pub(super) fn run(
        &mut self,
        clip: &Clip,
        flat: &mut Flat<'_>,
        request: &Request<'_>,
    ) -> Losses {
        let &Request { pairs, objective, distillation, micro_batch } = request;
        let width = clip.config().embed_dim;
        let scale_at = clip.layout().range(ParameterId::LogitScale).start;
        let logit_scale = flat.values[scale_at];

        let mode = match distillation {
            Distillation::Layers { teacher, fraction } => {
                MoeMode::Distilled { teacher, fraction }
            }
            Distillation::None | Distillation::Embeddings { .. } => MoeMode::TopK,
        };

        let parts = parts(pairs.ids.len() / clip.sizes().1, micro_batch);

        // First, all parts forward. Embeddings and sums are kept, activations only
        // where there is one part.
        let mut losses =
            Losses { logit_scale: f64::from(logit_scale), ..Losses::default() };
        losses.layers = no_stats(clip);
        self.images.clear();
        self.texts.clear();
        for range in &parts {
            let own = part(clip, pairs, range.clone());
            self.student.forward(clip, flat.values, own, mode);
            self.student.append_embeddings(&mut self.images, &mut self.texts);
            self.student.add_stats(clip, &mut losses.layers);
        }

        // Then the losses, which need the whole batch.
        self.contrastive.label_smoothing = objective.label_smoothing;
        self.contrastive.run(&self.images, &self.texts, width, logit_scale);
        losses.clip = self.contrastive.loss;
        if let Distillation::Embeddings { teacher } = distillation {
            let request = (pairs, parts.as_slice(), objective.eesd);
            losses.eesd = self.distill_embeddings(clip, teacher, request);
        } else {
            self.contrastive.finish(None, width);
        }

        let gradients = auxiliary(clip.config(), &objective, &mut losses);
        let by_block = by_block(clip, &losses, gradients);

        // Last, all parts backward with the same upstream gradients.
        for (index, range) in parts.iter().enumerate() {
            // The activations of the only part are still there.
            if parts.len() > 1 {
                let own = part(clip, pairs, range.clone());
                self.student.forward(clip, flat.values, own, mode);
            }

            let rows = range.start * width..range.end * width;
            let embeddings = EmbeddingGradients {
                images: &self.contrastive.image_gradient[rows.clone()],
                texts: &self.contrastive.text_gradient[rows],
            };
            let sum = if index == 0 { Sum::Replace } else { Sum::Add };
            self.student.backward(clip, flat, (embeddings, &by_block), sum);
        }

        flat.gradients[scale_at] = round_f32(self.contrastive.scale_gradient);

        losses.total = losses.clip
            + objective.balance * losses.balance
            + objective.router_z * losses.router_z
            + objective.eesd * losses.eesd;
        losses
    }

    /// A loss over pictures alone; its gradient overwrites `flat.gradients`.
    ///
    /// The passes run both towers, so every picture gets the shortest of captions, of one
    /// token, whose embedding enters no loss and gets no gradient.
    pub(super) fn images(
        &mut self,
        clip: &Clip,
        flat: &mut Flat<'_>,
        pixels: &[f32],
        loss: ImageLoss<'_>,
    ) -> Result<f64> {
        let (picture, caption) = clip.sizes();
        let (count, width) = (pixels.len() / picture, clip.config().embed_dim);
        let ids = vec![0; count * caption];
        self.student.forward(
            clip,
            flat.values,
            Pairs { pixels: Pixels::Values(pixels), ids: &ids },
            MoeMode::TopK,
        );
        self.images.clear();
        self.texts.clear();
        self.student.append_embeddings(&mut self.images, &mut self.texts);

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
        self.student.backward(clip, flat, (embeddings, &stats), Sum::Replace);
        Ok(value)
    }

    /// Mean squared distance of unit embeddings to the teacher's, over both towers; adds
    /// its gradient to the contrastive one.
    fn distill_embeddings(
        &mut self,
        clip: &Clip,
        teacher: &[f32],
        (pairs, parts, weight): (Pairs<'_>, &[Range<usize>], f64),
    ) -> f64 {
        let width = clip.config().embed_dim;
        let passes = self.teacher.get_or_insert_with(Passes::default);
        let (mut images, mut texts) = (Vec::new(), Vec::new());
        for range in parts {
            let own = part(clip, pairs, range.clone());
            passes.forward(clip, teacher, own, MoeMode::Ensemble);
            passes.append_embeddings(&mut images, &mut texts);
        }

        let count = (images.len() + texts.len()) / width;

        // The mean over all embeddings of both towers; d‖y - t‖²/dy = 2 (y - t).
        let factor = round_f32(2.0 * weight / count as f64);
        let mut distance = 0.0;

        let (own_images, own_texts) = self.contrastive.unit_rows();
        let mut gradient = |raw: &[f32], own: &[f32]| -> Vec<f32> {
            let mut unit = Unit::default();
            unit.normalize(raw, width);
            let difference = own.iter().zip(&unit.rows).map(|(y, t)| y - t);
            let difference: Vec<f32> = difference.collect();
            distance += difference.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            difference.iter().map(|v| factor * v).collect()
        };

        let (images, texts) =
            (gradient(&images, own_images), gradient(&texts, own_texts));
        self.contrastive.finish(Some((&images, &texts)), width);
        distance / count as f64
    }
}

/// The ranges of pairs that are in memory at a time.
fn parts(count: usize, micro_batch: usize) -> Vec<Range<usize>> {
    let size = if micro_batch == 0 { count.max(1) } else { micro_batch };
    (0..count).step_by(size).map(|from| from..(from + size).min(count)).collect()
}

/// Empty sums of every MoE layer.
fn no_stats(clip: &Clip) -> Vec<(Tower, usize, LayerStats)> {
    let blocks = |tower| clip.config().moe_blocks(tower).iter();
    let layers =
        |tower| blocks(tower).map(move |&block| (tower, block, LayerStats::default()));
    Tower::BOTH.into_iter().flat_map(layers).collect()
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
