//! The transformer of one tower over a group of samples: forward, and backward by hand.
//!
//! Rows of all samples of a group lie packed (`starts`). The residual stream is one buffer
//! that every block adds to; what the backward needs is kept in the block's own state and
//! reused from step to step. MoE blocks route every row; only `counted` rows enter losses
//! and statistics (METHOD §2.1).

mod ffn;

pub use ffn::MoeMode;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::engine::cpu::ops::attention::{self, Heads};
use crate::engine::cpu::ops::{layer_norm, linear};
use crate::engine::{LayerStats, StatsGradient};
use crate::model::names::{ParameterId, Part};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower, TowerShape};
use ffn::{Ffn, FfnState};

/// The flat buffers of a backward pass: weights are read, gradients are added to.
#[derive(Debug)]
pub(super) struct Flat<'a> {
    pub(super) values: &'a [f32],
    pub(super) gradients: &'a mut [f32],
}

/// A weight and the bias that lies behind it in the flat buffer.
#[derive(Debug, Clone)]
pub(super) struct WeightBias {
    weight: Range<usize>,
    bias: Range<usize>,
}

impl WeightBias {
    pub(super) fn new(layout: &Layout, weight: ParameterId, bias: ParameterId) -> Self {
        let (weight, bias) = (layout.range(weight), layout.range(bias));
        assert_eq!(weight.end, bias.start, "a bias lies behind its weight");
        Self { weight, bias }
    }

    pub(super) fn of<'a>(&self, values: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        (&values[self.weight.clone()], &values[self.bias.clone()])
    }

    pub(super) fn of_mut<'a>(
        &self,
        flat: &'a mut [f32],
    ) -> (&'a mut [f32], &'a mut [f32]) {
        flat[self.weight.start..self.bias.end].split_at_mut(self.weight.len())
    }
}

/// Where the weights of one block lie in the flat buffer.
#[derive(Debug, Clone)]
struct Block {
    ln_1: WeightBias,
    qkv: WeightBias,
    out: WeightBias,
    ln_2: WeightBias,
    ffn: Ffn,
}

/// The transformer of one tower.
#[derive(Debug, Clone)]
pub struct Transformer {
    shape: TowerShape,
    blocks: Vec<Block>,
}

/// What one block keeps between forward and backward.
#[derive(Debug, Default, Clone)]
pub struct BlockState {
    ln_1: layer_norm::Saved,
    attention_input: Vec<f32>,
    qkv: Vec<f32>,
    attention: attention::Workspace,
    mixed: Vec<f32>,
    ln_2: layer_norm::Saved,
    /// LN2's output [N, d]: the FFN's input.
    pub ffn_input: Vec<f32>,
    /// The FFN's or MoE layer's state.
    pub ffn: FfnState,
}

/// FFN inputs [N, d] of some blocks, by index, that outlive their blocks' states.
pub type Kept = BTreeMap<usize, Vec<f32>>;

/// Buffers of the backward that do not outlive a block.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    rows: Vec<f32>,
    qkv: Vec<f32>,
    ffn: ffn::Scratch,
}

/// The rows of a group and what is asked of them.
#[derive(Debug, Clone, Copy)]
pub struct GroupRows<'a> {
    /// Sample s owns rows `starts[s]..starts[s + 1]`.
    pub starts: &'a [usize],
    /// Rows that enter balance, distillation and statistics.
    pub counted: &'a [bool],
    /// What the MoE layers compute.
    pub mode: MoeMode<'a>,
}

/// Where the blocks leave what they compute.
#[derive(Debug)]
pub(super) struct States<'a> {
    /// One state per block for a backward, or a single one that all blocks use in turn.
    pub(super) blocks: &'a mut [BlockState],
    /// FFN inputs of the blocks that are named here are copied here.
    pub(super) kept: &'a mut Kept,
}

impl Transformer {
    /// The transformer of a tower of a model.
    pub fn new(config: &ClipConfig, layout: &Layout, tower: Tower) -> Self {
        let shape = config.tower(tower);
        let block = |index| {
            let pair = |weight, bias| {
                let id = |part| ParameterId::Block(tower, index, part);
                WeightBias::new(layout, id(weight), id(bias))
            };
            Block {
                ln_1: pair(Part::Ln1Weight, Part::Ln1Bias),
                qkv: pair(Part::InProjWeight, Part::InProjBias),
                out: pair(Part::OutProjWeight, Part::OutProjBias),
                ln_2: pair(Part::Ln2Weight, Part::Ln2Bias),
                ffn: Ffn::new(config, layout, (tower, index)),
            }
        };
        Self { shape, blocks: (0..shape.layers).map(block).collect() }
    }

