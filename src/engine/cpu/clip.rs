//! Both towers of a CLIP over one group of samples, forward and backward.
//!
//! Everything but the contrastive loss and the sums of the auxiliary losses is local to a
//! group of samples, so a group's activations stay in cache and groups run side by side
//! without meeting. Weights and gradients are flat buffers in the order of the layout.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::tower::{
    self, BlockState, Flat, GroupRows, Kept, MoeMode, Scratch, States, Transformer,
    WeightBias,
};
use crate::engine::cpu::ops::{layer_norm, simd};
use crate::engine::{LayerStats, StatsGradient};
use crate::image::Pixels;
use crate::linalg::gemm::{self, Rows, Write};
use crate::model::names::ParameterId;
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};
use crate::num::widen;

/// Samples of a group.
pub const GROUP: usize = 16;

/// Rows of the image tower that run together where no backward will follow.
const CHUNK_ROWS: usize = 256;

/// Which rows of a caption run through the text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Rows behind the end of text are left out: they cannot reach the embedding.
    Skip,
    /// All rows, for comparison with other frameworks row by row.
    Keep,
}

/// A CLIP, dense or MoE, ready to run on flat buffers of weights.
#[derive(Debug, Clone)]
pub struct Clip {
    config: ClipConfig,
    layout: Arc<Layout>,
    vision: TowerLayers,
    text: TowerLayers,
    patch: Range<usize>,
    class: Range<usize>,
    token: Range<usize>,
    pre_norm: WeightBias,
    padding: Padding,
}

/// What both towers have: positions, blocks, a norm and a projection.
#[derive(Debug, Clone)]
struct TowerLayers {
    width: usize,
    tokens: usize,
    position: Range<usize>,
    blocks: Transformer,
    norm: WeightBias,
    projection: Range<usize>,
}

/// One tower's state over a group of samples.
#[derive(Debug, Default, Clone)]
pub struct TowerState {
    /// Sample s owns rows `starts[s]..starts[s + 1]`.
    pub starts: Vec<usize>,
    /// Rows that enter losses and statistics.
    pub counted: Vec<bool>,
    /// One state per block; a single one where no backward will follow.
    pub blocks: Vec<BlockState>,
    /// FFN inputs [N, d] of the blocks that were asked for, where no backward will follow.
    pub kept: Kept,
    /// Raw embeddings [n, P] of the last forward.
    pub embedding: Vec<f32>,
    x: Vec<f32>,
    inputs: Vec<f32>,
    embedded: Vec<f32>,
    raw: Vec<f32>,
    ids: Vec<u32>,
    pre_norm: layer_norm::Saved,
    pooled_rows: Vec<usize>,
    pooled: Vec<f32>,
    norm: layer_norm::Saved,
    normed: Vec<f32>,
}

/// Both towers' states over a group.
#[derive(Debug, Clone)]
pub struct GroupState {
    /// The image tower.
    pub vision: TowerState,
    /// The text tower.
    pub text: TowerState,
}

/// The gradient of the auxiliary losses by the statistics of every block.
#[derive(Debug, Clone, Default)]
pub struct BlockGradients {
    /// One entry per block of the image tower.
    pub vision: Vec<StatsGradient>,
    /// One entry per block of the text tower.
    pub text: Vec<StatsGradient>,
}

/// What enters a backward from outside: gradients by the raw embeddings of a group [n, P],
/// and by the statistics of the MoE layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upstream<'a> {
    pub(super) images: &'a [f32],
    pub(super) texts: &'a [f32],
    pub(super) stats: &'a BlockGradients,
}

impl TowerState {
    /// A state for forwards without a backward, of the memory of one block, that keeps the
    /// FFN inputs of some blocks.
    pub fn light(kept: &[usize]) -> Self {
        let kept = kept.iter().map(|&block| (block, Vec::new())).collect();
        Self { blocks: vec![BlockState::default()], kept, ..Self::default() }
    }
}

impl GroupState {
    /// The state of one tower.
    pub fn tower(&self, tower: Tower) -> &TowerState {
        match tower {
            Tower::Vision => &self.vision,
            Tower::Text => &self.text,
        }
    }
}

impl TowerLayers {
    fn new(config: &ClipConfig, layout: &Layout, tower: Tower) -> Self {
        let (weight, bias) =
            (ParameterId::PostNormWeight(tower), ParameterId::PostNormBias(tower));
        Self {
            width: config.tower(tower).width,
            tokens: config.tower(tower).tokens,
            position: layout.range(ParameterId::PositionEmbedding(tower)),
            blocks: Transformer::new(config, layout, tower),
            norm: WeightBias::new(layout, weight, bias),
            projection: layout.range(ParameterId::Projection(tower)),
        }
    }

