//! The FFN of a block: dense, or a mixture of experts with its auxiliary losses.
//!
//! The forward decides the routing, the distilled rows and the statistics; the gradients of
//! the auxiliary losses are known only when every group has been seen, so the backward
//! receives them as a [`StatsGradient`].

use std::ops::Range;

use super::{Flat, GroupRows, WeightBias};
use crate::config::Activation;
use crate::engine::cpu::ops::experts::{self, Gradients, Shape, Weights};
use crate::engine::cpu::ops::router::{self, Auxiliary, Routing};
use crate::engine::cpu::ops::{activation, linear, simd};
use crate::engine::{LayerStats, StatsGradient};
use crate::model::names::{ParameterId, Part};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};
use crate::num::{index_u32, truncate_usize, widen};

/// What the MoE layers compute during a forward.
#[derive(Debug, Clone, Copy)]
pub enum MoeMode<'a> {
    /// Top-K routing.
    TopK,
    /// Top-K routing, and beside it the dense ensemble of a teacher on each layer's own input
    /// (EESD).
    Distilled {
        /// The teacher's weights.
        teacher: &'a [f32],
        /// Fraction of the counted rows that are distilled, the most uncertain (highest
        /// routing entropy) first.
        fraction: f64,
    },
    /// Every layer's output *is* the dense ensemble of all experts.
    Ensemble,
}

#[derive(Debug, Clone)]
pub(super) enum Ffn {
    Dense {
        fc1: WeightBias,
        fc2: WeightBias,
        activation: Activation,
    },
    Moe {
        router: Range<usize>,
        fc1: WeightBias,
        fc2: WeightBias,
        shape: Shape,
        top_k: usize,
    },
}

/// What an FFN keeps between forward and backward.
#[derive(Debug, Default, Clone)]
pub struct FfnState {
    hidden: Vec<f32>,
    /// The derivative of the activation at every hidden value.
    derivative: Vec<f32>,
    /// The routing of the last forward; empty in a dense block.
    pub routing: Routing,
    experts: experts::Workspace,
    counted: Vec<bool>,
    distilled: Distilled,
}

/// Buffers of a backward, for every layer in turn.
#[derive(Debug, Default, Clone)]
pub(super) struct Scratch {
    hidden: Vec<f32>,
    experts: experts::Scratch,
}

/// Rows that are distilled: their indices and `y - y_ens`.
#[derive(Debug, Default, Clone)]
struct Distilled {
    rows: Vec<u32>,
    difference: Vec<f32>,
    target_square: f64,
}

impl Ffn {
    pub(super) fn new(config: &ClipConfig, layout: &Layout, at: (Tower, usize)) -> Self {
        let id = |part| ParameterId::Block(at.0, at.1, part);
        let pair = |weight, bias| WeightBias::new(layout, id(weight), id(bias));
        let activation = config.activation;

        match &config.moe {
            Some(moe) if config.is_moe(at.0, at.1) => {
                let tower = config.tower(at.0);
                let (experts, width, hidden) = (moe.experts, tower.width, tower.hidden);
                Self::Moe {
                    router: layout.range(id(Part::Router)),
                    fc1: pair(Part::ExpertFcWeight, Part::ExpertFcBias),
                    fc2: pair(Part::ExpertProjWeight, Part::ExpertProjBias),
                    shape: Shape { experts, width, hidden, activation },
                    top_k: moe.top_k,
                }
            }
            _ => Self::Dense {
                fc1: pair(Part::FcWeight, Part::FcBias),
                fc2: pair(Part::ProjWeight, Part::ProjBias),
                activation,
            },
        }
    }

