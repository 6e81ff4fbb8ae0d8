//! The router: softmax over experts, top-K with renormalized weights, and its gradient.
//!
//! Renormalizing the K largest probabilities is a softmax over the K chosen logits, so the
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
    /// Their renormalized weights [N, K].
    pub weights: Vec<f32>,
    /// log Σ exp of the logits `[N]`.
    pub log_sum: Vec<f32>,
    /// Entropy of the probabilities `[N]`, in nats.
    pub entropy: Vec<f32>,
    /// Gradient of the weights [N, K], filled by the experts' backward.
    pub weight_gradient: Vec<f32>,
    logit_gradient: Vec<f32>,
    shifted: Vec<f32>,
}

/// Routes `x` [N, d] by `router` [E, d].
pub fn forward(routing: &mut Routing, x: &[f32], router: &[f32], width: usize, k: usize) {
    let (n, e) = (x.len() / width, router.len() / width);
    routing.probabilities.resize(n * e, 0.0);
    routing.chosen.resize(n * k, 0);
    routing.weights.resize(n * k, 0.0);
    routing.weight_gradient.resize(n * k, 0.0);
    routing.log_sum.resize(n, 0.0);
    routing.entropy.resize(n, 0.0);

    let logits = &mut routing.probabilities;
    gemm::a_bt(logits, Rows::new(x, width), Rows::new(router, width), Write::Replace);

    // Shifted logits stay for the entropy; exponentials of them cannot overflow.
    for (row, largest) in logits.chunks_exact_mut(e).zip(&mut routing.log_sum) {
        *largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for v in row {
            *v -= *largest;
        }
    }
    routing.shifted.clone_from(logits);
    simd::dispatch(
        #[inline(always)]
        || logits.iter_mut().for_each(|v| *v = simd::exp(*v)),
    );

    let shifted = routing.shifted.chunks_exact(e);
    for (token, (row, shifted)) in logits.chunks_exact_mut(e).zip(shifted).enumerate() {
        let total: f32 = row.iter().sum();
        for v in row.iter_mut() {
            *v /= total;
        }

        let log_total = total.ln();
        routing.log_sum[token] += log_total;
        // -Σ p ln p with ln p = shifted - log_total.
        let mean: f32 = row.iter().zip(shifted).map(|(p, s)| p * s).sum();
        routing.entropy[token] = log_total - mean;
        let slots = token * k..(token + 1) * k;
        top_k(row, &mut routing.chosen[slots.clone()], &mut routing.weights[slots]);
    }
}

