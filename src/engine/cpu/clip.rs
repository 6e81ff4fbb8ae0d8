//! The training engine: both towers over groups of samples, forward and backward.
//!
//! A batch is cut into groups of [`GROUP`] samples; everything but the contrastive loss and
//! the sums of the auxiliary losses is local to a group, so a group's activations stay in
//! cache and groups run side by side without meeting. Gradients are summed in [`LANES`]
//! buffers of fixed membership and then in lane order: the result does not depend on the
//! number of threads.

use std::sync::Arc;

use rayon::prelude::*;

use super::tower::Transformer;
use super::tower::{
    self, BlockState, Kept, LayerPull, LayerStats, Pair, Rows, Scratch, Teacher,
};
use crate::engine::cpu::ops::{layer_norm, simd};
use crate::linalg::gemm::{self, Rows as View, Write};
use crate::model::names::Place;
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};
use crate::num::widen;

/// Samples of a group.
pub const GROUP: usize = 16;

/// Rows of the image tower that run together where no backward will follow.
const PIECE_ROWS: usize = 256;

/// Gradient buffers: the most threads that a backward can use.
pub const LANES: usize = 4;

/// Pixels and token ids of B pairs.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// Pictures [B, 3, S, S], normalised.
    pub pixels: &'a [f32],
    /// Captions [B, T], padded behind the end-of-text token.
    pub ids: &'a [u32],
}

/// Which rows of a caption run through the text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Rows behind the end of text are left out: they cannot reach the embedding.
    Skip,
    /// All rows, for comparison with other frameworks row by row.
    Keep,
}

/// A CLIP, dense or MoE, ready to run on flat parameter buffers.
#[derive(Debug, Clone)]
pub struct Clip {
    config: ClipConfig,
    layout: Arc<Layout>,
    vision: Head,
    text: Head,
    patch: std::ops::Range<usize>,
    class: std::ops::Range<usize>,
    token: std::ops::Range<usize>,
    pre_norm: Pair,
    padding: Padding,
}

/// What both towers have: positions, blocks, a norm and a projection.
#[derive(Debug, Clone)]
struct Head {
    width: usize,
    tokens: usize,
    position: std::ops::Range<usize>,
    blocks: Transformer,
    norm: Pair,
    projection: std::ops::Range<usize>,
}

/// One tower's state over a group of samples.
#[derive(Debug, Default, Clone)]
pub struct TowerState {
    /// Sample s owns rows `starts[s]..starts[s + 1]`.
    pub starts: Vec<usize>,
    /// Rows that enter losses and statistics.
    pub counted: Vec<bool>,
    /// One state a block; a single one where no backward will follow.
    pub blocks: Vec<BlockState>,
    /// FFN inputs [N, d] of the blocks that were asked for, where no backward will follow.
    pub kept: Kept,
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
    embedding: Vec<f32>,
}

/// Both towers' states over a group.
#[derive(Debug, Clone)]
pub struct GroupState {
    /// The image tower.
    pub vision: TowerState,
    /// The text tower.
    pub text: TowerState,
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

impl Head {
    fn new(config: &ClipConfig, layout: &Layout, tower: Tower) -> Self {
        let (weight, bias) = (Place::PostNormWeight(tower), Place::PostNormBias(tower));
        Self {
            width: config.tower(tower).width,
            tokens: config.tower(tower).tokens,
            position: layout.range(Place::PositionEmbedding(tower)),
            blocks: Transformer::new(config, layout, tower),
            norm: Pair::new(layout, weight, bias),
            projection: layout.range(Place::Projection(tower)),
        }
    }

    /// Blocks, pooling, norm and projection on the residual stream of `state`.
    fn run(&self, params: &[f32], teacher: Teacher<'_>, state: &mut TowerState) {
        let d = self.width;
        let rows = Rows { starts: &state.starts, counted: &state.counted, teacher };
        let states = (state.blocks.as_mut_slice(), &mut state.kept);
        self.blocks.forward(params, &mut state.x, rows, states);
        state.pooled.clear();
        for &row in &state.pooled_rows {
            state.pooled.extend_from_slice(&state.x[row * d..(row + 1) * d]);
        }
        let projection = &params[self.projection.clone()];
        let width = projection.len() / d;
        state.normed.resize(state.pooled.len(), 0.0);
        let (gain, bias) = self.norm.of(params);
        let (normed, saved) = (&mut state.normed, &mut state.norm);
        layer_norm::forward(normed, &state.pooled, gain, bias, saved);
        state.embedding.resize(state.pooled_rows.len() * width, 0.0);
        let (normed, projection) = (View::new(normed, d), View::new(projection, width));
        gemm::a_b(&mut state.embedding, normed, projection, Write::Replace);
    }