    /// `y` [N, d] += FFN(x).
    pub(super) fn forward_add(
        &self,
        values: &[f32],
        y: &mut [f32],
        (x, rows): (&[f32], GroupRows<'_>),
        state: &mut FfnState,
    ) {
        match self {
            Self::Dense { fc1, fc2, activation } => {
                let (weight, bias) = fc1.of(values);
                let n = x.len() * bias.len() / weight.len();
                state.hidden.resize(n * bias.len(), 0.0);
                state.derivative.resize(n * bias.len(), 0.0);

                linear::forward(&mut state.hidden, x, weight, bias);
                activation::forward(
                    *activation,
                    &mut state.hidden,
                    &mut state.derivative,
                );
                let (weight, bias) = fc2.of(values);
                linear::forward_add(y, &state.hidden, weight, bias);
            }
            Self::Moe { router, shape, top_k, .. } => {
                let gate = &values[router.clone()];
                router::forward(&mut state.routing, x, gate, shape.width, *top_k);
                state.counted.clear();
                state.counted.extend_from_slice(rows.counted);
                state.distilled = Distilled::default();

                let layer = (*shape, self.weights(values));
                if let MoeMode::Ensemble = rows.mode {
                    let mut out = vec![0.0; x.len()];
                    experts::ensemble(&mut out, x, &state.routing.probabilities, layer);
                    simd::dispatch(
                        #[inline(always)]
                        || simd::add(y, &out),
                    );
                    return;
                }

                experts::forward_add(y, x, &state.routing, layer, &mut state.experts);
                if let MoeMode::Distilled { teacher, fraction } = rows.mode {
                    self.distill(teacher, (x, fraction), state);
                }
            }
        }
    }

    fn weights<'a>(&self, values: &'a [f32]) -> Weights<'a> {
        let (Self::Moe { fc1, fc2, .. } | Self::Dense { fc1, fc2, .. }) = self;
        let ((fc1, fc1_bias), (fc2, fc2_bias)) = (fc1.of(values), fc2.of(values));
        Weights { fc1, fc1_bias, fc2, fc2_bias }
    }

    /// Runs the teacher on the most uncertain counted rows and keeps `y - y_ens`.
    fn distill(
        &self,
        teacher: &[f32],
        (x, fraction): (&[f32], f64),
        state: &mut FfnState,
    ) {
        let Self::Moe { router, shape, top_k, .. } = self else { return };
        let d = shape.width;
        let distilled = &mut state.distilled;
        uncertain(&mut distilled.rows, &state.routing, &state.counted, fraction);

        let mut inputs = Vec::with_capacity(distilled.rows.len() * d);
        for &row in &distilled.rows {
            inputs.extend_from_slice(&x[widen(row) * d..(widen(row) + 1) * d]);
        }

        // The teacher routes by its own router; all its experts answer.
        let (mut routing, mut target) = (Routing::default(), vec![0.0; inputs.len()]);
        router::forward(&mut routing, &inputs, &teacher[router.clone()], d, *top_k);
        let layer = (*shape, self.weights(teacher));
        experts::ensemble(&mut target, &inputs, &routing.probabilities, layer);

        distilled.difference.resize(target.len(), 0.0);
        let rows = distilled.difference.chunks_exact_mut(d).zip(target.chunks_exact(d));
        for ((difference, target), &row) in rows.zip(&distilled.rows) {
            state.experts.output(difference, &state.routing, widen(row));
            difference.iter_mut().zip(target).for_each(|(y, t)| *y -= t);
        }

        distilled.target_square = squares(&target);
    }

    /// `dx` [N, d] = the gradient of the FFN's input, from `dy` [N, d], which is left as it
    /// was.
    pub(super) fn backward(
        &self,
        flat: &mut Flat<'_>,
        (dy, dx): (&mut [f32], &mut [f32]),
        (x, stats): (&[f32], &StatsGradient),
        (state, scratch): (&mut FfnState, &mut Scratch),
    ) {
        match self {
            Self::Dense { fc1, fc2, .. } => {
                let dh = &mut scratch.hidden;
                dh.resize(state.hidden.len(), 0.0);
                let (weight, bias) = fc2.of_mut(flat.gradients);
                linear::backward_parameters(weight, bias, dy, &state.hidden);
                let (weight, bias) = fc2.of(flat.values);
                linear::backward_input(dh, dy, weight, bias.len());

                let derivative = &state.derivative;
                simd::dispatch(
                    #[inline(always)]
                    || dh.iter_mut().zip(derivative).for_each(|(g, s)| *g *= s),
                );

                let (weight, bias) = fc1.of_mut(flat.gradients);
                linear::backward_parameters(weight, bias, dh, x);
                let (weight, bias) = fc1.of(flat.values);
                linear::backward_input(dx, dh, weight, bias.len());
            }
            Self::Moe { router, fc1, fc2, shape, .. } => {
                let d = shape.width;
                let former = state.distilled.add_gradient(dy, stats.distance, d);
                dx.fill(0.0);

                let layer = self.weights(flat.values);
                let (lower, upper) = flat.gradients.split_at_mut(fc2.weight.start);
                let (fc1, fc1_bias) = fc1.of_mut(lower);
                let (w, b) = (fc2.weight.len(), fc2.bias.len());
                let (fc2, fc2_bias) = upper[..w + b].split_at_mut(w);
                let mut into = Gradients { fc1, fc1_bias, fc2, fc2_bias };
                let layer = (*shape, layer, &mut into);
                let (routing, workspace) = (&mut state.routing, &state.experts);
                let buffers = (workspace, &mut scratch.experts);
                experts::backward_add(dx, dy, routing, layer, buffers);

                // Only this layer's output is distilled: the residual stream passes on the
                // gradient without the distillation.
                state.distilled.restore(dy, &former, d);
                let auxiliary = Auxiliary {
                    probability: &stats.probability,
                    log_sum_square: stats.log_sum_square,
                    counted: &state.counted,
                };
                let gate =
                    (&flat.values[router.clone()], &mut flat.gradients[router.clone()]);
                router::backward_add(routing, &auxiliary, (x, dx), gate);
            }
        }
    }

    /// Statistics of the last forward; `None` for a dense FFN.
    pub(super) fn stats(&self, state: &FfnState, counted: &[bool]) -> Option<LayerStats> {
        let Self::Moe { shape, .. } = self else { return None };
        let e = shape.experts;
        let mut stats = LayerStats {
            counts: vec![0.0; e],
            probability: vec![0.0; e],
            distance: squares(&state.distilled.difference),
            target_square: state.distilled.target_square,
            ..LayerStats::default()
        };

        let routing = &state.routing;
        let k = routing.chosen.len() / counted.len().max(1);
        for (row, p) in routing.probabilities.chunks_exact(e).enumerate() {
            if !counted[row] {
                continue;
            }
            stats.rows += 1.0;
            stats.entropy += f64::from(routing.entropy[row]);
            stats.log_sum_square += f64::from(routing.log_sum[row]).powi(2);

            // Sums are f64, because a batch adds up thousands of rows.
            stats.probability.iter_mut().zip(p).for_each(|(s, p)| *s += f64::from(*p));
            for &chosen in &routing.chosen[row * k..(row + 1) * k] {
                stats.counts[widen(chosen)] += 1.0;
            }
        }
        Some(stats)
    }
}

