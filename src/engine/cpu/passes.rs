//! A batch in groups: forward and backward over all of them, and their sums.
//!
//! Gradients are summed in [`LANES`] buffers of fixed membership and then in lane order: the
//! result does not depend on the number of threads.

use rayon::prelude::*;

use super::clip::{BlockGradients, Clip, GROUP, GroupState, Upstream};
use super::ops::simd;
use super::tower::{Flat, MoeMode, Scratch};
use crate::engine::{LayerStats, Pairs};
use crate::model::Tower;
use crate::par;

/// Gradient buffers: the most threads that a backward can use.
pub const LANES: usize = 4;

/// Values of a chunk in which lanes are added up.
const CHUNK: usize = 1 << 14;

/// Gradients by the raw embeddings of a batch [B, P], of both towers.
#[derive(Debug, Clone, Copy)]
pub(super) struct EmbeddingGradients<'a> {
    pub(super) images: &'a [f32],
    pub(super) texts: &'a [f32],
}

/// Whether a backward replaces a gradient or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    Replace,
    Add,
}

/// The groups of a batch and the gradient buffers: everything that steps reuse.
#[derive(Debug, Clone)]
pub struct Passes {
    groups: Vec<GroupState>,
    /// The gradients of all lanes but the first, whose buffer is the result's.
    lanes: Vec<Vec<f32>>,
    scratch: Vec<Scratch>,
}

/// The pairs `from..to` of a batch.
pub(super) fn part<'a>(
    clip: &Clip,
    pairs: Pairs<'a>,
    range: std::ops::Range<usize>,
) -> Pairs<'a> {
    let (picture, caption) = clip.sizes();
    Pairs {
        pixels: pairs.pixels.part(range.start * picture..range.end * picture),
        ids: &pairs.ids[range.start * caption..range.end * caption],
    }
}

/// No buffers yet: they grow with the first batch.
impl Default for Passes {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            lanes: Vec::new(),
            scratch: vec![Scratch::default(); LANES],
        }
    }
}

impl Passes {
    /// The groups of the last forward.
    pub fn groups(&self) -> &[GroupState] {
        &self.groups
    }

    /// Runs both towers over a batch; all groups keep what the backward needs.
    pub fn forward(
        &mut self,
        clip: &Clip,
        values: &[f32],
        pairs: Pairs<'_>,
        mode: MoeMode<'_>,
    ) {
        let count = pairs.ids.len() / clip.sizes().1;
        self.groups.resize_with(count.div_ceil(GROUP), || clip.group());

        // Groups are independent of each other, so their order of execution changes no
        // bit.
        self.groups.par_iter_mut().enumerate().for_each(|(index, group)| {
            let (from, to) = (index * GROUP, (index * GROUP + GROUP).min(count));
            let own = part(clip, pairs, from..to);
            let pixels = own.pixels.values(clip.sizes().0 / 3);
            clip.images(values, &pixels, mode, &mut group.vision);
            clip.texts(values, own.ids, mode, &mut group.text);
        });
    }

    /// Appends the raw embeddings [B, P] of the last forward.
    pub fn append_embeddings(&self, images: &mut Vec<f32>, texts: &mut Vec<f32>) {
        for group in &self.groups {
            images.extend_from_slice(&group.vision.embedding);
            texts.extend_from_slice(&group.text.embedding);
        }
    }

    /// Adds the statistics of the last forward to those of every MoE layer, group by group.
    pub fn add_stats(&self, clip: &Clip, layers: &mut [(Tower, usize, LayerStats)]) {
        for group in &self.groups {
            for (tower, block, sums) in &mut *layers {
                if let Some(Some(own)) = clip.stats(*tower, group).get(*block) {
                    sums.add(own);
                }
            }
        }
    }

    /// The gradient of every weight, from the gradients by the embeddings and by the
    /// statistics of the MoE layers.
    pub(super) fn backward(
        &mut self,
        clip: &Clip,
        flat: &mut Flat<'_>,
        upstream: (EmbeddingGradients<'_>, &BlockGradients),
        sum: Sum,
    ) {
        let (embeddings, stats) = upstream;
        let chunk = GROUP * clip.config().embed_dim;

        // Membership of lanes follows from the number of groups alone, never from that
        // of threads: this fixes the order of every sum.
        let per_lane = self.groups.len().div_ceil(LANES).max(1);
        let used = self.groups.len().div_ceil(per_lane);
        self.lanes.resize_with(used.saturating_sub(1), || vec![0.0; clip.layout().len()]);

        let values = flat.values;
        let mut lanes = vec![&mut *flat.gradients];
        lanes.extend(self.lanes.iter_mut().map(Vec::as_mut_slice));
        let lanes = lanes.into_par_iter().zip(&mut self.scratch).enumerate();
        let groups = self.groups.par_chunks_mut(per_lane);
        lanes.zip(groups).for_each(|((lane, (gradients, scratch)), groups)| {
            // The first lane writes into the result itself, which may hold earlier
            // micro-batches.
            if lane > 0 || sum == Sum::Replace {
                gradients.fill(0.0);
            }

            let mut flat = Flat { values, gradients };
            for (offset, group) in groups.iter_mut().enumerate() {
                let start = (lane * per_lane + offset) * chunk;
                let end = (start + chunk).min(embeddings.images.len());
                let upstream = Upstream {
                    images: &embeddings.images[start..end],
                    texts: &embeddings.texts[start..end],
                    stats,
                };
                clip.backward(&mut flat, upstream, (group, scratch));
            }
        });

        // Lanes are added in their order, each chunk by one thread.
        par::for_each_chunk(flat.gradients, CHUNK, |index, out| {
            let start = index * CHUNK;
            for lane in &self.lanes {
                simd::dispatch(
                    #[inline(always)]
                    || simd::add(out, &lane[start..start + out.len()]),
                );
            }
        });
    }
}