    /// Blocks, pooling, norm and projection on the residual stream of `state`.
    fn forward(&self, values: &[f32], mode: MoeMode<'_>, state: &mut TowerState) {
        let d = self.width;
        let rows = GroupRows { starts: &state.starts, counted: &state.counted, mode };
        let states = States { blocks: &mut state.blocks, kept: &mut state.kept };
        self.blocks.forward(values, &mut state.x, rows, states);

        // Norm and projection see the pooled row of each sample only.
        state.pooled.clear();
        for &row in &state.pooled_rows {
            state.pooled.extend_from_slice(&state.x[row * d..(row + 1) * d]);
        }
        state.normed.resize(state.pooled.len(), 0.0);
        let (gain, bias) = self.norm.of(values);
        let (normed, saved) = (&mut state.normed, &mut state.norm);
        layer_norm::forward(normed, &state.pooled, gain, bias, saved);

        let projection = &values[self.projection.clone()];
        let width = projection.len() / d;
        state.embedding.resize(state.pooled_rows.len() * width, 0.0);
        let (normed, projection) = (Rows::new(normed, d), Rows::new(projection, width));
        gemm::a_b(&mut state.embedding, normed, projection, Write::Replace);
    }

    /// From `upstream`, the gradient of the raw embeddings, to that of the blocks' input,
    /// left in `state.x`.
    fn backward(
        &self,
        flat: &mut Flat<'_>,
        upstream: &[f32],
        stats: &[StatsGradient],
        (state, scratch): (&mut TowerState, &mut Scratch),
    ) {
        let d = self.width;
        let projection = &flat.values[self.projection.clone()];
        let width = projection.len() / d;
        let (upstream, projection) =
            (Rows::new(upstream, width), Rows::new(projection, width));

        // y = x P: the gradient of P is xᵀ dy, and that of x is dy Pᵀ.
        let into = &mut flat.gradients[self.projection.clone()];
        gemm::at_b(into, Rows::new(&state.normed, d), upstream, Write::Add);
        gemm::a_bt(&mut state.normed, upstream, projection, Write::Replace);

        state.pooled.fill(0.0);
        let (dx, dy) = (&mut state.pooled, &state.normed);
        tower::norm_backward(dx, dy, flat, &self.norm, &state.norm);

        // Rows that were not pooled reach the loss through later blocks only.
        state.x.fill(0.0);
        for (row, own) in state.pooled_rows.iter().zip(state.pooled.chunks_exact(d)) {
            state.x[row * d..(row + 1) * d].copy_from_slice(own);
        }

        let kept = (stats, state.blocks.as_mut_slice());
        let rows = (state.x.as_mut_slice(), state.starts.as_slice());
        self.blocks.backward(flat, rows, kept, scratch);
    }
}

impl Clip {
    /// The towers of a model of this shape, whose experts are whole.
    pub fn new(config: &ClipConfig) -> Self {
        let layout = Arc::new(Layout::new(config));
        let pre_norm = (ParameterId::PreNormWeight, ParameterId::PreNormBias);
        Self {
            vision: TowerLayers::new(config, &layout, Tower::Vision),
            text: TowerLayers::new(config, &layout, Tower::Text),
            patch: layout.range(ParameterId::PatchEmbedding),
            class: layout.range(ParameterId::ClassEmbedding),
            token: layout.range(ParameterId::TokenEmbedding),
            pre_norm: WeightBias::new(&layout, pre_norm.0, pre_norm.1),
            config: config.clone(),
            layout,
            padding: Padding::Skip,
        }
    }

    /// The same towers with another treatment of padding.
    #[must_use]
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// The model's shape.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Where the weights lie.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// A fresh group state.
    pub fn group(&self) -> GroupState {
        GroupState { vision: self.state(Tower::Vision), text: self.state(Tower::Text) }
    }

    /// A fresh state of one tower, with one state per block.
    pub fn state(&self, tower: Tower) -> TowerState {
        let blocks = self.tower(tower).blocks.states();
        TowerState { blocks, ..TowerState::default() }
    }

    /// Samples that run together where no backward will follow: the rows of a chunk fill
    /// the kernels, and small batches still occupy all threads. A power of two, so that
    /// batches of any multiple of [`GROUP`] fall into the same chunks and give the same bits.
    pub fn chunk(&self, tower: Tower) -> usize {
        match tower {
            Tower::Vision => {
                let fits = (CHUNK_ROWS / self.vision.tokens).clamp(1, GROUP);
                1 << fits.ilog2()
            }
            Tower::Text => GROUP,
        }
    }