impl Distilled {
    /// Adds the distillation's gradient to its rows of `dy`; their former values come back.
    fn add_gradient(&self, dy: &mut [f32], weight: f32, d: usize) -> Vec<f32> {
        let mut former = Vec::with_capacity(self.difference.len());
        for (&row, difference) in self.rows.iter().zip(self.difference.chunks_exact(d)) {
            let own = &mut dy[widen(row) * d..(widen(row) + 1) * d];
            former.extend_from_slice(own);
            own.iter_mut().zip(difference).for_each(|(own, v)| *own += 2.0 * weight * v);
        }
        former
    }

    /// Undoes [`Self::add_gradient`], to the bit.
    fn restore(&self, dy: &mut [f32], former: &[f32], d: usize) {
        for (&row, former) in self.rows.iter().zip(former.chunks_exact(d)) {
            dy[widen(row) * d..(widen(row) + 1) * d].copy_from_slice(former);
        }
    }
}

/// The `fraction` of counted rows with the highest routing entropy, ties to the lower index,
/// ascending; at least one if any row counts.
fn uncertain(rows: &mut Vec<u32>, routing: &Routing, counted: &[bool], fraction: f64) {
    rows.clear();
    let all =
        counted.iter().enumerate().filter(|(_, c)| **c).map(|(row, _)| index_u32(row));
    rows.extend(all);
    let keep = truncate_usize((fraction * rows.len() as f64).ceil());

    // Selection is linear where a sort is not; the order that remains is restored after
    // it.
    if keep < rows.len() {
        let at = |row: &u32| routing.entropy[widen(*row)];
        let order = |a: &u32, b: &u32| at(b).total_cmp(&at(a)).then(a.cmp(b));
        rows.select_nth_unstable_by(keep, order);
        rows.truncate(keep);
        rows.sort_unstable();
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum()
}
