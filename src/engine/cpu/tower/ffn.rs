//! The FFN of a block: dense, or a mixture of experts with its auxiliary losses.
//!
//! The forward decides the routing, the teacher's share and the statistics; the losses'
//! weights are known only when every group has been seen, so the backward receives them as
//! a [`LayerPull`].

use std::ops::Range;

use super::{Pair, Rows};
use crate::engine::cpu::ops::experts::{self, Gradients, Shape, Weights};
use crate::engine::cpu::ops::router::{self, Auxiliary, Routing};
use crate::engine::cpu::ops::{activation, linear, simd};
use crate::model::names::{Part, Place};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};
use crate::num::{index_u32, truncate_usize, widen};

/// Who teaches the MoE layers during a forward.
#[derive(Debug, Clone, Copy)]
pub enum Teacher<'a> {
    /// Nobody: top-K routing alone.
    None,
    /// The dense ensemble of these parameters on each layer's own input, for this share of
    /// the counted rows, the most uncertain (highest routing entropy) first (EESD).
    Ensemble(&'a [f32], f64),
    /// No student: every layer's output *is* the dense ensemble of all experts.
    IsEnsemble,
}

/// Weights of a layer's auxiliary losses, from the statistics of the whole batch.
#[derive(Debug, Clone, Default)]
pub struct LayerPull {
    /// d loss / d probability of each expert `[E]`, for every counted row.
    pub probability: Vec<f32>,
    /// d loss / d (log-sum-exp)² of a counted row.
    pub log_sum_square: f32,
    /// d loss / d `||y - y_ens||²` of a distilled row.
    pub distance: f32,
}

/// Sums over the counted rows of one MoE layer; they add up over groups.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerStats {
    /// Counted rows N.
    pub rows: f64,
    /// Assignments to each expert `[E]`.
    pub counts: Vec<f64>,
    /// Sum of each expert's probability `[E]`.
    pub probability: Vec<f64>,
    /// Sum of -Σ p ln p, in nats.
    pub entropy: f64,
    /// Sum of (log-sum-exp of the logits)².
    pub log_sum_square: f64,
    /// Sum of `||y - y_ens||²` over distilled rows.
    pub distance: f64,
    /// Sum of `||y_ens||²` over distilled rows.
    pub target_square: f64,
}

impl LayerStats {
    /// Adds another group's sums.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.entropy += other.entropy;
        self.log_sum_square += other.log_sum_square;
        self.distance += other.distance;
        self.target_square += other.target_square;
        self.counts.resize(other.counts.len(), 0.0);
        self.probability.resize(other.probability.len(), 0.0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.probability.iter_mut().zip(&other.probability).for_each(|(a, b)| *a += b);
    }
}

#[derive(Debug, Clone)]
pub(super) enum Ffn {
    Dense { fc1: Pair, fc2: Pair, activation: crate::config::Activation },
    Moe { router: Range<usize>, fc1: Pair, fc2: Pair, shape: Shape, top_k: usize },
}

/// What an FFN keeps between forward and backward.
#[derive(Debug, Default, Clone)]
pub struct FfnState {
    hidden: Vec<f32>,
    slope: Vec<f32>,
    /// The routing of the last forward; empty in a dense block.
    pub routing: Routing,
    experts: experts::Workspace,
    counted: Vec<bool>,
    distil: Distil,
}

/// Buffers of a backward, for every layer in turn.
#[derive(Debug, Default, Clone)]
pub(super) struct Scratch {
    hidden: Vec<f32>,
    experts: experts::Scratch,
}

/// Rows pulled to the ensemble: their indices and `y - y_ens`.
#[derive(Debug, Default, Clone)]
struct Distil {
    rows: Vec<u32>,
    difference: Vec<f32>,
    target_square: f64,
}

