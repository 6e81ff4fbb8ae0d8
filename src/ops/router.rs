//! The router: softmax over experts, top-K with renormalised weights, and its gradient.
//!
//! Renormalising the K largest probabilities is a softmax over the K chosen logits, so the
//! task gradient reaches those logits only; balance and z-loss reach all of them through the
//! full softmax (METHOD §1, §4). Ties go to the lower index.

use super::simd;
use crate::linalg::gemm::{self, Rows, Write};

/// The routing of N tokens, reused from step to step.
#[derive(Debug, Default, Clone)]
pub struct Routing {
    /// Softmax over all experts [N, E].
    pub probabilities: Vec<f32>,
    /// Chosen experts [N, K], best first.
    pub chosen: Vec<u32>,
    /// Their renormalised weights [N, K].
    pub weights: Vec<f32>,
    /// log Σ exp of the logits `[N]`.
    pub log_sum: Vec<f32>,
    /// Gradient of the weights [N, K], filled by the experts' backward.
    pub weight_gradient: Vec<f32>,
    logit_gradient: Vec<f32>,
}

/// Routes `x` [N, d] by `router` [E, d].
pub fn forward(routing: &mut Routing, x: &[f32], router: &[f32], width: usize, k: usize) {
    let (n, e) = (x.len() / width, router.len() / width);
    routing.probabilities.resize(n * e, 0.0);
    routing.chosen.resize(n * k, 0);
    routing.weights.resize(n * k, 0.0);
    routing.weight_gradient.resize(n * k, 0.0);
    routing.log_sum.resize(n, 0.0);
    let logits = &mut routing.probabilities;
    gemm::a_bt(logits, Rows::new(x, width), Rows::new(router, width), Write::Replace);
    for (row, largest) in logits.chunks_exact_mut(e).zip(&mut routing.log_sum) {
        *largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for v in row {
            *v -= *largest;
        }
    }
    simd::dispatch(
        #[inline(always)]
        || logits.iter_mut().for_each(|v| *v = simd::exp(*v)),
    );
    for (token, row) in logits.chunks_exact_mut(e).enumerate() {
        let total: f32 = row.iter().sum();
        for v in row.iter_mut() {
            *v /= total;
        }
        routing.log_sum[token] += total.ln();
        let slots = token * k..(token + 1) * k;
        top_k(row, &mut routing.chosen[slots.clone()], &mut routing.weights[slots]);
    }
}

/// The K largest of a row, ties to the lower index, and their shares of their sum.
fn top_k(row: &[f32], chosen: &mut [u32], weights: &mut [f32]) {
    for slot in 0..chosen.len() {
        let mut best: Option<usize> = None;
        for (i, &p) in row.iter().enumerate() {
            let taken = chosen[..slot].iter().any(|&c| crate::num::widen(c) == i);
            if !taken && best.is_none_or(|b| p > row[b]) {
                best = Some(i);
            }
        }
        let best = best.unwrap_or(0);
        chosen[slot] = crate::num::index_u32(best);
        weights[slot] = row[best];
    }
    let total: f32 = weights.iter().sum();
    for w in weights {
        *w /= total;
    }
}

/// What the auxiliary losses ask of the logits of each counted token.
#[derive(Debug, Clone)]
pub struct Auxiliary<'a> {
    /// d loss / d probability of each expert `[E]`, the same for every counted token.
    pub probability: &'a [f32],
    /// d loss / d (log-sum-exp)² of a counted token.
    pub log_sum_square: f32,
    /// Which tokens count `[N]`.
    pub counted: &'a [bool],
}

/// Gradients: adds to `router_gradient` [E, d] and `dx` [N, d]; reads
/// [`Routing::weight_gradient`].
pub fn backward_add(
    routing: &mut Routing,
    auxiliary: &Auxiliary<'_>,
    (x, dx): (&[f32], &mut [f32]),
    (router, router_gradient): (&[f32], &mut [f32]),
) {
    let e = auxiliary.probability.len();
    let width = router.len() / e;
    let k = routing.weights.len() * e / routing.probabilities.len().max(1);
    routing.logit_gradient.resize(routing.probabilities.len(), 0.0);
    for (token, slope) in routing.logit_gradient.chunks_exact_mut(e).enumerate() {
        let p = &routing.probabilities[token * e..(token + 1) * e];
        if auxiliary.counted[token] {
            let pull = auxiliary.probability;
            let along: f32 = pull.iter().zip(p).map(|(c, p)| c * p).sum();
            let z = 2.0 * auxiliary.log_sum_square * routing.log_sum[token];
            for ((s, p), c) in slope.iter_mut().zip(p).zip(pull) {
                *s = p * (c - along + z);
            }
        } else {
            slope.fill(0.0);
        }
        let slots = token * k..(token + 1) * k;
        let (g, dg) =
            (&routing.weights[slots.clone()], &routing.weight_gradient[slots.clone()]);
        let along: f32 = g.iter().zip(dg).map(|(g, dg)| g * dg).sum();
        for ((g, dg), &c) in g.iter().zip(dg).zip(&routing.chosen[slots]) {
            slope[crate::num::widen(c)] += g * (dg - along);
        }
    }
    let slope = Rows::new(&routing.logit_gradient, e);
    gemm::at_b(router_gradient, slope, Rows::new(x, width), Write::Add);
    gemm::a_b(dx, slope, Rows::new(router, width), Write::Add);
}
