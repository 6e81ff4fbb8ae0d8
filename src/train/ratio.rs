//! How strongly self-distillation pulls at the experts, beside all other losses.
//!
//! A gradient is linear in its losses, so that of the distillation is the difference of two:
//! with it and without it. The second costs a step, so it is measured now and then.

use crate::engine::{Engine, Objective, Pairs, Training};
use crate::error::Result;
use crate::model::params::Layout;

/// Steps from one measurement to the next.
const EVERY: usize = 100;

/// The gradient of a batch without the distillation, where step `step` is one of those that
/// are measured. The weights stay as they are.
pub(super) fn undistilled(
    engine: &mut dyn Engine,
    training: &Training,
    pairs: Pairs<'_>,
    step: usize,
) -> Result<Option<Vec<f32>>> {
    let objective = training.objective;
    let distills = training.teacher.is_some() && objective.eesd > 0.0;
    if !distills || !step.is_multiple_of(EVERY) {
        return Ok(None);
    }
    engine.set_objective(Objective { eesd: 0.0, ..objective })?;
    engine.step(pairs)?;
    let gradient = engine.gradient()?;
    engine.set_objective(objective)?;
    Ok(Some(gradient))
}

/// Length of the distillation's gradient on the experts over that of all other losses, from
/// the gradient that the engine holds and that of the same batch without distillation; 0 where
/// the experts are frozen.
pub(super) fn eesd_ratio(engine: &dyn Engine, without: &[f32]) -> Result<f64> {
    let with = engine.gradient()?;

    // The experts are what the distillation is for, so they alone are compared.
    let (mut distilled, mut other) = (0.0, 0.0);
    for (parameter, range) in Layout::new(engine.config()).iter() {
        if !parameter.id.is_expert() {
            continue;
        }
        for (with, without) in with[range.clone()].iter().zip(&without[range]) {
            distilled += (f64::from(*with) - f64::from(*without)).powi(2);
            other += f64::from(*without).powi(2);
        }
    }
    Ok(if distilled > 0.0 { (distilled / other).sqrt() } else { 0.0 })
}