impl Ffn {
    pub(super) fn new(config: &ClipConfig, layout: &Layout, at: (Tower, usize)) -> Self {
        let place = |part| Place::Block(at.0, at.1, part);
        let pair = |weight, bias| Pair::new(layout, place(weight), place(bias));
        let activation = config.activation;
        match &config.moe {
            Some(moe) if config.is_moe(at.0, at.1) => {
                let tower = config.tower(at.0);
                let (experts, width, hidden) = (moe.experts, tower.width, tower.hidden);
                Self::Moe {
                    router: layout.range(place(Part::Router)),
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
        params: &[f32],
        y: &mut [f32],
        (x, rows): (&[f32], Rows<'_>),
        state: &mut FfnState,
    ) {
        match self {
            Self::Dense { fc1, fc2, activation } => {
                let (weight, bias) = fc1.of(params);
                let n = x.len() * bias.len() / weight.len();
                state.hidden.resize(n * bias.len(), 0.0);
                state.slope.resize(n * bias.len(), 0.0);
                linear::forward(&mut state.hidden, x, weight, bias);
                activation::forward(*activation, &mut state.hidden, &mut state.slope);
                let (weight, bias) = fc2.of(params);
                linear::forward_add(y, &state.hidden, weight, bias);
            }
            Self::Moe { router, shape, top_k, .. } => {
                let gate = &params[router.clone()];
                router::forward(&mut state.routing, x, gate, shape.width, *top_k);
                state.counted.clear();
                state.counted.extend_from_slice(rows.counted);
                state.distil = Distil::default();
                let layer = (*shape, self.weights(params));
                if let Teacher::IsEnsemble = rows.teacher {
                    let mut out = vec![0.0; x.len()];
                    experts::ensemble(&mut out, x, &state.routing.probabilities, layer);
                    simd::dispatch(
                        #[inline(always)]
                        || simd::add(y, &out),
                    );
                    return;
                }
                experts::forward_add(y, x, &state.routing, layer, &mut state.experts);
                if let Teacher::Ensemble(taught, share) = rows.teacher {
                    self.distil(taught, (x, share), state);
                }
            }
        }
    }

    fn weights<'a>(&self, params: &'a [f32]) -> Weights<'a> {
        let (Self::Moe { fc1, fc2, .. } | Self::Dense { fc1, fc2, .. }) = self;
        let ((fc1, fc1_bias), (fc2, fc2_bias)) = (fc1.of(params), fc2.of(params));
        Weights { fc1, fc1_bias, fc2, fc2_bias }
    }

    /// Runs the teacher on the most uncertain counted rows and keeps `y - y_ens`.
    fn distil(&self, taught: &[f32], (x, share): (&[f32], f64), state: &mut FfnState) {
        let Self::Moe { router, shape, top_k, .. } = self else { return };
        let d = shape.width;
        let distil = &mut state.distil;
        uncertain(&mut distil.rows, &state.routing, &state.counted, share);
        let mut inputs = Vec::with_capacity(distil.rows.len() * d);
        for &row in &distil.rows {
            inputs.extend_from_slice(&x[widen(row) * d..(widen(row) + 1) * d]);
        }
        let (mut routing, mut target) = (Routing::default(), vec![0.0; inputs.len()]);
        router::forward(&mut routing, &inputs, &taught[router.clone()], d, *top_k);
        let layer = (*shape, self.weights(taught));
        experts::ensemble(&mut target, &inputs, &routing.probabilities, layer);
        distil.difference.resize(target.len(), 0.0);
        let rows = distil.difference.chunks_exact_mut(d).zip(target.chunks_exact(d));
        for ((difference, target), &row) in rows.zip(&distil.rows) {
            state.experts.output(difference, &state.routing, widen(row));
            difference.iter_mut().zip(target).for_each(|(y, t)| *y -= t);
        }
        distil.target_square = squares(&target);
    }

    /// `dx_inner` [N, d] = the gradient of the FFN's input, from `dy` [N, d], which is left as
    /// it was.
    pub(super) fn backward(
        &self,
        (params, gradients): (&[f32], &mut [f32]),
        (dy, dx): (&mut [f32], &mut [f32]),
        (x, pull): (&[f32], &LayerPull),
        (state, scratch): (&mut FfnState, &mut Scratch),
    ) {
        match self {
            Self::Dense { fc1, fc2, .. } => {
                let scratch = &mut scratch.hidden;
                scratch.resize(state.hidden.len(), 0.0);
                let (weight, bias) = fc2.of_mut(gradients);
                linear::backward_parameters(weight, bias, dy, &state.hidden);
                let (weight, bias) = fc2.of(params);
                linear::backward_input(scratch, dy, weight, bias.len());
                let slope = &state.slope;
                simd::dispatch(
                    #[inline(always)]
                    || scratch.iter_mut().zip(slope).for_each(|(g, s)| *g *= s),
                );
                let (weight, bias) = fc1.of_mut(gradients);
                linear::backward_parameters(weight, bias, scratch, x);
                let (weight, bias) = fc1.of(params);
                linear::backward_input(dx, scratch, weight, bias.len());
            }
            Self::Moe { router, fc1, fc2, shape, .. } => {
                let unpulled = state.distil.pull(dy, pull.distance, shape.width);
                dx.fill(0.0);
                let layer = self.weights(params);
                let (lower, upper) = gradients.split_at_mut(fc2.weight.start);
                let (fc1, fc1_bias) = fc1.of_mut(lower);
                let (w, b) = (fc2.weight.len(), fc2.bias.len());
                let (fc2, fc2_bias) = upper[..w + b].split_at_mut(w);
                let mut into = Gradients { fc1, fc1_bias, fc2, fc2_bias };
                let layer = (*shape, layer, &mut into);
                let (routing, ws) = (&mut state.routing, &state.experts);
                let buffers = (ws, &mut scratch.experts);
                experts::backward_add(dx, dy, routing, layer, buffers);
                state.distil.restore(dy, &unpulled, shape.width);
                let auxiliary = Auxiliary {
                    probability: &pull.probability,
                    log_sum_square: pull.log_sum_square,
                    counted: &state.counted,
                };
                let gate = (&params[router.clone()], &mut gradients[router.clone()]);
                router::backward_add(routing, &auxiliary, (x, dx), gate);
            }
        }
    }

    pub(super) fn stats(&self, state: &FfnState, counted: &[bool]) -> Option<LayerStats> {
        let Self::Moe { shape, .. } = self else { return None };
        let e = shape.experts;
        let mut stats = LayerStats {
            counts: vec![0.0; e],
            probability: vec![0.0; e],
            distance: squares(&state.distil.difference),
            target_square: state.distil.target_square,
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
            stats.probability.iter_mut().zip(p).for_each(|(s, p)| *s += f64::from(*p));
            for &chosen in &routing.chosen[row * k..(row + 1) * k] {
                stats.counts[widen(chosen)] += 1.0;
            }
        }
        Some(stats)
    }
}

impl Distil {
    /// Adds the distillation's pull to its rows of `dy`; their former values come back.
    fn pull(&self, dy: &mut [f32], weight: f32, d: usize) -> Vec<f32> {
        let mut former = Vec::with_capacity(self.difference.len());
        for (&row, difference) in self.rows.iter().zip(self.difference.chunks_exact(d)) {
            let own = &mut dy[widen(row) * d..(widen(row) + 1) * d];
            former.extend_from_slice(own);
            own.iter_mut().zip(difference).for_each(|(own, v)| *own += 2.0 * weight * v);
        }
        former
    }

    /// Undoes [`Self::pull`], to the bit.
    fn restore(&self, dy: &mut [f32], former: &[f32], d: usize) {
        for (&row, former) in self.rows.iter().zip(former.chunks_exact(d)) {
            dy[widen(row) * d..(widen(row) + 1) * d].copy_from_slice(former);
        }
    }
}

/// The `share` of counted rows with the highest routing entropy, ties to the lower index,
/// ascending; at least one if any row counts.
fn uncertain(rows: &mut Vec<u32>, routing: &Routing, counted: &[bool], share: f64) {
    rows.clear();
    let all =
        counted.iter().enumerate().filter(|(_, c)| **c).map(|(row, _)| index_u32(row));
    rows.extend(all);
    let keep = truncate_usize((share * rows.len() as f64).ceil());
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