    /// From the gradient of the raw embeddings to that of the blocks' input, left in
    /// `state.x`.
    fn back(
        &self,
        (params, gradients): (&[f32], &mut [f32]),
        slope: &[f32],
        pulls: &[LayerPull],
        (state, scratch): (&mut TowerState, &mut Scratch),
    ) {
        let d = self.width;
        let projection = &params[self.projection.clone()];
        let width = projection.len() / d;
        let slope = View::new(slope, width);
        let into = &mut gradients[self.projection.clone()];
        gemm::at_b(into, View::new(&state.normed, d), slope, Write::Add);
        gemm::a_bt(
            &mut state.normed,
            slope,
            View::new(projection, width),
            Write::Replace,
        );
        state.pooled.fill(0.0);
        let flat = (params, &mut *gradients);
        tower::norm_backward(
            &mut state.pooled,
            &state.normed,
            flat,
            &self.norm,
            &state.norm,
        );
        state.x.fill(0.0);
        for (row, slope) in state.pooled_rows.iter().zip(state.pooled.chunks_exact(d)) {
            state.x[row * d..(row + 1) * d].copy_from_slice(slope);
        }
        let kept = (pulls, state.blocks.as_mut_slice());
        let rows = (state.x.as_mut_slice(), state.starts.as_slice());
        self.blocks.backward((params, gradients), rows, kept, scratch);
    }
}

impl Clip {
    /// The engine of a model of this shape.
    pub fn new(config: &ClipConfig) -> Self {
        let layout = Arc::new(Layout::new(config));
        Self {
            vision: Head::new(config, &layout, Tower::Vision),
            text: Head::new(config, &layout, Tower::Text),
            patch: layout.range(Place::PatchEmbedding),
            class: layout.range(Place::ClassEmbedding),
            token: layout.range(Place::TokenEmbedding),
            pre_norm: Pair::new(&layout, Place::PreNormWeight, Place::PreNormBias),
            config: config.clone(),
            layout,
            padding: Padding::Skip,
        }
    }

    /// The same engine with another treatment of padding.
    #[must_use]
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// The model's shape.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Where the parameters lie.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// A fresh group state.
    pub fn group(&self) -> GroupState {
        let state = |head: &Head| TowerState {
            blocks: head.blocks.states(),
            ..TowerState::default()
        };
        GroupState { vision: state(&self.vision), text: state(&self.text) }
    }

    /// Samples that run together where no backward will follow: the rows of a piece fill
    /// the kernels, and small batches still occupy all threads. A power of two, so that
    /// batches of any multiple of [`GROUP`] fall into the same pieces and give the same bits.
    pub fn piece(&self, tower: Tower) -> usize {
        match tower {
            Tower::Vision => {
                let fits = (PIECE_ROWS / self.vision.tokens).clamp(1, GROUP);
                1 << fits.ilog2()
            }
            Tower::Text => GROUP,
        }
    }

    fn head(&self, tower: Tower) -> &Head {
        match tower {
            Tower::Vision => &self.vision,
            Tower::Text => &self.text,
        }
    }

    /// Values of one picture and of one caption.
    pub fn sizes(&self) -> (usize, usize) {
        (3 * self.config.vision.image_size.pow(2), self.config.text.context)
    }

