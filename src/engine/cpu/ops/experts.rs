//! The grouped expert FFN: dispatch, both linear layers, activation, combine.
//!
//! No token is dropped. The K copies of a token are sorted by expert (stable, so the order
//! does not depend on anything but the routing), every expert is two matrix products over
//! its own rows, and the outputs are added back with the routing weights. Cost is that of K
//! dense FFNs plus two gathers; an expert without tokens costs nothing and gets no gradient.

use super::router::Routing;
use super::{activation, linear, simd};
use crate::config::Activation;
use crate::ffn::FfnParts;
use crate::linalg::gemm::{self, Rows as View, Write};
use crate::num::{index_u32, widen};

/// The stacked weights of E experts: [E, h, d], [E, h], [E, d, h], [E, d].
pub type Weights<'a> = FfnParts<&'a [f32]>;

/// Their gradients, added to.
pub type Gradients<'a> = FfnParts<&'a mut [f32]>;

/// Extents of an expert layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Experts E.
    pub experts: usize,
    /// Width d.
    pub width: usize,
    /// Hidden width h.
    pub hidden: usize,
    /// Activation between the linear layers.
    pub activation: Activation,
}

impl Shape {
    fn expert<'a>(&self, w: Weights<'a>, e: usize) -> Weights<'a> {
        let (h, d) = (self.hidden, self.width);
        Weights {
            fc1: &w.fc1[e * h * d..(e + 1) * h * d],
            fc1_bias: &w.fc1_bias[e * h..(e + 1) * h],
            fc2: &w.fc2[e * h * d..(e + 1) * h * d],
            fc2_bias: &w.fc2_bias[e * d..(e + 1) * d],
        }
    }
}

/// What the forward keeps for the backward, reused from step to step.
#[derive(Debug, Default, Clone)]
pub struct Workspace {
    /// Slots of expert e are `starts[e]..starts[e + 1]`.
    pub starts: Vec<usize>,
    top_k: usize,
    /// Which of the N K (token, choice) pairs a slot holds.
    pairs: Vec<u32>,
    /// Which slot holds a pair.
    slots: Vec<u32>,
    inputs: Vec<f32>,
    hidden: Vec<f32>,
    derivative: Vec<f32>,
    outputs: Vec<f32>,
}

/// Buffers of the backward; any layer may use them next.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    outputs: Vec<f32>,
    hidden: Vec<f32>,
    inputs: Vec<f32>,
}

impl Workspace {
    fn sort(&mut self, chosen: &[u32], experts: usize) {
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        for &e in chosen {
            self.starts[widen(e) + 1] += 1;
        }

        // Counts become starts; then every pair takes the next free slot of its expert.
        // Pairs are seen in order, so the sort is stable.
        for e in 0..experts {
            self.starts[e + 1] += self.starts[e];
        }

        let mut next = self.starts.clone();
        self.pairs.resize(chosen.len(), 0);
        self.slots.resize(chosen.len(), 0);
        for ((pair, slot), &e) in self.slots.iter_mut().enumerate().zip(chosen) {
            *slot = index_u32(next[widen(e)]);
            self.pairs[next[widen(e)]] = index_u32(pair);
            next[widen(e)] += 1;
        }
    }

    /// The layer's output `y` `[d]` for one token, from the experts' outputs of the last forward.
    pub fn output(&self, y: &mut [f32], routing: &Routing, token: usize) {
        let (d, k) = (y.len(), self.top_k);
        y.fill(0.0);

        for pair in token * k..(token + 1) * k {
            let slot = widen(self.slots[pair]);
            let (weight, row) = (routing.weights[pair], &self.outputs[slot * d..][..d]);
            simd::dispatch(
                #[inline(always)]
                || y.iter_mut().zip(row).for_each(|(y, v)| *y = weight.mul_add(*v, *y)),
            );
        }
    }
}

