//! One step of `AdamW`, of the logit scale's bounds, and of the teacher.

use super::device::{Buffer, Device, Grid};
use super::store::Store;
use super::trainer::Trainer;
use crate::error::Result;
use crate::model::names::ParameterId;
use crate::num::round_f32;

/// The largest logarithm of the logit scale: ln 100.
const LARGEST_SCALE: f32 = 4.605_170_2;

/// Moves the weights along the gradient of the last step; its norm before clipping comes
/// back, and nothing is waited for.
pub(super) fn update(
    device: &Device,
    store: &Store,
    trainer: &mut Trainer,
    learning_rate: f64,
) -> Result<f64> {
    trainer.ready = false;
    trainer.steps += 1;
    adamw(device, store, trainer, learning_rate)?;

    // METHOD §4: a scale that trains stays between 1 and 100.
    if trainer.scale_trains {
        let range = store.trained_places().range(ParameterId::LogitScale);
        let args = [store.trained().at(range).into(), LARGEST_SCALE.into()];
        device.launch("clamp_scale", Grid::new([1, 1, 1], 32), &args)?;
    }

    // The teacher follows merged weights, so they are merged first.
    store.trained_changed(device)?;
    follow(device, store, trainer)?;
    Ok(trainer.norm)
}

/// The same roundings, in the same order, as on the CPU.
fn adamw(
    device: &Device,
    store: &Store,
    trainer: &Trainer,
    learning_rate: f64,
) -> Result<()> {
    let optim = &trainer.plan.optim;
    let count = i32::try_from(trainer.steps).unwrap_or(i32::MAX);
    let rate = round_f32(learning_rate);
    let corrections = [optim.beta1, optim.beta2].map(|b| round_f32(1.0 - b.powi(count)));

    let norm = trainer.norm;
    let scale = if norm > optim.clip_norm { optim.clip_norm / norm } else { 1.0 };

    // Weights of low rank have no copy of their own: what is merged from them has one.
    let copy = store.weights.copy.as_ref().filter(|_| !store.is_low_rank());
    let args = [
        store.trained().into(),
        copy.map(Buffer::all).into(),
        (&trainer.first).into(),
        (&trainer.second).into(),
        trainer.trained_gradient().into(),
        (&trainer.flags).into(),
        (rate / corrections[0]).into(),
        (1.0 - rate * round_f32(optim.weight_decay)).into(),
        round_f32(optim.beta1).into(),
        round_f32(optim.beta2).into(),
        round_f32(optim.epsilon).into(),
        (1.0 / corrections[1].sqrt()).into(),
        round_f32(scale).into(),
    ];
    device.launch("adamw", pages(store.trained_places().pages()), &args)
}

/// The teacher follows the weights that towers read.
fn follow(device: &Device, store: &Store, trainer: &Trainer) -> Result<()> {
    let (Some(average), Some(plan)) = (&trainer.average, &trainer.plan.teacher) else {
        return Ok(());
    };

    let args = [
        (&average.weights.values).into(),
        average.weights.copy.as_ref().map(Buffer::all).into(),
        (&store.weights.values).into(),
        (&average.flags).into(),
        round_f32(plan.decay).into(),
    ];
    device.launch("move_average", pages(store.places.pages()), &args)
}

/// One block per page.
fn pages(pages: usize) -> Grid {
    Grid::new([pages, 1, 1], 256)
}
