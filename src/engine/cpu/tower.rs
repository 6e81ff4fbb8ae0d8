//! The transformer of one tower over a group of samples: forward, and backward by hand.
//!
//! Rows of all samples of a group lie packed (`starts`). The residual stream is one buffer
//! that every block adds to; what the backward needs is kept in the block's own state and
//! reused from step to step. MoE blocks route every row; only `counted` rows enter losses
//! and statistics (METHOD §2.1).

mod ffn;

pub use ffn::{LayerPull, LayerStats, Teacher};

use std::collections::BTreeMap;
use std::ops::Range;

use crate::engine::cpu::ops::attention::{self, Heads};
use crate::engine::cpu::ops::{layer_norm, linear};
use crate::model::names::{Part, Place};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower, TowerShape};
use ffn::{Ffn, FfnState};

/// A weight and the bias that lies behind it in the flat buffer.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    weight: Range<usize>,
    bias: Range<usize>,
}

impl Pair {
    pub(super) fn new(layout: &Layout, weight: Place, bias: Place) -> Self {
        let (weight, bias) = (layout.range(weight), layout.range(bias));
        assert_eq!(weight.end, bias.start, "a bias lies behind its weight");
        Self { weight, bias }
    }

    pub(super) fn of<'a>(&self, params: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        (&params[self.weight.clone()], &params[self.bias.clone()])
    }

    pub(super) fn of_mut<'a>(
        &self,
        flat: &'a mut [f32],
    ) -> (&'a mut [f32], &'a mut [f32]) {
        flat[self.weight.start..self.bias.end].split_at_mut(self.weight.len())
    }
}

/// One block's places in the flat buffer.
#[derive(Debug, Clone)]
struct Block {
    ln_1: Pair,
    qkv: Pair,
    out: Pair,
    ln_2: Pair,
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
pub struct Rows<'a> {
    /// Sample s owns rows `starts[s]..starts[s + 1]`.
    pub starts: &'a [usize],
    /// Rows that enter balance, distillation and statistics.
    pub counted: &'a [bool],
    /// Who teaches the MoE layers.
    pub teacher: Teacher<'a>,
}

impl Transformer {
    /// The transformer of a tower of a model.
    pub fn new(config: &ClipConfig, layout: &Layout, tower: Tower) -> Self {
        let shape = config.tower(tower);
        let block = |index| {
            let pair = |weight, bias| {
                let place = |part| Place::Block(tower, index, part);
                Pair::new(layout, place(weight), place(bias))
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

    /// Fresh states, one a block.
    pub fn states(&self) -> Vec<BlockState> {
        vec![BlockState::default(); self.blocks.len()]
    }

    fn heads(&self) -> Heads {
        Heads { count: self.shape.heads, causal: self.shape.causal }
    }

    /// Runs all blocks on the residual stream `x` [N, d], in place.
    ///
    /// `states` holds one state a block for a backward, or a single one that all blocks use
    /// in turn; FFN inputs of the blocks named in `kept` are copied there.
    pub fn forward(
        &self,
        params: &[f32],
        x: &mut [f32],
        rows: Rows<'_>,
        (states, kept): (&mut [BlockState], &mut Kept),
    ) {
        let d = self.shape.width;
        let n = x.len() / d;
        let last = states.len() - 1;
        for (index, block) in self.blocks.iter().enumerate() {
            let state = &mut states[index.min(last)];
            state.attention_input.resize(n * d, 0.0);
            state.ffn_input.resize(n * d, 0.0);
            state.qkv.resize(n * 3 * d, 0.0);
            state.mixed.resize(n * d, 0.0);
            let (gain, bias) = block.ln_1.of(params);
            layer_norm::forward(
                &mut state.attention_input,
                x,
                gain,
                bias,
                &mut state.ln_1,
            );
            let (weight, bias) = block.qkv.of(params);
            linear::forward(&mut state.qkv, &state.attention_input, weight, bias);
            let (mixed, heads) = (&mut state.mixed, self.heads());
            attention::forward(
                mixed,
                &state.qkv,
                rows.starts,
                heads,
                &mut state.attention,
            );
            let (weight, bias) = block.out.of(params);
            linear::forward_add(x, &state.mixed, weight, bias);
            let (gain, bias) = block.ln_2.of(params);
            layer_norm::forward(&mut state.ffn_input, x, gain, bias, &mut state.ln_2);
            if let Some(kept) = kept.get_mut(&index) {
                kept.clone_from(&state.ffn_input);
            }
            let input = (state.ffn_input.as_slice(), rows);
            block.ffn.forward_add(params, x, input, &mut state.ffn);
        }
    }

    /// Turns `dx` [N, d], the gradient of the blocks' output, into that of their input, and
    /// adds to the parameter gradients. `pulls` has one entry a block.
    pub fn backward(
        &self,
        (params, gradients): (&[f32], &mut [f32]),
        (dx, starts): (&mut [f32], &[usize]),
        (pulls, states): (&[LayerPull], &mut [BlockState]),
        scratch: &mut Scratch,
    ) {
        let d = self.shape.width;
        let n = dx.len() / d;
        let blocks = self.blocks.iter().zip(pulls).zip(states).rev();
        for ((block, pull), state) in blocks {
            scratch.rows.resize(n * d, 0.0);
            scratch.qkv.resize(n * 3 * d, 0.0);
            let inner = &mut scratch.rows;
            let input = state.ffn_input.as_slice();
            let flat = (params, &mut *gradients);
            block.ffn.backward(
                flat,
                (dx, inner),
                (input, pull),
                (&mut state.ffn, &mut scratch.ffn),
            );
            norm_backward(dx, inner, (params, gradients), &block.ln_2, &state.ln_2);

            let (weight, bias_gradient) = block.out.of_mut(gradients);
            linear::backward_parameters(weight, bias_gradient, dx, &state.mixed);
            linear::backward_input(inner, dx, block.out.of(params).0, d);
            let kept = (self.heads(), &mut state.attention);
            attention::backward(&mut scratch.qkv, inner, &state.qkv, starts, kept);
            let (weight, bias) = block.qkv.of_mut(gradients);
            linear::backward_parameters(
                weight,
                bias,
                &scratch.qkv,
                &state.attention_input,
            );
            linear::backward_input(inner, &scratch.qkv, block.qkv.of(params).0, 3 * d);
            norm_backward(dx, inner, (params, gradients), &block.ln_1, &state.ln_1);
        }
    }

    /// Statistics of the MoE layers of the last forward, one entry a block.
    pub fn stats(
        &self,
        states: &[BlockState],
        counted: &[bool],
    ) -> Vec<Option<LayerStats>> {
        let pairs = self.blocks.iter().zip(states);
        pairs.map(|(block, state)| block.ffn.stats(&state.ffn, counted)).collect()
    }
}

/// The gradient of a LayerNorm's parameters, and of its input added to `dx`.
pub(super) fn norm_backward(
    dx: &mut [f32],
    dy: &[f32],
    (params, gradients): (&[f32], &mut [f32]),
    pair: &Pair,
    saved: &layer_norm::Saved,
) {
    let (gain, bias) = pair.of_mut(gradients);
    let mut into = layer_norm::Gradients { gain, bias };
    layer_norm::backward_add(dx, dy, pair.of(params).0, saved, &mut into);
}
