//! A batch in groups: forward and backward over all of them, and their sums.
//!
//! Gradients are summed in *lanes*, buffers of fixed membership: a lane owns groups that lie
//! together and adds their gradients in order. Then lanes are added in a tree over pairs of
//! neighbors:
//!
//! ```text
//! groups    0 1   2 3   4 5   6 7
//! lanes      0     1     2     3
//!             \   /       \   /
//!             0 + 1       2 + 3
//!                 \       /
//!             (0 + 1) + (2 + 3)
//! ```
//!
//! Membership and tree follow from the number of groups and `lanes` alone. So the bits of a
//! sum depend neither on the threads, nor on how many groups are in memory at a time, nor on
//! how many ranks share the lanes: two ranks hold one half of the tree each.

use std::ops::Range;

use rayon::prelude::*;

use super::clip::{BlockGradients, Clip, GROUP, GroupState, Upstream};
use super::ops::simd;
use super::tower::{Flat, MoeMode, Scratch};
use crate::engine::{LayerStats, Pairs};
use crate::model::Tower;
use crate::par;

/// Values of a chunk in which lanes are added up.
const CHUNK: usize = 1 << 14;

/// Gradients by the raw embeddings of a batch [B, P], of both towers.
#[derive(Debug, Clone, Copy)]
pub(super) struct EmbeddingGradients<'a> {
    pub(super) images: &'a [f32],
    pub(super) texts: &'a [f32],
}

/// Whether a backward replaces the sums of the lanes or is added to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    Replace,
    Add,
}

/// The groups of every lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deal {
    lanes: Vec<Range<usize>>,
}

/// Groups that run together: a range of each lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    lanes: Vec<Range<usize>>,
}

impl Deal {
    /// Deals the groups of `pairs` pairs to `lanes` lanes, a power of two.
    ///
    /// With fewer groups there are fewer lanes, again a power of two: none is empty. The
    /// lanes of a half of the groups are a half of the lanes, which is what lets ranks share
    /// them.
    pub(super) fn new(pairs: usize, lanes: usize) -> Self {
        let groups = pairs.div_ceil(GROUP).max(1);
        let lanes = lanes.clamp(1, 1 << groups.ilog2());
        let first = |lane: usize| lane * groups / lanes;
        Self { lanes: (0..lanes).map(|lane| first(lane)..first(lane + 1)).collect() }
    }

    /// The groups of `pairs` pairs at a time, 0 for all; each lane goes through its own in
    /// order.
    pub(super) fn parts(&self, pairs: usize) -> Vec<Part> {
        if pairs == 0 {
            return vec![Part { lanes: self.lanes.clone() }];
        }

        // Lanes take turns, so that all of them have work in every part.
        let longest = self.lanes.iter().map(Range::len).max().unwrap_or(0);
        let turns = (0..longest).flat_map(|turn| {
            let lanes = self.lanes.iter().enumerate();
            lanes.filter(move |(_, own)| turn < own.len()).map(|(lane, _)| lane)
        });
        let turns: Vec<usize> = turns.collect();

        let mut next: Vec<usize> = self.lanes.iter().map(|own| own.start).collect();
        let part = |turns: &[usize]| {
            let starts = next.clone();
            for &lane in turns {
                next[lane] += 1;
            }
            let lanes = starts.into_iter().zip(&next).map(|(start, &end)| start..end);
            Part { lanes: lanes.collect() }
        };
        turns.chunks((pairs / GROUP).max(1)).map(part).collect()
    }
}

impl Part {
    /// The groups, lane after lane.
    fn groups(&self) -> impl Iterator<Item = usize> + '_ {
        self.lanes.iter().cloned().flatten()
    }

    fn len(&self) -> usize {
        self.lanes.iter().map(Range::len).sum()
    }
}

