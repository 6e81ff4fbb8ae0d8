//! The training loss and its parts (METHOD §4), summed from what a forward pass recorded.
//!
//! Auxiliary losses see eligible tokens only: a text position after the end of text cannot
//! influence the embedding, and the start token is the same in every caption (METHOD §2.1).
//! Each is the mean over the MoE layers of a tower, then over the towers that have any.

use candle_core::{DType, Result, Tensor};

use super::{Outputs, layers, moe};
use crate::engine::cpu::clip::GROUP;
use crate::io::tensors::Tensors;
use crate::model::{ClipConfig, Tower};

/// Which token rows count in the auxiliary losses: one flag a row [B T] of each tower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eligible {
    /// Rows of the image tower.
    pub vision: Vec<bool>,
    /// Rows of the text tower.
    pub text: Vec<bool>,
}

impl Eligible {
    /// Every patch and class token, and the text positions after the start token up to the
    /// end of text, which is where [`Outputs::pooled`] says.
    pub fn new(config: &ClipConfig, images: usize, pooled: &[usize]) -> Self {
        let vision = vec![true; images * config.tower(Tower::Vision).tokens];
        let position =
            |end: usize| (0..config.text.context).map(move |t| t > 0 && t <= end);
        Self { vision, text: pooled.iter().flat_map(|&end| position(end)).collect() }
    }

    /// The eligible rows of a tower of `samples` samples, each list those of 16 samples.
    pub fn groups(&self, tower: Tower, samples: usize) -> Vec<Vec<usize>> {
        let flags = match tower {
            Tower::Vision => &self.vision,
            Tower::Text => &self.text,
        };
        let group = GROUP * (flags.len() / samples.max(1)).max(1);
        let mut groups = vec![Vec::new(); flags.len().div_ceil(group)];
        for row in self.rows(tower) {
            groups[row / group].push(row);
        }
        groups
    }

    /// The eligible rows of a tower, ascending.
    pub fn rows(&self, tower: Tower) -> Vec<usize> {
        let flags = match tower {
            Tower::Vision => &self.vision,
            Tower::Text => &self.text,
        };
        (0..flags.len()).filter(|&row| flags[row]).collect()
    }
}

/// Expert-ensemble self-distillation, `target: layer`.
#[derive(Debug, Clone, Copy)]
pub struct Eesd<'a> {
    /// λ of the self-distillation loss.
    pub weight: f64,
    /// The teacher's routers and experts, by the names of the student's; others are unused.
    pub teacher: &'a Tensors,
    /// Fraction of the eligible tokens, the most uncertain first.
    pub fraction: f64,
}

/// Weights of the auxiliary losses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms<'a> {
    /// λ of the load-balance loss.
    pub balance: f64,
    /// λ of the router z-loss.
    pub router_z: f64,
    /// Fraction of the contrastive target that is spread evenly over the batch.
    pub label_smoothing: f64,
    /// Self-distillation, if any.
    pub eesd: Option<Eesd<'a>>,
}

/// The loss and its parts, each a scalar with its graph. Parts are not yet weighted.
#[derive(Debug, Clone)]
pub struct LossTensors {
    /// The weighted sum.
    pub total: Tensor,
    /// The symmetric contrastive loss.
    pub clip: Tensor,
    /// The load-balance loss; 0 in a dense model.
    pub balance: Tensor,
    /// The router z-loss; 0 in a dense model.
    pub router_z: Tensor,
    /// The self-distillation loss; 0 without a teacher.
    pub eesd: Tensor,
    /// Σ ||y - t||² and Σ ||t||² over the distilled rows of each MoE layer, in the order of
    /// [`Outputs::routing`]; empty without a teacher.
    pub distances: Vec<[Tensor; 2]>,
}

/// Sums the losses; `teachers` holds the ensemble of each MoE layer, in the order of
/// [`Outputs::routing`], or nothing.
pub(super) fn losses(
    outputs: &Outputs,
    eligible: &Eligible,
    terms: &Terms<'_>,
    teachers: Option<&[Tensor]>,
) -> Result<LossTensors> {
    let logits = &outputs.logits_per_image;
    let zero =
        Tensor::zeros((), DType::F64, logits.device())?.to_dtype(logits.dtype())?;
    let (mut balance, mut router_z, mut eesd) = (Vec::new(), Vec::new(), Vec::new());
    let mut distances = Vec::new();
    for (layer, ((tower, _), routing)) in outputs.routing.iter().enumerate() {
        let rows = eligible.rows(*tower);
        balance.push((*tower, routing.balance(&rows)?));
        router_z.push((*tower, routing.router_z(&rows)?));

        // Distillation takes fewer rows than the other losses: the most uncertain of
        // them.
        if let (Some(eesd_terms), Some(teachers)) = (&terms.eesd, teachers) {
            let fraction = eesd_terms.fraction;
            let groups = eligible.groups(*tower, outputs.pooled.len());
            let rows = moe::most_uncertain(&routing.entropies()?, &groups, fraction);
            let [distance, target] = routing.squares(&teachers[layer], &rows)?;
            eesd.push((*tower, (&distance / &target)?));
            distances.push([distance, target]);
        }
    }

    let clip = layers::contrastive(logits, terms.label_smoothing)?;
    let balance = mean_over_towers(&balance, &zero)?;
    let router_z = mean_over_towers(&router_z, &zero)?;
    let eesd = mean_over_towers(&eesd, &zero)?;
    let distillation = terms.eesd.map_or(0.0, |eesd| eesd.weight);

    // L = L_clip + λ_lb L_lb + λ_z L_z + λ_eesd L_eesd (METHOD §4).
    let total = ((&clip + (&balance * terms.balance)?)? + (&router_z * terms.router_z)?)?;
    let total = (total + (&eesd * distillation)?)?;
    Ok(LossTensors { total, clip, balance, router_z, eesd, distances })
}

/// The mean over a tower's layers, then over the towers that have any.
fn mean_over_towers(values: &[(Tower, Tensor)], zero: &Tensor) -> Result<Tensor> {
    let (mut sum, mut towers) = (zero.clone(), 0.0);
    for tower in Tower::BOTH {
        let own: Vec<&Tensor> = values
            .iter()
            .filter(|(of, _)| *of == tower)
            .map(|(_, value)| value)
            .collect();

        // A tower without MoE layers must not pull the mean towards zero.
        if !own.is_empty() {
            sum = (sum + Tensor::stack(&own, 0)?.mean_all()?)?;
            towers += 1.0;
        }
    }
    if towers > 0.0 { sum / towers } else { Ok(sum) }
}
