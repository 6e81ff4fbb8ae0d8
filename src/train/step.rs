//! One training step: forward, losses, backward. Optimiser and data stand outside.
//!
//! The losses' weights on each layer need the statistics of the whole batch, so the order
//! is: all groups forward, contrastive loss and sums, all groups backward.

use crate::engine::cpu::clip::{Engine, Pairs, Pulls};
use crate::engine::cpu::ops::contrastive::{Contrastive, Unit};
use crate::engine::cpu::tower::{LayerPull, LayerStats, Teacher};
use crate::loss;
use crate::model::Tower;
use crate::model::names::Place;
use crate::num::round_f32;

/// Weights of the auxiliary losses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Objective {
    /// λ of the load balance.
    pub balance: f64,
    /// λ of the router z-loss.
    pub router_z: f64,
    /// λ of the self-distillation.
    pub eesd: f64,
}

/// Who distils into the student during a step.
#[derive(Debug, Clone, Copy)]
pub enum Distiller<'a> {
    /// Nobody.
    None,
    /// Layer by layer: EMA parameters and the share of tokens.
    Layers(&'a [f32], f64),
    /// The final embeddings of the EMA model with every layer run as its dense ensemble.
    Embeddings(&'a [f32]),
}

/// The loss of a step and its parts, not yet weighted, and the routing of each MoE layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Losses {
    /// The weighted sum.
    pub total: f64,
    /// Contrastive loss.
    pub clip: f64,
    /// Load balance.
    pub balance: f64,
    /// Router z-loss.
    pub router_z: f64,
    /// Self-distillation.
    pub eesd: f64,
    /// Sums over the batch: (tower, block, sums).
    pub layers: Vec<(Tower, usize, LayerStats)>,
}

/// Buffers of a step.
#[derive(Debug, Clone)]
pub struct Stepper {
    engine: Engine,
    teacher: Option<Engine>,
    contrastive: Contrastive,
}

impl Stepper {
    /// Buffers for an engine.
    pub fn new(engine: Engine) -> Self {
        Self { engine, teacher: None, contrastive: Contrastive::default() }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Loss and gradient of a batch; the gradient overwrites `gradients`.
    pub fn run(
        &mut self,
        (params, gradients): (&[f32], &mut [f32]),
        pairs: Pairs<'_>,
        objective: &Objective,
        distiller: Distiller<'_>,
    ) -> Losses {
        let width = self.engine.clip().config().embed_dim;
        let scale_at = self.engine.clip().layout().range(Place::LogitScale).start;
        let teacher = match distiller {
            Distiller::Layers(params, share) => Teacher::Ensemble(params, share),
            Distiller::None | Distiller::Embeddings(_) => Teacher::None,
        };
        let (images, texts) = self.engine.forward(params, pairs, teacher);
        self.contrastive.run(images, texts, width, params[scale_at]);
        let mut losses = Losses { clip: self.contrastive.loss, ..Losses::default() };
        if let Distiller::Embeddings(taught) = distiller {
            losses.eesd = self.distil_embeddings(taught, pairs, objective.eesd);
        } else {
            self.contrastive.finish(None, width);
        }
        losses.layers = self.engine.stats();
        let pulls = self.pulls(objective, &mut losses);
        let slopes =
            (&*self.contrastive.image_gradient, &*self.contrastive.text_gradient);
        self.engine.backward(params, slopes, &pulls, gradients);
        gradients[scale_at] = round_f32(self.contrastive.scale_gradient);
        losses.total = losses.clip
            + objective.balance * losses.balance
            + objective.router_z * losses.router_z
            + objective.eesd * losses.eesd;
        losses
    }

    /// Each layer's weights in the auxiliary losses: the mean over the MoE layers of a
    /// tower, then over the towers that have any. Fills in the losses' values.
    fn pulls(&self, objective: &Objective, losses: &mut Losses) -> Pulls {
        let config = self.engine.clip().config();
        let blocks = |tower| vec![LayerPull::default(); config.tower(tower).layers];
        let mut pulls =
            Pulls { vision: blocks(Tower::Vision), text: blocks(Tower::Text) };
        let layers = |tower| config.moe_blocks(tower).len();
        let towers = Tower::BOTH.iter().filter(|&&t| layers(t) > 0).count();
        for (tower, block, sums) in &losses.layers {
            let share = 1.0 / (layers(*tower) * towers) as f64;
            let balance = loss::balance(&sums.counts, &sums.probability, sums.rows);
            let router_z = loss::router_z(sums.log_sum_square, sums.rows);
            let eesd = loss::distillation(sums.distance, sums.target_square);
            losses.balance += share * balance.value;
            losses.router_z += share * router_z.value;
            losses.eesd += share * eesd.value;
            let weight = |lambda: f64, slope: f64| round_f32(lambda * share * slope);
            let slopes = balance.slope.iter();
            let pull = LayerPull {
                probability: slopes.map(|s| weight(objective.balance, *s)).collect(),
                log_sum_square: weight(objective.router_z, router_z.slope),
                distance: weight(objective.eesd, eesd.slope),
            };
            match tower {
                Tower::Vision => pulls.vision[*block] = pull,
                Tower::Text => pulls.text[*block] = pull,
            }
        }
        pulls
    }

    /// Mean squared distance of unit embeddings to the teacher's, over both towers; adds
    /// its gradient to the contrastive one.
    fn distil_embeddings(
        &mut self,
        taught: &[f32],
        pairs: Pairs<'_>,
        weight: f64,
    ) -> f64 {
        let clip = self.engine.clip();
        let width = clip.config().embed_dim;
        let teacher = self.teacher.get_or_insert_with(|| Engine::new(clip.clone()));
        let (images, texts) = teacher.forward(taught, pairs, Teacher::IsEnsemble);
        let count = (images.len() + texts.len()) / width;
        let factor = round_f32(2.0 * weight / count as f64);
        let mut distance = 0.0;
        let (own_images, own_texts) = self.contrastive.unit_rows();
        let mut slope = |raw: &[f32], own: &[f32]| -> Vec<f32> {
            let mut unit = Unit::default();
            unit.normalise(raw, width);
            let difference = own.iter().zip(&unit.rows).map(|(y, t)| y - t);
            let difference: Vec<f32> = difference.collect();
            distance += difference.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            difference.iter().map(|v| factor * v).collect()
        };
        let (images, texts) = (slope(images, own_images), slope(texts, own_texts));
        self.contrastive.finish(Some((&images, &texts)), width);
        distance / count as f64
    }
}