    /// Runs the image tower; the raw embeddings [n, P] come back.
    pub fn images<'a>(
        &self,
        params: &[f32],
        pixels: &[f32],
        teacher: Teacher<'_>,
        state: &'a mut TowerState,
    ) -> &'a [f32] {
        let (d, tokens) = (self.vision.width, self.vision.tokens);
        let samples = pixels.len() / self.sizes().0;
        let patch = &params[self.patch.clone()];
        let values = patch.len() / d;
        self.cut_patches(pixels, &mut state.inputs);
        state.embedded.resize(samples * (tokens - 1) * d, 0.0);
        let (inputs, patch) =
            (View::new(&state.inputs, values), View::new(patch, values));
        gemm::a_bt(&mut state.embedded, inputs, patch, Write::Replace);
        let rows = samples * tokens;
        state.raw.resize(rows * d, 0.0);
        let positions = &params[self.vision.position.clone()];
        let class = &params[self.class.clone()];
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
        let (gain, bias) = self.pre_norm.of(params);
        layer_norm::forward(&mut state.x, &state.raw, gain, bias, &mut state.pre_norm);
        state.starts.clear();
        state.starts.extend((0..=samples).map(|s| s * tokens));
        state.pooled_rows.clear();
        state.pooled_rows.extend((0..samples).map(|s| s * tokens));
        state.counted.clear();
        state.counted.resize(rows, true);
        self.vision.run(params, teacher, state);
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
        params: &[f32],
        ids: &[u32],
        teacher: Teacher<'_>,
        state: &'a mut TowerState,
    ) -> &'a [f32] {
        let (d, context) = (self.text.width, self.text.tokens);
        let positions = &params[self.text.position.clone()];
        let embeddings = &params[self.token.clone()];
        state.starts.clear();
        state.starts.push(0);
        state.pooled_rows.clear();
        state.counted.clear();
        state.ids.clear();
        state.x.clear();
        for caption in ids.chunks_exact(context) {
            let end = end_of_text(caption);
            let rows = if self.padding == Padding::Skip { end + 1 } else { context };
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
                state.counted.push(position > 0 && position <= end);
                state.ids.push(id);
            }
            state.starts.push(first + rows);
        }
        self.text.run(params, teacher, state);
        &state.embedding
    }

    /// Backward of both towers over a group, from gradients of the raw embeddings.
    fn group_backward(
        &self,
        (params, gradients): (&[f32], &mut [f32]),
        (image_slope, text_slope): (&[f32], &[f32]),
        pulls: &Pulls,
        (group, scratch): (&mut GroupState, &mut Scratch),
    ) {
        let (flat, vision) = ((params, &mut *gradients), &mut group.vision);
        self.vision.back(flat, image_slope, &pulls.vision, (vision, &mut *scratch));
        self.image_input_backward((params, gradients), vision);
        let (flat, text) = ((params, &mut *gradients), &mut group.text);
        self.text.back(flat, text_slope, &pulls.text, (text, scratch));
        self.text_input_backward(gradients, &group.text);
    }

    fn image_input_backward(
        &self,
        (params, gradients): (&[f32], &mut [f32]),
        s: &mut TowerState,
    ) {
        let (d, tokens) = (self.vision.width, self.vision.tokens);
        s.raw.fill(0.0);
        let flat = (params, &mut *gradients);
        tower::norm_backward(&mut s.raw, &s.x, flat, &self.pre_norm, &s.pre_norm);
        s.embedded.clear();
        for own in s.raw.chunks_exact(tokens * d) {
            simd::dispatch(
                #[inline(always)]
                || {
                    simd::add(&mut gradients[self.vision.position.clone()], own);
                    simd::add(&mut gradients[self.class.clone()], &own[..d]);
                },
            );
            s.embedded.extend_from_slice(&own[d..]);
        }
        let into = &mut gradients[self.patch.clone()];
        let values = into.len() / d;
        gemm::at_b(
            into,
            View::new(&s.embedded, d),
            View::new(&s.inputs, values),
            Write::Add,
        );
    }

    fn text_input_backward(&self, gradients: &mut [f32], state: &TowerState) {
        let d = self.text.width;
        for pair in state.starts.windows(2) {
            for (position, row) in (pair[0]..pair[1]).enumerate() {
                let own = &state.x[row * d..(row + 1) * d];
                let token = self.token.start + widen(state.ids[row]) * d;
                let position = self.text.position.start + position * d;
                simd::add(&mut gradients[token..token + d], own);
                simd::add(&mut gradients[position..position + d], own);
            }
        }
    }

    /// Unit image embeddings [n, P] of pictures [n, 3, S, S], pieces side by side.
    pub fn encode_images(&self, params: &[f32], pixels: &[f32]) -> Vec<f32> {
        let piece = self.piece(Tower::Vision) * self.sizes().0;
        self.encode(pixels.par_chunks(piece).map(|own| {
            let mut state = TowerState::light(&[]);
            self.images(params, own, Teacher::None, &mut state).to_vec()
        }))
    }

    /// Unit text embeddings [n, P] of captions [n, T], pieces side by side.
    pub fn encode_texts(&self, params: &[f32], ids: &[u32]) -> Vec<f32> {
        let piece = self.piece(Tower::Text) * self.sizes().1;
        self.encode(ids.par_chunks(piece).map(|own| {
            let mut state = TowerState::light(&[]);
            self.texts(params, own, Teacher::None, &mut state).to_vec()
        }))
    }

    fn encode(&self, pieces: impl IndexedParallelIterator<Item = Vec<f32>>) -> Vec<f32> {
        let mut rows = pieces.collect::<Vec<_>>().concat();
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

    /// Statistics of a tower's MoE layers in one group, one entry a block.
    pub fn stats(&self, tower: Tower, group: &GroupState) -> Vec<Option<LayerStats>> {
        let state = group.tower(tower);
        self.head(tower).blocks.stats(&state.blocks, &state.counted)
    }
}

/// The first position of the largest id: the end-of-text token has the largest.
fn end_of_text(caption: &[u32]) -> usize {
    let largest = caption.iter().copied().max().unwrap_or(0);
    caption.iter().position(|&id| id == largest).unwrap_or(0)
}

