//! What training writes down: one row per step, a routing row per step and layer, and the
//! validation's metrics. Rows live in memory until the end: a run has thousands, not
//! millions. Numbers are kept as bits, so that a record survives JSON exactly.

use serde::{Deserialize, Serialize};

use crate::engine::Losses;
use crate::io::table::{Column, Table};
use crate::model::Tower;
use crate::num::{index_u32, round_f32};

/// Everything a run has recorded so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    steps: Vec<StepRow>,
    routing: Vec<RoutingRow>,
    validation: Vec<(u32, String, u64)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StepRow {
    step: u32,
    samples: u32,
    /// Learning rate, total, clip, balance, `router_z`, eesd, gradient norm, logit scale.
    values: [u64; 8],
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RoutingRow {
    step: u32,
    tower: Tower,
    layer: u32,
    entropy: u64,
    utilisation: Vec<u32>,
}

/// The names of the numbers of a step, in order.
const VALUES: [&str; 8] = [
    "learning_rate",
    "loss",
    "clip",
    "balance",
    "router_z",
    "eesd",
    "gradient_norm",
    "logit_scale",
];

/// What a step is besides its losses.
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
}

impl Record {
    /// Adds a step.
    pub fn step(&mut self, facts: Facts, losses: &Losses) {
        let step = index_u32(facts.step);
        self.steps.push(StepRow {
            step,
            samples: index_u32(facts.samples),
            values: [
                facts.learning_rate,
                losses.total,
                losses.clip,
                losses.balance,
                losses.router_z,
                losses.eesd,
                facts.gradient_norm,
                losses.logit_scale,
            ]
            .map(f64::to_bits),
        });

        for (tower, block, sums) in &losses.layers {
            let assignments = sums.counts.iter().sum::<f64>().max(1.0);
            let fractions =
                sums.counts.iter().map(|n| round_f32(n / assignments).to_bits());
            self.routing.push(RoutingRow {
                step,
                tower: *tower,
                layer: index_u32(*block),
                entropy: (sums.entropy / sums.rows.max(1.0)).to_bits(),
                utilisation: fractions.collect(),
            });
        }
    }

    /// Adds the metrics of a validation after `step` steps.
    pub fn validation(&mut self, step: usize, metrics: Vec<(String, f64)>) {
        let step = index_u32(step);
        let rows = metrics.into_iter().map(|(name, v)| (step, name, v.to_bits()));
        self.validation.extend(rows);
    }

    /// The table of steps.
    pub fn log(&self) -> Table {
        let mut table = Table::new()
            .with("step", Column::U32(self.steps.iter().map(|r| r.step).collect()))
            .with("samples", Column::U32(self.steps.iter().map(|r| r.samples).collect()));
        for (index, name) in VALUES.iter().enumerate() {
            let values =
                self.steps.iter().map(|r| f64::from_bits(r.values[index])).collect();
            table = table.with(name, Column::F64(values));
        }
        table
    }

    /// The table of the MoE layers' routing; `None` in a dense run.
    pub fn routing(&self) -> Option<Table> {
        let rows = &self.routing;
        let width = rows.first()?.utilisation.len();
        let data =
            rows.iter().flat_map(|r| r.utilisation.iter().copied()).map(f32::from_bits);
        let data = data.collect();

        let towers = rows.iter().map(|r| r.tower.name().to_owned()).collect();
        Some(
            Table::new()
                .with("step", Column::U32(rows.iter().map(|r| r.step).collect()))
                .with("tower", Column::Text(towers))
                .with("layer", Column::U32(rows.iter().map(|r| r.layer).collect()))
                .with(
                    "entropy",
                    Column::F64(rows.iter().map(|r| f64::from_bits(r.entropy)).collect()),
                )
                .with("utilisation", Column::Vectors { width, data }),
        )
    }

    /// The table of validations.
    pub fn validations(&self) -> Table {
        let rows = &self.validation;
        Table::new()
            .with("step", Column::U32(rows.iter().map(|r| r.0).collect()))
            .with("metric", Column::Text(rows.iter().map(|r| r.1.clone()).collect()))
            .with(
                "value",
                Column::F64(rows.iter().map(|r| f64::from_bits(r.2)).collect()),
            )
    }

    /// The mean total loss of the last `count` steps.
    pub fn recent_loss(&self, count: usize) -> f64 {
        let from = self.steps.len().saturating_sub(count);
        let losses: Vec<f64> =
            self.steps[from..].iter().map(|r| f64::from_bits(r.values[1])).collect();
        crate::num::mean(&losses)
    }
}
