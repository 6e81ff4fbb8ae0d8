//! What training records: one row per step, one row of routing per step and MoE layer, and at
//! validations their metrics and how alike experts are. Rows stay in memory until the end,
//! because a run has thousands of them and not millions.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::Losses;
use crate::error::Result;
use crate::num::{index_u32, round_f32};
use crate::tables::{
    self, ExpertSimilarityRow, Layer, LogRow, RoutingRow, Row as _, ValidationRow,
};

/// Everything a run has recorded so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    steps: Vec<LogRow>,
    routing: Vec<RoutingRow>,
    validation: Vec<ValidationRow>,
    similarity: Vec<ExpertSimilarityRow>,
}

/// What is recorded of a step besides its losses.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Number of the step, from 0.
    pub step: usize,
    /// Samples seen after it.
    pub samples: usize,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub gradient_norm: f64,
    /// How strong the gradient of self-distillation is.
    pub eesd_gradient_ratio: f64,
}

impl Record {
    /// Adds a step.
    pub fn step(&mut self, facts: Facts, losses: &Losses) {
        let step = index_u32(facts.step);
        self.steps.push(LogRow {
            step,
            samples: index_u32(facts.samples),
            learning_rate: facts.learning_rate,
            loss: losses.total,
            clip: losses.clip,
            balance: losses.balance,
            router_z: losses.router_z,
            eesd: losses.eesd,
            gradient_norm: facts.gradient_norm,
            logit_scale: losses.logit_scale,
            eesd_gradient_ratio: facts.eesd_gradient_ratio,
        });

        for (tower, block, sums) in &losses.layers {
            // A batch without a counted token has no assignments, and fractions of 0.
            let assignments = sums.counts.iter().sum::<f64>().max(1.0);
            let fractions = sums.counts.iter().map(|n| round_f32(n / assignments));
            self.routing.push(RoutingRow {
                step,
                layer: Layer::new(tower.name(), *block),
                entropy: sums.entropy / sums.rows.max(1.0),
                utilisation: fractions.collect(),
            });
        }
    }

    /// The ratio of gradients that was measured last; 0 before, as without distillation.
    pub fn eesd_gradient_ratio(&self) -> f64 {
        self.steps.last().map_or(0.0, |row| row.eesd_gradient_ratio)
    }

    /// Adds the metrics of a validation after `step` steps.
    pub fn validation(&mut self, step: usize, metrics: Vec<(String, f64)>) {
        let step = index_u32(step);
        let row = |(metric, value)| ValidationRow { step, metric, value };
        self.validation.extend(metrics.into_iter().map(row));
    }

    /// Adds how alike the experts of every MoE layer are after `step` steps.
    pub fn similarity(&mut self, step: usize, layers: Vec<(Layer, f64)>) {
        let step = index_u32(step);
        let row = |(layer, similarity)| ExpertSimilarityRow { step, layer, similarity };
        self.similarity.extend(layers.into_iter().map(row));
    }

    /// Writes the tables; `place` gives the path of a file by its name. The tables of routing
    /// and of similarity are written only where there are MoE layers.
    pub fn write(&self, place: impl Fn(&str) -> PathBuf) -> Result<()> {
        tables::write(&place(LogRow::FILE), self.steps.clone())?;
        tables::write(&place(ValidationRow::FILE), self.validation.clone())?;
        if self.routing.is_empty() {
            return Ok(());
        }
        tables::write(&place(RoutingRow::FILE), self.routing.clone())?;
        tables::write(&place(ExpertSimilarityRow::FILE), self.similarity.clone())
    }

    /// The mean total loss of the last `count` steps.
    pub fn recent_loss(&self, count: usize) -> f64 {
        let from = self.steps.len().saturating_sub(count);
        let losses: Vec<f64> = self.steps[from..].iter().map(|row| row.loss).collect();
        crate::num::mean(&losses)
    }
}