/// Weights of the auxiliary losses of every block of both towers.
#[derive(Debug, Clone, Default)]
pub struct Pulls {
    /// One entry a block of the image tower.
    pub vision: Vec<LayerPull>,
    /// One entry a block of the text tower.
    pub text: Vec<LayerPull>,
}

/// The groups of a batch and the gradient buffers: everything a step reuses.
#[derive(Debug, Clone)]
pub struct Engine {
    clip: Clip,
    groups: Vec<GroupState>,
    /// The gradients of all lanes but the first, whose buffer is the result's.
    lanes: Vec<Vec<f32>>,
    scratch: Vec<Scratch>,
    images: Vec<f32>,
    texts: Vec<f32>,
}

impl Engine {
    /// Buffers for a model.
    pub fn new(clip: Clip) -> Self {
        Self {
            clip,
            groups: Vec::new(),
            lanes: Vec::new(),
            scratch: vec![Scratch::default(); LANES],
            images: Vec::new(),
            texts: Vec::new(),
        }
    }

    /// The model.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// The groups of the last forward.
    pub fn groups(&self) -> &[GroupState] {
        &self.groups
    }

    /// Raw embeddings [B, P] of both sides; all groups keep what the backward needs.
    pub fn forward(
        &mut self,
        params: &[f32],
        pairs: Pairs<'_>,
        teacher: Teacher<'_>,
    ) -> (&[f32], &[f32]) {
        let (picture, caption) = self.clip.sizes();
        let count = pairs.ids.len() / caption;
        self.groups.resize_with(count.div_ceil(GROUP), || self.clip.group());
        let clip = &self.clip;
        self.groups.par_iter_mut().enumerate().for_each(|(index, group)| {
            let (from, to) = (index * GROUP, (index * GROUP + GROUP).min(count));
            let pixels = &pairs.pixels[from * picture..to * picture];
            clip.images(params, pixels, teacher, &mut group.vision);
            let ids = &pairs.ids[from * caption..to * caption];
            clip.texts(params, ids, teacher, &mut group.text);
        });
        self.images.clear();
        self.texts.clear();
        for group in &self.groups {
            self.images.extend_from_slice(&group.vision.embedding);
            self.texts.extend_from_slice(&group.text.embedding);
        }
        (&self.images, &self.texts)
    }

    /// Statistics of every MoE layer over the batch: (tower, block, sums).
    pub fn stats(&self) -> Vec<(Tower, usize, LayerStats)> {
        let mut all: Vec<(Tower, usize, LayerStats)> = Vec::new();
        for tower in Tower::BOTH {
            for &block in self.clip.config.moe_blocks(tower) {
                all.push((tower, block, LayerStats::default()));
            }
        }
        for group in &self.groups {
            for (tower, block, sums) in &mut all {
                if let Some(Some(own)) = self.clip.stats(*tower, group).get(*block) {
                    sums.add(own);
                }
            }
        }
        all
    }

    /// The gradient of every parameter, written to `gradients`, from the gradients of the
    /// raw embeddings [B, P] and the weights of the auxiliary losses.
    pub fn backward(
        &mut self,
        params: &[f32],
        (image_slope, text_slope): (&[f32], &[f32]),
        pulls: &Pulls,
        gradients: &mut [f32],
    ) {
        let piece = GROUP * self.clip.config.embed_dim;
        let per_lane = self.groups.len().div_ceil(LANES).max(1);
        let clip = &self.clip;
        let used = self.groups.len().div_ceil(per_lane);
        self.lanes.resize_with(used.saturating_sub(1), || vec![0.0; clip.layout.len()]);
        let mut lanes = vec![&mut *gradients];
        lanes.extend(self.lanes.iter_mut().map(Vec::as_mut_slice));
        let lanes = lanes.into_par_iter().zip(&mut self.scratch).enumerate();
        let groups = self.groups.par_chunks_mut(per_lane);
        lanes.zip(groups).for_each(|((lane, (into, scratch)), groups)| {
            into.fill(0.0);
            for (offset, group) in groups.iter_mut().enumerate() {
                let start = (lane * per_lane + offset) * piece;
                let end = (start + piece).min(image_slope.len());
                let slopes = (&image_slope[start..end], &text_slope[start..end]);
                clip.group_backward((params, into), slopes, pulls, (group, scratch));
            }
        });
        crate::par::for_each_chunk(gradients, 1 << 14, |index, out| {
            let start = index << 14;
            for lane in &self.lanes {
                simd::dispatch(
                    #[inline(always)]
                    || simd::add(out, &lane[start..start + out.len()]),
                );
            }
        });
    }
}