/// The K largest of a row, ties to the lower index, and their fractions of their sum.
fn top_k(row: &[f32], chosen: &mut [u32], weights: &mut [f32]) {
    for slot in 0..chosen.len() {
        // K passes over the row need neither a sort nor a buffer.
        let mut best: Option<usize> = None;
        for (i, &p) in row.iter().enumerate() {
            let taken = chosen[..slot].iter().any(|&c| crate::num::widen(c) == i);

            // Strictly greater: of equal probabilities the lower index stays.
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

    for (token, gradient) in routing.logit_gradient.chunks_exact_mut(e).enumerate() {
        let p = &routing.probabilities[token * e..(token + 1) * e];
        if auxiliary.counted[token] {
            // The softmax's Jacobian: dp_j/dl_i = p_i (δ_ij - p_j). The z-loss adds 2 c
            // lse p_i, because the derivative of the log-sum-exp is p.
            let by_probability = auxiliary.probability;
            let along: f32 = by_probability.iter().zip(p).map(|(c, p)| c * p).sum();
            let z = 2.0 * auxiliary.log_sum_square * routing.log_sum[token];
            for ((s, p), c) in gradient.iter_mut().zip(p).zip(by_probability) {
                *s = p * (c - along + z);
            }
        } else {
            gradient.fill(0.0);
        }

        // The renormalized weights are a softmax over the chosen logits.
        let slots = token * k..(token + 1) * k;
        let (g, dg) =
            (&routing.weights[slots.clone()], &routing.weight_gradient[slots.clone()]);

        let along: f32 = g.iter().zip(dg).map(|(g, dg)| g * dg).sum();
        for ((g, dg), &c) in g.iter().zip(dg).zip(&routing.chosen[slots]) {
            gradient[crate::num::widen(c)] += g * (dg - along);
        }
    }

    let logits = Rows::new(&routing.logit_gradient, e);
    gemm::at_b(router_gradient, logits, Rows::new(x, width), Write::Add);
    gemm::a_b(dx, logits, Rows::new(router, width), Write::Add);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::cpu::ops::check::{assert_close, differences, random, wide};
    use crate::num::widen;

    /// Softmax probabilities [N, E] and log Σ exp `[N]`.
    fn slow(x: &[f64], router: &[f64], d: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut probabilities, mut log_sum) = (Vec::new(), Vec::new());
        for x in x.chunks_exact(d) {
            let logit =
                |r: &[f64]| x.iter().zip(r).map(|(x, r)| x * r).sum::<f64>().exp();
            let powers: Vec<f64> = router.chunks_exact(d).map(logit).collect();
            let total: f64 = powers.iter().sum();
            probabilities.extend(powers.iter().map(|p| p / total));
            log_sum.push(total.ln());
        }
        (probabilities, log_sum)
    }

    #[test]
    fn ties_go_to_the_lower_index_and_weights_sum_to_one() {
        let (mut chosen, mut weights) = ([9; 3], [0.0; 3]);
        top_k(&[0.2, 0.3, 0.2, 0.3], &mut chosen, &mut weights);
        assert_eq!(chosen, [1, 3, 0]);
        assert_close("weights", &weights, &[0.375, 0.375, 0.25], 1e-6);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn both_passes_equal_the_definition(
            n in 1_usize..8, e in 2_usize..7, d in 1_usize..10, seed in 0..99_u64
        ) {
            let k = 2.min(e);
            let (x, router) = (random("x", n * d, seed), random("router", e * d, seed));
            let mut routing = Routing::default();
            forward(&mut routing, &x, &router, d, k);
            let (p, log_sum) = slow(&wide(&x), &wide(&router), d);
            assert_close("probabilities", &routing.probabilities, &p, 1e-5);
            assert_close("log sum", &routing.log_sum, &log_sum, 1e-5);

            // The weights of the chosen experts, the balance's gradient on the probabilities of
            // counted tokens and the z-loss in one list of outputs, each with its upstream
            // gradient.
            let given = (random("dw", n * k, seed), random("dp", e, seed));
            let counted: Vec<bool> = (0..n).map(|token| token % 3 != 1).collect();
            let z = 0.1;
            routing.weight_gradient.copy_from_slice(&given.0);
            let chosen = routing.chosen.clone();
            let outputs = |x: &[f64], router: &[f64]| {
                let (p, log_sum) = slow(x, router, d);
                let mut out = Vec::new();
                for (token, p) in p.chunks_exact(e).enumerate() {
                    let own = &chosen[token * k..(token + 1) * k];
                    let total: f64 = own.iter().map(|&c| p[widen(c)]).sum();
                    out.extend(own.iter().map(|&c| p[widen(c)] / total));
                }
                let counts = |token: usize| f64::from(u8::from(counted[token]));
                out.extend(p.iter().enumerate().map(|(i, p)| counts(i / e) * p));
                out.extend(log_sum.iter().enumerate().map(|(i, l)| counts(i) * l * l));
                out
            };
            let upstream =
                [given.0.clone(), given.1.repeat(n), vec![z; n]].concat();
            let auxiliary = Auxiliary {
                probability: &given.1, log_sum_square: z, counted: &counted,
            };
            let (mut dx, mut dr) = (vec![0.0; n * d], vec![0.0; e * d]);
            backward_add(&mut routing, &auxiliary, (&x, &mut dx), (&router, &mut dr));
            let (x64, r64) = (wide(&x), wide(&router));
            assert_close("dx", &dx, &differences(&x, &upstream, |x| outputs(x, &r64)), 2e-5);
            assert_close("drouter", &dr, &differences(&router, &upstream, |r| outputs(&x64, r)), 2e-5);
        }
    }
}