/// The groups in memory and the gradient buffers: everything that steps reuse.
#[derive(Debug, Clone, Default)]
pub struct Passes {
    groups: Vec<GroupState>,
    /// The gradients of all lanes but the first, whose buffer is the result's.
    lanes: Vec<Vec<f32>>,
    scratch: Vec<Scratch>,
}

/// The pairs of a group of a batch.
fn of_group<'a>(clip: &Clip, pairs: Pairs<'a>, group: usize) -> Pairs<'a> {
    let (picture, caption) = clip.sizes();
    let count = pairs.ids.len() / caption;
    let (from, to) = (group * GROUP, (group * GROUP + GROUP).min(count));
    Pairs {
        pixels: pairs.pixels.part(from * picture..to * picture),
        ids: &pairs.ids[from * caption..to * caption],
    }
}

impl Passes {
    /// The groups of the last forward, lane after lane.
    pub fn groups(&self) -> &[GroupState] {
        &self.groups
    }

    /// Runs both towers over a part of a batch; its groups keep what the backward needs.
    pub(super) fn forward(
        &mut self,
        clip: &Clip,
        values: &[f32],
        (pairs, part): (Pairs<'_>, &Part),
        mode: MoeMode<'_>,
    ) {
        // A last part with fewer groups leaves the buffers of the others for the next step.
        let missing = part.len().saturating_sub(self.groups.len());
        self.groups.extend((0..missing).map(|_| clip.group()));

        // Groups are independent of each other, so their order of execution changes no
        // bit.
        let groups: Vec<usize> = part.groups().collect();
        self.groups.par_iter_mut().zip(groups).for_each(|(state, group)| {
            let own = of_group(clip, pairs, group);
            let pixels = own.pixels.values(clip.sizes().0 / 3);
            clip.images(values, &pixels, mode, &mut state.vision);
            clip.texts(values, own.ids, mode, &mut state.text);
        });
    }

    /// Copies the raw embeddings of a part, which ran last, to their places among those of
    /// the batch [B, P].
    pub(super) fn embeddings(&self, part: &Part, images: &mut [f32], texts: &mut [f32]) {
        for (state, group) in self.groups.iter().zip(part.groups()) {
            let own = &state.vision.embedding;
            let width = own.len() / (state.vision.starts.len() - 1);
            let place = group * GROUP * width..group * GROUP * width + own.len();
            images[place.clone()].copy_from_slice(own);
            texts[place].copy_from_slice(&state.text.embedding);
        }
    }

    /// The statistics of a part, which ran last, at their places among those of all groups:
    /// those of every MoE layer of `layers`.
    pub(super) fn stats(
        &self,
        clip: &Clip,
        part: &Part,
        (layers, groups): (&[(Tower, usize)], &mut [Vec<LayerStats>]),
    ) {
        for (state, group) in self.groups.iter().zip(part.groups()) {
            let towers = Tower::BOTH.map(|tower| clip.stats(tower, state));
            let own = layers.iter().map(|(tower, block)| {
                let blocks =
                    if *tower == Tower::Vision { &towers[0] } else { &towers[1] };
                blocks.get(*block).cloned().flatten().unwrap_or_default()
            });
            groups[group] = own.collect();
        }
    }

    /// Adds the gradients of a part, which ran last, to the sums of the lanes, from the
    /// gradients by the embeddings of the batch and by the statistics of the MoE layers.
    /// The sum of the first lane stands in `flat`; call [`Passes::add_lanes`] at the end.
    pub(super) fn backward(
        &mut self,
        clip: &Clip,
        flat: &mut Flat<'_>,
        (part, sum): (&Part, Sum),
        upstream: (EmbeddingGradients<'_>, &BlockGradients),
    ) {
        let (embeddings, stats) = upstream;
        let chunk = GROUP * clip.config().embed_dim;
        let lanes = part.lanes.len();
        self.lanes.resize_with(lanes - 1, || vec![0.0; clip.layout().len()]);
        self.scratch.resize_with(lanes, Scratch::default);

        // Every lane takes its buffer and its groups along.
        let values = flat.values;
        let mut buffers = vec![&mut *flat.gradients];
        buffers.extend(self.lanes.iter_mut().map(Vec::as_mut_slice));
        let mut states = self.groups.as_mut_slice();
        let mut work = Vec::with_capacity(lanes);
        for ((own, gradients), scratch) in
            part.lanes.iter().zip(buffers).zip(&mut self.scratch)
        {
            let (groups, rest) = states.split_at_mut(own.len());
            states = rest;
            work.push((own.clone().zip(groups), gradients, scratch));
        }

        work.into_par_iter().for_each(|(groups, gradients, scratch)| {
            if sum == Sum::Replace {
                gradients.fill(0.0);
            }

            let mut flat = Flat { values, gradients };
            for (group, state) in groups {
                let start = group * chunk;
                let end = (start + chunk).min(embeddings.images.len());
                let upstream = Upstream {
                    images: &embeddings.images[start..end],
                    texts: &embeddings.texts[start..end],
                    stats,
                };
                clip.backward(&mut flat, upstream, (state, scratch));
            }
        });
    }

    /// Adds the other lanes to the first, whose sum `gradients` holds, in the tree of the
    /// module's documentation.
    pub(super) fn add_lanes(&mut self, gradients: &mut [f32]) {
        let mut lanes = vec![gradients];
        lanes.extend(self.lanes.iter_mut().map(Vec::as_mut_slice));

        let mut distance = 1;
        while distance < lanes.len() {
            for pair in lanes.chunks_mut(2 * distance) {
                let (left, right) = pair.split_at_mut(distance);
                let other = &right[0];
                par::for_each_chunk(left[0], CHUNK, |index, out| {
                    let start = index * CHUNK;
                    simd::dispatch(
                        #[inline(always)]
                        || simd::add(out, &other[start..start + out.len()]),
                    );
                });
            }
            distance *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_one_lane_and_one_part_in_order() {
        for pairs in [1, 16, 40, 96, 128, 200, 1024] {
            for lanes in [1, 2, 4, 8, 64] {
                let deal = Deal::new(pairs, lanes);
                let groups = pairs.div_ceil(GROUP);
                assert!(deal.lanes.len().is_power_of_two() && deal.lanes.len() <= lanes);
                assert!(deal.lanes.iter().all(|own| !own.is_empty()));
                let dealt: Vec<usize> = deal.lanes.iter().cloned().flatten().collect();
                assert_eq!(dealt, (0..groups).collect::<Vec<_>>());

                for together in [16, 48, 64, 4096] {
                    let parts = deal.parts(together);
                    assert!(parts.iter().all(|part| part.len() * GROUP <= together));
                    for (lane, own) in deal.lanes.iter().enumerate() {
                        let order =
                            parts.iter().flat_map(|part| part.lanes[lane].clone());
                        assert_eq!(
                            order.collect::<Vec<_>>(),
                            own.clone().collect::<Vec<_>>()
                        );
                    }
                }
            }
        }
    }

    /// The halves of a batch have the halves of its lanes: ranks share a deal.
    #[test]
    fn the_lanes_of_a_rank_are_its_part_of_all_lanes() {
        for (pairs, lanes) in [(64, 4), (96, 4), (192, 8), (1024, 16), (160, 16)] {
            let whole = Deal::new(pairs, lanes);
            for ranks in [2, 4].into_iter().filter(|r| pairs % (GROUP * r) == 0) {
                let own = Deal::new(pairs / ranks, lanes / ranks);
                let groups = pairs / GROUP / ranks;
                let all = (0..ranks).flat_map(|rank| {
                    let shifted = own.lanes.iter();
                    shifted.map(move |own| {
                        own.start + rank * groups..own.end + rank * groups
                    })
                });
                assert_eq!(all.collect::<Vec<_>>(), whole.lanes, "{pairs} {ranks}");
            }
        }
    }
}
