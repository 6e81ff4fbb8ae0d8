//! The contrastive loss over a whole batch, and the distance to a teacher's embeddings.
//!
//! Raw embeddings go in, their gradients and the logit scale's come out; the kernels and
//! their mathematics are in `kernels/loss.cuh`.

use super::device::{Device, Extents, Grid, Operand, Slice};
use super::ops::{normalize, sum_statistics};
use super::store::Store;
use super::trainer::{Contrastive, DISTANCE, Trainer};
use crate::config::EesdTarget;
use crate::error::Result;
use crate::model::ClipConfig;
use crate::model::names::ParameterId;
use crate::num::round_f32;

/// Losses of `pairs` pairs, and the gradients of their raw embeddings.
pub(super) fn run(
    device: &Device,
    (config, store): (&ClipConfig, &Store),
    trainer: &Trainer,
    pairs: usize,
) -> Result<()> {
    let own = &trainer.loss;
    let shape = (pairs, config.embed_dim);
    for side in 0..2 {
        let io = (own.unit[side].all(), own.inverse[side].all(), own.raw[side].all());
        normalize(device, io, shape)?;
    }

    similarities(device, trainer, shape)?;
    softmax(device, store, trainer, pairs)?;
    unit_gradients(device, trainer, shape)?;
    distill(device, trainer, shape)
}

/// Cosines of every picture with every caption.
fn similarities(
    device: &Device,
    trainer: &Trainer,
    (pairs, width): (usize, usize),
) -> Result<()> {
    let own = &trainer.loss;
    let [images, texts] =
        [0, 1].map(|side: usize| Operand::new(own.unit[side].all(), width));
    let extents = Extents { m: pairs, n: pairs, k: width };
    device.gemm((own.similarity.all(), pairs), (images, texts.turned()), extents, 0.0)
}

/// The loss, the logit scale's gradient, and that of the similarities in their place.
fn softmax(
    device: &Device,
    store: &Store,
    trainer: &Trainer,
    pairs: usize,
) -> Result<()> {
    let own = &trainer.loss;
    let similarity = own.similarity.all();
    let scale_at = store.places.range(ParameterId::LogitScale);
    let scale = store.weights.master(&scale_at);
    let [rows, columns] = [own.log_sum[0].all(), own.log_sum[1].all()];

    // Both log sums come first: the gradient then overwrites the similarities.
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

    // The losses run once per step, over all pairs: the scale's gradient is replaced.
    let args = [
        trainer.numbers.at(0..2).into(),
        trainer.gradient.at(scale_at).into(),
        (&own.partial).into(),
        scale.into(),
        pairs.into(),
    ];
    device.launch("contrastive_finish", Grid::new([1, 1, 1], 256), &args)
}

/// Gradients of the unit embeddings, from that of the similarities.
fn unit_gradients(
    device: &Device,
    trainer: &Trainer,
    (pairs, width): (usize, usize),
) -> Result<()> {
    let own = &trainer.loss;
    let operand = |side: usize| Operand::new(own.unit[side].all(), width);
    let square = Operand::new(own.similarity.all(), pairs);
    let extents = Extents { m: pairs, n: width, k: pairs };

    // With S the gradient of the similarities: dI = S T and dT = Sᵀ I.
    let into = |side: usize| (own.gradient[side].all(), width);
    device.gemm(into(0), (square, operand(1)), extents, 0.0)?;
    device.gemm(into(1), (square.turned(), operand(0)), extents, 0.0)
}

/// Gradients of the raw embeddings, with the pull towards a teacher's where embeddings are
/// distilled.
fn distill(device: &Device, trainer: &Trainer, shape: (usize, usize)) -> Result<()> {
    let own = &trainer.loss;
    let plan = trainer.plan.teacher.as_ref();
    let distills = plan.is_some_and(|plan| plan.target == EesdTarget::Embedding);

    // The distance is a mean over both towers; its square brings the factor 2.
    let count = 2 * shape.0;
    let factor = round_f32(2.0 * trainer.plan.objective.eesd / count as f64);
    for side in 0..2 {
        let taught = own.taught[side].all();
        if distills {
            // The student's deviation is kept; the teacher's is not needed any more, and the
            // log sums of the rows have been read.
            normalize(device, (taught, own.log_sum[0].all(), taught), shape)?;
        }

        let pull = distills.then_some((taught, factor));
        unit_backward(device, own, side, (pull, shape))?;
    }

    // Without a teacher the kernel writes no distances.
    if distills {
        let into = trainer.numbers.at(DISTANCE..DISTANCE + 1);
        sum_statistics(device, into, (own.distance.all(), count))?;
    }
    Ok(())
}

/// The gradient of the raw embeddings of one side from that of the unit ones, and with a
/// teacher's embeddings the pull towards them by a factor.
pub(super) fn unit_backward(
    device: &Device,
    own: &Contrastive,
    side: usize,
    (pull, (pairs, width)): (Option<(Slice<'_>, f32)>, (usize, usize)),
) -> Result<()> {
    let distance = own.distance.at(side * pairs..(side + 1) * pairs);
    let args = [
        (&own.draw[side]).into(),
        distance.into(),
        (&own.gradient[side]).into(),
        (&own.unit[side]).into(),
        (&own.inverse[side]).into(),
        pull.map(|(taught, _)| taught).into(),
        pull.map_or(0.0, |(_, factor)| factor).into(),
        pairs.into(),
        width.into(),
    ];
    device.launch("unit_backward", Grid::warps(pairs), &args)
}