/// `y` [N, d] += Σ over chosen experts of weight × expert(x).
pub fn forward_add(
    y: &mut [f32],
    x: &[f32],
    routing: &Routing,
    (shape, weights): (Shape, Weights<'_>),
    ws: &mut Workspace,
) {
    let (d, h) = (shape.width, shape.hidden);
    let k = routing.chosen.len() / (x.len() / d).max(1);
    ws.top_k = k;
    ws.sort(&routing.chosen, shape.experts);
    let slots = ws.pairs.len();

    ws.inputs.resize(slots * d, 0.0);
    ws.hidden.resize(slots * h, 0.0);
    ws.derivative.resize(slots * h, 0.0);
    ws.outputs.resize(slots * d, 0.0);

    // Dispatch: the rows of an expert lie together.
    for (row, &pair) in ws.inputs.chunks_exact_mut(d).zip(&ws.pairs) {
        let token = widen(pair) / k;
        row.copy_from_slice(&x[token * d..(token + 1) * d]);
    }

    for e in 0..shape.experts {
        let own = shape.expert(weights, e);
        let (from, to) = (ws.starts[e], ws.starts[e + 1]);
        if from == to {
            continue;
        }

        let hidden = &mut ws.hidden[from * h..to * h];
        linear::forward(hidden, &ws.inputs[from * d..to * d], own.fc1, own.fc1_bias);
        activation::forward(
            shape.activation,
            hidden,
            &mut ws.derivative[from * h..to * h],
        );
        linear::forward(&mut ws.outputs[from * d..to * d], hidden, own.fc2, own.fc2_bias);
    }

    // Combine: in the order of slots, which the routing alone decides.
    for (row, &pair) in ws.outputs.chunks_exact(d).zip(&ws.pairs) {
        let weight = routing.weights[widen(pair)];
        let token = widen(pair) / k;
        let target = &mut y[token * d..(token + 1) * d];
        simd::dispatch(
            #[inline(always)]
            || {
                for (t, v) in target.iter_mut().zip(row) {
                    *t = weight.mul_add(*v, *t);
                }
            },
        );
    }
}

/// Adds to `dx` [N, d] and to the experts' gradients, and fills
/// [`Routing::weight_gradient`].
pub fn backward_add(
    dx: &mut [f32],
    dy: &[f32],
    routing: &mut Routing,
    (shape, weights, gradients): (Shape, Weights<'_>, &mut Gradients<'_>),
    (ws, scratch): (&Workspace, &mut Scratch),
) {
    let (d, h, k) = (shape.width, shape.hidden, ws.top_k);
    let slots = ws.pairs.len();
    scratch.outputs.resize(slots * d, 0.0);
    scratch.hidden.resize(slots * h, 0.0);
    scratch.inputs.resize(slots * d, 0.0);

    // The gradient of a row's output, and of the weight it was added with.
    let rows = scratch.outputs.chunks_exact_mut(d).zip(ws.outputs.chunks_exact(d));
    for ((gradient, output), &pair) in rows.zip(&ws.pairs) {
        let pair = widen(pair);
        let from = &dy[pair / k * d..(pair / k + 1) * d];
        let weight = routing.weights[pair];
        routing.weight_gradient[pair] = simd::dispatch(
            #[inline(always)]
            || {
                for (g, v) in gradient.iter_mut().zip(from) {
                    *g = weight * v;
                }
                simd::dot(from, output)
            },
        );
    }

    for e in 0..shape.experts {
        let (from, to) = (ws.starts[e], ws.starts[e + 1]);
        if from == to {
            continue;
        }

        let own = shape.expert(weights, e);
        let dy = &scratch.outputs[from * d..to * d];
        let dh = &mut scratch.hidden[from * h..to * h];
        let (dw2, db2) = (
            &mut gradients.fc2[e * h * d..(e + 1) * h * d],
            &mut gradients.fc2_bias[e * d..(e + 1) * d],
        );
        linear::backward_parameters(dw2, db2, dy, &ws.hidden[from * h..to * h]);
        linear::backward_input(dh, dy, own.fc2, d);

        let derivative = &ws.derivative[from * h..to * h];
        simd::dispatch(
            #[inline(always)]
            || dh.iter_mut().zip(derivative).for_each(|(g, s)| *g *= s),
        );

        let (dw1, db1) = (
            &mut gradients.fc1[e * h * d..(e + 1) * h * d],
            &mut gradients.fc1_bias[e * h..(e + 1) * h],
        );
        linear::backward_parameters(dw1, db1, dh, &ws.inputs[from * d..to * d]);
        linear::backward_input(&mut scratch.inputs[from * d..to * d], dh, own.fc1, h);
    }

    // The K copies of a token add up in the order of slots, as in the forward pass.
    for (row, &pair) in scratch.inputs.chunks_exact(d).zip(&ws.pairs) {
        let token = widen(pair) / k;
        simd::dispatch(
            #[inline(always)]
            || simd::add(&mut dx[token * d..(token + 1) * d], row),
        );
    }
}

/// The dense ensemble `y` [n, d] = Σ over *all* experts of p E(x) for rows of `x`
/// [n, d], without gradients: EESD's teacher (METHOD §4). Allocates n h values.
///
/// Hidden rows are scaled by p, so that the second products add up without buffers.
pub fn ensemble(
    y: &mut [f32],
    x: &[f32],
    probabilities: &[f32],
    (shape, weights): (Shape, Weights<'_>),
) {
    let (d, h, count) = (shape.width, shape.hidden, shape.experts);

    let mut hidden = vec![0.0; x.len() / d * h];
    let weights_of_rows = || probabilities.chunks_exact(count);

    // The second biases, each with its expert's probability.
    simd::dispatch(
        #[inline(always)]
        || {
            for (y, p) in y.chunks_exact_mut(d).zip(weights_of_rows()) {
                y.fill(0.0);
                for (p, bias) in p.iter().zip(weights.fc2_bias.chunks_exact(d)) {
                    y.iter_mut().zip(bias).for_each(|(y, b)| *y = p.mul_add(*b, *y));
                }
            }
        },
    );

    for e in 0..count {
        let own = shape.expert(weights, e);

        // Σ p W2 h = Σ W2 (p h): scaling the hidden rows saves an output buffer per
        // expert.
        linear::forward(&mut hidden, x, own.fc1, own.fc1_bias);
        activation::apply(shape.activation, &mut hidden);
        simd::dispatch(
            #[inline(always)]
            || {
                for (row, p) in hidden.chunks_exact_mut(h).zip(weights_of_rows()) {
                    for v in row {
                        *v *= p[e];
                    }
                }
            },
        );

        gemm::a_bt(y, View::new(&hidden, h), View::new(own.fc2, h), Write::Add);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::cpu::ops::check::{assert_close, differences, random, wide};

    /// The parts of a layer: x, W1, b1, W2, b2 and the routing weights.
    type Parts = [Vec<f32>; 6];

    fn layer(n: usize, k: usize, shape: Shape, seed: u64) -> Parts {
        let (e, d, h) = (shape.experts, shape.width, shape.hidden);
        let lens = [n * d, e * h * d, e * h, e * d * h, e * d, n * k];
        let names = ["x", "fc1", "fc1_bias", "fc2", "fc2_bias", "weights"];
        std::array::from_fn(|i| random(names[i], lens[i], seed))
    }

    fn quick_gelu(v: f64) -> f64 {
        v / (1.0 + (-1.702 * v).exp())
    }

    /// One expert on one token.
    fn expert(parts: [&[f64]; 5], shape: Shape, e: usize, token: usize) -> Vec<f64> {
        let (d, h) = (shape.width, shape.hidden);
        let [x, fc1, b1, fc2, b2] = parts;
        let x = &x[token * d..][..d];
        let hidden: Vec<f64> = (0..h)
            .map(|j| {
                let row = &fc1[(e * h + j) * d..][..d];
                quick_gelu(
                    b1[e * h + j] + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>(),
                )
            })
            .collect();
        (0..d)
            .map(|j| {
                let row = &fc2[(e * d + j) * h..][..h];
                b2[e * d + j] + row.iter().zip(&hidden).map(|(w, a)| w * a).sum::<f64>()
            })
            .collect()
    }

    fn slow(parts: [&[f64]; 6], shape: Shape, chosen: &[u32]) -> Vec<f64> {
        let [x, fc1, b1, fc2, b2, weights] = parts;
        let (n, d) = (x.len() / shape.width, shape.width);
        let k = chosen.len() / n;
        let mut y = vec![0.0; n * d];
        for (pair, (&e, weight)) in chosen.iter().zip(weights).enumerate() {
            let token = pair / k;
            let out = expert([x, fc1, b1, fc2, b2], shape, widen(e), token);
            for (y, o) in y[token * d..][..d].iter_mut().zip(out) {
                *y += weight * o;
            }
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn both_passes_equal_the_sum_over_chosen_experts(
            n in 1_usize..7, e in 2_usize..5, d in 1_usize..6, h in 1_usize..9, seed in 0..99_u64
        ) {
            let activation = Activation::QuickGelu;
            let shape = Shape { experts: e + 1, width: d, hidden: h, activation };
            let parts = layer(n, 2, shape, seed);
            // The last expert gets no token.
            let chosen: Vec<u32> = (0..n)
                .flat_map(|t| [(t * 7 + 1) % e, (t * 7 + 2) % e].map(index_u32))
                .collect();
            let mut routing = Routing::default();
            routing.chosen.clone_from(&chosen);
            routing.weights.clone_from(&parts[5]);
            routing.weight_gradient.resize(n * 2, 0.0);
            let weights = Weights {
                fc1: &parts[1], fc1_bias: &parts[2], fc2: &parts[3], fc2_bias: &parts[4],
            };
            let (mut y, mut ws) = (vec![0.0; n * d], Workspace::default());
            forward_add(&mut y, &parts[0], &routing, (shape, weights), &mut ws);
            let truth: [Vec<f64>; 6] = std::array::from_fn(|i| wide(&parts[i]));
            let definition = |i: usize, moved: &[f64]| {
                let part = |j: usize| if i == j { moved } else { truth[j].as_slice() };
                slow(std::array::from_fn(part), shape, &chosen)
            };
            assert_close("y", &y, &definition(0, &truth[0]), 1e-5);
            for (token, y) in y.chunks_exact(d).enumerate() {
                let mut own = vec![9.0; d];
                ws.output(&mut own, &routing, token);
                assert_close("one token", &own, &wide(y), 1e-6);
            }

            let dy = random("dy", n * d, seed);
            let mut found: [Vec<f32>; 5] = std::array::from_fn(|i| vec![0.0; parts[i].len()]);
            let [dx, fc1, fc1_bias, fc2, fc2_bias] = &mut found;
            let mut gradients = Gradients { fc1, fc1_bias, fc2, fc2_bias };
            let buffers = (&ws, &mut Scratch::default());
            backward_add(dx, &dy, &mut routing, (shape, weights, &mut gradients), buffers);
            let names = ["dx", "dfc1", "dfc1_bias", "dfc2", "dfc2_bias"];
            for (i, found) in found.iter().enumerate() {
                let truth = differences(&parts[i], &dy, |moved| definition(i, moved));
                assert_close(names[i], found, &truth, 2e-5);
            }
            let truth = differences(&parts[5], &dy, |moved| definition(5, moved));
            assert_close("dweights", &routing.weight_gradient, &truth, 2e-5);
            prop_assert!(found[1][e * h * d..].iter().all(|v| *v == 0.0));
        }

        #[test]
        fn the_ensemble_is_the_sum_over_all_experts(
            n in 1_usize..6, e in 1_usize..5, d in 1_usize..6, h in 1_usize..9, seed in 0..99_u64
        ) {
            let activation = Activation::QuickGelu;
            let shape = Shape { experts: e, width: d, hidden: h, activation };
            let parts = layer(n, e, shape, seed);
            let weights = Weights {
                fc1: &parts[1], fc1_bias: &parts[2], fc2: &parts[3], fc2_bias: &parts[4],
            };
            let mut y = vec![9.0; n * d];
            let layer = (shape, weights);
            ensemble(&mut y, &parts[0], &parts[5], layer);
            let every: Vec<u32> = (0..n).flat_map(|_| (0..e).map(index_u32)).collect();
            let truth: [Vec<f64>; 6] = std::array::from_fn(|i| wide(&parts[i]));
            let truth = slow(std::array::from_fn(|i| truth[i].as_slice()), shape, &every);
            assert_close("y", &y, &truth, 1e-5);
        }
    }
}
