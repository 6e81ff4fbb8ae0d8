//! The auxiliary losses of a batch and their gradients, from the sums of every MoE layer.
//!
//! Balance, z-loss and self-distillation of a layer depend on sums over the whole batch, so
//! every engine works in three parts: all samples forward, the losses here, all samples
//! backward with the weights that come out of here.

use super::{Losses, Objective};
use crate::loss;
use crate::model::{ClipConfig, Tower};
use crate::num::round_f32;

/// The gradient of the weighted loss by what one counted row adds to a layer's sums.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatsGradient {
    /// d loss / d probability of each expert `[E]`.
    pub probability: Vec<f32>,
    /// d loss / d (log-sum-exp)².
    pub log_sum_square: f32,
    /// d loss / d `||y - y_ens||²` of a distilled row.
    pub distance: f32,
}

/// Adds the auxiliary losses of `losses.layers` to the fields of `losses`, and returns the
/// gradient of each layer in the same order.
///
/// A loss is the mean over the MoE layers of a tower, then over the towers that have any.
pub fn auxiliary(
    config: &ClipConfig,
    objective: &Objective,
    losses: &mut Losses,
) -> Vec<StatsGradient> {
    let layers = |tower| config.moe_blocks(tower).len();
    let towers = Tower::BOTH.iter().filter(|&&tower| layers(tower) > 0).count();

    let mut gradients = Vec::with_capacity(losses.layers.len());
    for (tower, _, sums) in &losses.layers {
        // The losses are computed in f64, because the sums of the batch are f64.
        let balance = loss::balance(&sums.counts, &sums.probability, sums.rows);
        let router_z = loss::router_z(sums.log_sum_square, sums.rows);
        let eesd = loss::distillation(sums.distance, sums.target_square);

        // The mean over a tower's layers and then over the towers, as one factor per
        // layer.
        let fraction = 1.0 / (layers(*tower) * towers) as f64;
        losses.balance += fraction * balance.value;
        losses.router_z += fraction * router_z.value;
        losses.eesd += fraction * eesd.value;

        // The weights λ enter here, so that the backward pass knows nothing of them.
        let weighted =
            |lambda: f64, gradient: f64| round_f32(lambda * fraction * gradient);
        let by_expert = balance.gradient.iter();
        gradients.push(StatsGradient {
            probability: by_expert.map(|g| weighted(objective.balance, *g)).collect(),
            log_sum_square: weighted(objective.router_z, router_z.gradient),
            distance: weighted(objective.eesd, eesd.gradient),
        });
    }
    gradients
}