    /// Fresh states, one per block.
    pub fn states(&self) -> Vec<BlockState> {
        vec![BlockState::default(); self.blocks.len()]
    }

    fn heads(&self) -> Heads {
        Heads { count: self.shape.heads, causal: self.shape.causal }
    }

    /// Runs all blocks on the residual stream `x` [N, d], in place.
    pub(super) fn forward(
        &self,
        values: &[f32],
        x: &mut [f32],
        rows: GroupRows<'_>,
        states: States<'_>,
    ) {
        let d = self.shape.width;
        let n = x.len() / d;
        let States { blocks: states, kept } = states;
        let last = states.len() - 1;
        for (index, block) in self.blocks.iter().enumerate() {
            let state = &mut states[index.min(last)];
            state.attention_input.resize(n * d, 0.0);
            state.ffn_input.resize(n * d, 0.0);
            state.qkv.resize(n * 3 * d, 0.0);
            state.mixed.resize(n * d, 0.0);

            let (gain, bias) = block.ln_1.of(values);
            let normed = &mut state.attention_input;
            layer_norm::forward(normed, x, gain, bias, &mut state.ln_1);

            let (weight, bias) = block.qkv.of(values);
            linear::forward(&mut state.qkv, &state.attention_input, weight, bias);

            let (mixed, qkv, heads) = (&mut state.mixed, &state.qkv, self.heads());
            attention::forward(mixed, qkv, rows.starts, heads, &mut state.attention);

            let (weight, bias) = block.out.of(values);
            linear::forward_add(x, &state.mixed, weight, bias);

            let (gain, bias) = block.ln_2.of(values);
            layer_norm::forward(&mut state.ffn_input, x, gain, bias, &mut state.ln_2);
            if let Some(kept) = kept.get_mut(&index) {
                kept.clone_from(&state.ffn_input);
            }

            let input = (state.ffn_input.as_slice(), rows);
            block.ffn.forward_add(values, x, input, &mut state.ffn);
        }
    }

    /// Turns `dx` [N, d], the gradient of the blocks' output, into that of their input, and
    /// adds to the gradients of the weights. `stats` has one entry per block.
    pub(super) fn backward(
        &self,
        flat: &mut Flat<'_>,
        (dx, starts): (&mut [f32], &[usize]),
        (stats, states): (&[StatsGradient], &mut [BlockState]),
        scratch: &mut Scratch,
    ) {
        let d = self.shape.width;
        let n = dx.len() / d;
        scratch.rows.resize(n * d, 0.0);
        scratch.qkv.resize(n * 3 * d, 0.0);

        let blocks = self.blocks.iter().zip(stats).zip(states).rev();
        for ((block, stats), state) in blocks {
            // The residual stream passes its gradient on; each branch adds its own.
            let inner = &mut scratch.rows;
            let input = state.ffn_input.as_slice();
            let buffers = (&mut state.ffn, &mut scratch.ffn);
            block.ffn.backward(flat, (dx, inner), (input, stats), buffers);
            norm_backward(dx, inner, flat, &block.ln_2, &state.ln_2);

            let (weight, bias) = block.out.of_mut(flat.gradients);
            linear::backward_parameters(weight, bias, dx, &state.mixed);
            linear::backward_input(inner, dx, block.out.of(flat.values).0, d);

            // One gradient for queries, keys and values, as they came from one product.
            let (dqkv, kept) = (&mut scratch.qkv, (self.heads(), &mut state.attention));
            attention::backward(dqkv, inner, &state.qkv, starts, kept);

            let (weight, bias) = block.qkv.of_mut(flat.gradients);
            linear::backward_parameters(weight, bias, dqkv, &state.attention_input);
            linear::backward_input(inner, dqkv, block.qkv.of(flat.values).0, 3 * d);
            norm_backward(dx, inner, flat, &block.ln_1, &state.ln_1);
        }
    }

    /// Statistics of the MoE layers of the last forward, one entry per block.
    pub fn stats(
        &self,
        states: &[BlockState],
        counted: &[bool],
    ) -> Vec<Option<LayerStats>> {
        let pairs = self.blocks.iter().zip(states);
        pairs.map(|(block, state)| block.ffn.stats(&state.ffn, counted)).collect()
    }
}

/// The gradient of a LayerNorm's gain and bias, and of its input added to `dx`.
pub(super) fn norm_backward(
    dx: &mut [f32],
    dy: &[f32],
    flat: &mut Flat<'_>,
    norm: &WeightBias,
    saved: &layer_norm::Saved,
) {
    let (gain, bias) = norm.of_mut(flat.gradients);
    let mut into = layer_norm::Gradients { gain, bias };
    layer_norm::backward_add(dx, dy, norm.of(flat.values).0, saved, &mut into);
}