    fn tower(&self, tower: Tower) -> &TowerLayers {
        match tower {
            Tower::Vision => &self.vision,
            Tower::Text => &self.text,
        }
    }

    /// Values of one picture and of one caption.
    pub fn sizes(&self) -> (usize, usize) {
        (3 * self.config.vision.image_size.pow(2), self.config.text.context)
    }

    /// Rows of a caption that run through the text tower.
    pub fn caption_rows(&self, caption: &[u32]) -> usize {
        match self.padding {
            Padding::Skip => end_of_text(caption) + 1,
            Padding::Keep => self.text.tokens,
        }
    }

    /// Runs the image tower; the raw embeddings [n, P] come back.
    pub fn images<'a>(
        &self,
        values: &[f32],
        pixels: &[f32],
        mode: MoeMode<'_>,
        state: &'a mut TowerState,
    ) -> &'a [f32] {
        let (d, tokens) = (self.vision.width, self.vision.tokens);
        let samples = pixels.len() / self.sizes().0;
        let rows = samples * tokens;

        let patch = &values[self.patch.clone()];
        let patch_values = patch.len() / d;
        self.cut_patches(pixels, &mut state.inputs);
        state.embedded.resize(samples * (tokens - 1) * d, 0.0);
        let (inputs, patch) =
            (Rows::new(&state.inputs, patch_values), Rows::new(patch, patch_values));
        gemm::a_bt(&mut state.embedded, inputs, patch, Write::Replace);

        // Each picture begins with its class token, and all its rows get their positions.
        state.raw.resize(rows * d, 0.0);
        let positions = &values[self.vision.position.clone()];
        let class = &values[self.class.clone()];
        for (sample, out) in state.raw.chunks_exact_mut(tokens * d).enumerate() {
            out.copy_from_slice(positions);
            let own = &state.embedded
                [sample * (tokens - 1) * d..(sample + 1) * (tokens - 1) * d];
            simd::dispatch(
                #[inline(always)]
                || {
                    simd::add(&mut out[..d], class);
                    simd::add(&mut out[d..], own);
                },
            );
        }

        state.x.resize(rows * d, 0.0);
        let (gain, bias) = self.pre_norm.of(values);
        layer_norm::forward(&mut state.x, &state.raw, gain, bias, &mut state.pre_norm);

        // All rows of a picture count, and the class token's is pooled.
        state.starts.clear();
        state.starts.extend((0..=samples).map(|s| s * tokens));
        state.pooled_rows.clear();
        state.pooled_rows.extend((0..samples).map(|s| s * tokens));
        state.counted.clear();
        state.counted.resize(rows, true);
        self.vision.forward(values, mode, state);
        &state.embedding
    }

    /// Patches in row-major order, each [3, p, p], as the convolution's weight is.
    fn cut_patches(&self, pixels: &[f32], out: &mut Vec<f32>) {
        let (size, p) = (self.config.vision.image_size, self.config.vision.patch);

        let side = size / p;
        out.clear();
        out.reserve(pixels.len());

        for picture in pixels.chunks_exact(3 * size * size) {
            for (row, column) in (0..side * side).map(|i| (i / side, i % side)) {
                for (plane, y) in (0..3 * p).map(|i| (i / p, i % p)) {
                    let start = plane * size * size + (row * p + y) * size + column * p;
                    out.extend_from_slice(&picture[start..start + p]);
                }
            }
        }
    }

    /// Runs the text tower; the raw embeddings [n, P] come back.
    pub fn texts<'a>(
        &self,
        values: &[f32],
        ids: &[u32],
        mode: MoeMode<'_>,
        state: &'a mut TowerState,
    ) -> &'a [f32] {
        let (d, context) = (self.text.width, self.text.tokens);
        let positions = &values[self.text.position.clone()];
        let embeddings = &values[self.token.clone()];

        state.starts.clear();
        state.starts.push(0);
        state.pooled_rows.clear();
        state.counted.clear();
        state.ids.clear();
        state.x.clear();

        // Captions lie packed, without what follows their end of text.
        for caption in ids.chunks_exact(context) {
            let (end, rows) = (end_of_text(caption), self.caption_rows(caption));
            let first = state.counted.len();
            state.pooled_rows.push(first + end);
            for (position, &id) in caption[..rows].iter().enumerate() {
                let start = state.x.len();

                let id_row = widen(id) * d;
                state.x.extend_from_slice(&embeddings[id_row..id_row + d]);
                simd::add(
                    &mut state.x[start..],
                    &positions[position * d..(position + 1) * d],
                );

                // The start token is the same in every caption: it counts no more than
                // what follows the end of text (METHOD §2.1).
                state.counted.push(position > 0 && position <= end);
                state.ids.push(id);
            }
            state.starts.push(first + rows);
        }

        self.text.forward(values, mode, state);
        &state.embedding
    }

    /// Backward of both towers over a group.
    pub(super) fn backward(
        &self,
        flat: &mut Flat<'_>,
        upstream: Upstream<'_>,
        (group, scratch): (&mut GroupState, &mut Scratch),
    ) {
        let Upstream { images, texts, stats } = upstream;
        let vision = (&mut group.vision, &mut *scratch);
        self.vision.backward(flat, images, &stats.vision, vision);

        self.image_input_backward(flat, &mut group.vision);

        let text = (&mut group.text, scratch);
        self.text.backward(flat, texts, &stats.text, text);
        self.text_input_backward(flat.gradients, &group.text);
    }

    fn image_input_backward(&self, flat: &mut Flat<'_>, state: &mut TowerState) {
        let (d, tokens) = (self.vision.width, self.vision.tokens);
        state.raw.fill(0.0);
        let (dx, dy) = (&mut state.raw, &state.x);
        tower::norm_backward(dx, dy, flat, &self.pre_norm, &state.pre_norm);

        // Positions and class token are the same for all pictures, so their gradients
        // are sums over pictures, in the order of the batch.
        state.embedded.clear();
        for own in state.raw.chunks_exact(tokens * d) {
            let gradients = &mut *flat.gradients;
            simd::dispatch(
                #[inline(always)]
                || {
                    simd::add(&mut gradients[self.vision.position.clone()], own);
                    simd::add(&mut gradients[self.class.clone()], &own[..d]);
                },
            );
            state.embedded.extend_from_slice(&own[d..]);
        }

        let into = &mut flat.gradients[self.patch.clone()];
        let patch_values = into.len() / d;
        let embedded = Rows::new(&state.embedded, d);
        gemm::at_b(into, embedded, Rows::new(&state.inputs, patch_values), Write::Add);
    }

    fn text_input_backward(&self, gradients: &mut [f32], state: &TowerState) {
        let d = self.text.width;
        for pair in state.starts.windows(2) {
            for (position, row) in (pair[0]..pair[1]).enumerate() {
                let own = &state.x[row * d..(row + 1) * d];

                // Equal tokens share a row, and add up in the order of the captions.
                let token = self.token.start + widen(state.ids[row]) * d;
                let position = self.text.position.start + position * d;
                simd::add(&mut gradients[token..token + d], own);
                simd::add(&mut gradients[position..position + d], own);
            }
        }
    }

    /// Unit image embeddings [n, P] of pictures [n, 3, S, S], chunks side by side.
    pub fn encode_images(&self, values: &[f32], pixels: Pixels<'_>) -> Vec<f32> {
        let picture = self.sizes().0;
        let parts: Vec<Pixels<'_>> =
            pixels.parts(self.chunk(Tower::Vision) * picture).collect();
        self.encode(parts.into_par_iter().map(|own| {
            let mut state = TowerState::light(&[]);
            let own = own.values(picture / 3);
            self.images(values, &own, MoeMode::TopK, &mut state).to_vec()
        }))
    }

    /// Unit text embeddings [n, P] of captions [n, T], chunks side by side.
    pub fn encode_texts(&self, values: &[f32], ids: &[u32]) -> Vec<f32> {
        let chunk = self.chunk(Tower::Text) * self.sizes().1;
        self.encode(ids.par_chunks(chunk).map(|own| {
            let mut state = TowerState::light(&[]);
            self.texts(values, own, MoeMode::TopK, &mut state).to_vec()
        }))
    }

    fn encode(&self, chunks: impl IndexedParallelIterator<Item = Vec<f32>>) -> Vec<f32> {
        let mut rows = chunks.collect::<Vec<_>>().concat();
        for row in rows.chunks_exact_mut(self.config.embed_dim) {
            let length = simd::dispatch(
                #[inline(always)]
                || simd::dot(row, row),
            );
            let length = length.sqrt().max(1e-12);
            for v in row {
                *v /= length;
            }
        }
        rows
    }

    /// Statistics of a tower's MoE layers in one group, one entry per block.
    pub fn stats(&self, tower: Tower, group: &GroupState) -> Vec<Option<LayerStats>> {
        let state = group.tower(tower);
        self.tower(tower).blocks.stats(&state.blocks, &state.counted)
    }
}

/// The first position of the largest id: the end-of-text token has the largest.
fn end_of_text(caption: &[u32]) -> usize {
    let largest = caption.iter().copied().max().unwrap_or(0);
    caption.iter().position(|&id| id == largest).unwrap_or(0)
}
