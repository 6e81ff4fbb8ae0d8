//! A flat buffer dealt to ranks: who owns which part, sums that arrive at the owner, and
//! parts that go out to everybody.
//!
//! The buffer is cut into *chunks*, the same for any number of ranks. Rank p owns chunks that
//! lie together, and of all chunks about an equal part of the values:
//!
//! ```text
//! chunks   0 1 2 3 4 5 6 7 8 9          a gap between chunks (frozen values) is nobody's
//! R = 2   |---- 0 ---|--- 1 ---|
//! R = 4   |- 0 -|- 1 -|- 2 -|-3-|
//! ```
//!
//! A step sends every value to its owner once ([`Shards::sum`]) and the owner's back to all
//! once ([`Shards::share`]): 2 (R-1)/R of the buffer a rank in each direction, as a ring
//! all-reduce does. Only the owner needs what belongs to a value besides, such as the moments
//! of an optimizer (Rajbhandari et al., *ZeRO: Memory optimizations toward
//! training trillion parameter models*, SC 2020).

use std::ops::Range;

use super::Ranks;
use crate::error::Result;

/// Values of a block: 4 MiB for each rank bound the memory of a transfer, and are long enough
/// to fill a network.
const BLOCK: usize = 1 << 20;

/// Who owns which chunks of a flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    /// Number of the own rank.
    rank: usize,
    /// Chunks of each rank.
    chunks: Vec<Range<usize>>,
    /// Values of each rank: the ranges of its chunks, those that meet as one.
    values: Vec<Vec<Range<usize>>>,
}

impl Shards {
    /// Deals `chunks`, ranges that ascend and do not overlap, to `ranks`.
    pub fn new(chunks: &[Range<usize>], ranks: &dyn Ranks) -> Self {
        let total: usize = chunks.iter().map(Range::len).sum();
        let count = ranks.count();

        // A chunk belongs to the rank in whose part of all values it begins.
        let mut owned = vec![0..0; count];
        let (mut before, mut rank) = (0, 0);
        for (index, chunk) in chunks.iter().enumerate() {
            while before * count >= (rank + 1) * total {
                rank += 1;
                owned[rank] = index..index;
            }
            owned[rank].end = index + 1;
            before += chunk.len();
        }
        for later in &mut owned[rank + 1..] {
            *later = chunks.len()..chunks.len();
        }

        let values = owned.iter().map(|own| merged(&chunks[own.clone()])).collect();
        Self { rank: ranks.rank(), chunks: owned, values }
    }

    /// Deals all values of a buffer, without regard to what they are.
    pub fn of_all(len: usize, ranks: &dyn Ranks) -> Self {
        let count = ranks.count();
        let chunks = (0..count).map(|rank| rank * len / count..(rank + 1) * len / count);
        let chunks: Vec<_> = chunks.filter(|chunk| !chunk.is_empty()).collect();
        Self::new(&chunks, ranks)
    }

    /// The chunks of the own rank.
    pub fn own(&self) -> Range<usize> {
        self.chunks[self.rank].clone()
    }

    /// Values of the own rank.
    pub fn len(&self) -> usize {
        length(&self.values[self.rank])
    }

    /// Whether the own rank has no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces the own part of `buffer` by the sum of that part over all ranks; the other
    /// parts stay as they are.
    ///
    /// The sum is a tree over pairs of neighbors, `(0 + 1) + (2 + 3)`: the upper levels of the
    /// tree that the lanes of an engine begin, so that the number of ranks only moves the
    /// level at which values travel.
    pub fn sum(&self, ranks: &dyn Ranks, buffer: &mut [f32]) -> Result<()> {
        let count = self.values.len();
        if count == 1 {
            return Ok(());
        }

        let mut sent = vec![0.0; count * self.block()];
        let mut received = sent.clone();
        let block = self.block();
        for from in self.rounds() {
            for (values, out) in self.values.iter().zip(sent.chunks_exact_mut(block)) {
                pack(values, from, buffer, out);
            }
            ranks.exchange(&sent, &mut received)?;

            let mut distance = 1;
            while distance < count {
                for pair in received.chunks_mut(2 * distance * block) {
                    let (left, right) = pair.split_at_mut(distance * block);
                    add(&mut left[..block], &right[..block]);
                }
                distance *= 2;
            }
            unpack(&self.values[self.rank], from, &received[..block], buffer);
        }
        Ok(())
    }

    /// Fills the parts of the other ranks in `buffer` with what they have there.
    pub fn share(&self, ranks: &dyn Ranks, buffer: &mut [f32]) -> Result<()> {
        let count = self.values.len();
        if count == 1 {
            return Ok(());
        }

        let block = self.block();
        let (mut own, mut all) = (vec![0.0; block], vec![0.0; count * block]);
        for from in self.rounds() {
            pack(&self.values[self.rank], from, buffer, &mut own);
            ranks.gather(&own, &mut all)?;
            for (values, block) in self.values.iter().zip(all.chunks_exact(block)) {
                unpack(values, from, block, buffer);
            }
        }
        Ok(())
    }

    /// One number of each chunk, in the order of the chunks, from those of the own chunks.
    pub fn gather(&self, ranks: &dyn Ranks, own: &[f64]) -> Result<Vec<f64>> {
        // Blocks are of equal length, so that shorter lists end in zeros.
        let longest = self.chunks.iter().map(Range::len).max().unwrap_or(0).max(1);
        let mut padded = own.to_vec();
        padded.resize(longest, 0.0);
        let mut all = vec![0.0; longest * self.chunks.len()];
        ranks.gather(&padded, &mut all)?;

        let blocks = self.chunks.iter().zip(all.chunks_exact(longest));
        Ok(blocks.flat_map(|(own, block)| &block[..own.len()]).copied().collect())
    }

    /// The buffer from its first value to its last on rank 0, in pieces, from the `packed`
    /// values of every rank; zeros stand where no chunk is.
    pub fn stream(
        &self,
        ranks: &dyn Ranks,
        (packed, len): (&[f32], usize),
        put: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut block = vec![0.0; self.block()];
        let mut at = 0;
        for (from, values) in self.values.iter().enumerate() {
            let mut taken = 0;
            for range in values {
                if self.rank == 0 {
                    put_zeros(range.start - at, put)?;
                }
                at = range.end;

                let mut left = range.len();
                while left > 0 {
                    let part = &mut block[..left.min(BLOCK)];
                    if self.rank == from {
                        part.copy_from_slice(&packed[taken..taken + part.len()]);
                    }
                    ranks.fetch(from, part)?;
                    if self.rank == 0 {
                        put(part)?;
                    }
                    (taken, left) = (taken + part.len(), left - part.len());
                }
            }
        }
        if self.rank == 0 { put_zeros(len - at, put) } else { Ok(()) }
    }

    /// The own values, packed, where `read` fills a slice from a place of the buffer on.
    pub fn read(
        &self,
        packed: &mut [f32],
        mut read: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut rest = packed;
        for range in &self.values[self.rank] {
            let own;
            (own, rest) = rest.split_at_mut(range.len());
            read(range.start, own)?;
        }
        Ok(())
    }

    /// Values of a block: no more than the largest part has.
    fn block(&self) -> usize {
        self.longest().clamp(1, BLOCK)
    }

    /// The first values of every round, within the part of each rank.
    fn rounds(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.longest()).step_by(self.block())
    }

    fn longest(&self) -> usize {
        self.values.iter().map(|own| length(own)).max().unwrap_or(0)
    }
}

/// The ranges, those that meet as one.
fn merged(chunks: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut merged: Vec<Range<usize>> = Vec::new();
    for chunk in chunks {
        match merged.last_mut() {
            Some(last) if last.end == chunk.start => last.end = chunk.end,
            _ => merged.push(chunk.clone()),
        }
    }
    merged
}

fn length(values: &[Range<usize>]) -> usize {
    values.iter().map(Range::len).sum()
}

/// The pieces of a part that a block holds which begins at value `from` of the part: where
/// they are in the buffer, and where in the block.
fn pieces(
    values: &[Range<usize>],
    from: usize,
    block: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mut at = 0;
    values.iter().filter_map(move |range| {
        let (first, last) = (at.max(from), (at + range.len()).min(from + block));
        let start = range.start;
        let begin = at;
        at += range.len();
        (first < last).then(|| {
            (start + first - begin..start + last - begin, first - from..last - from)
        })
    })
}

/// Copies values `from..` of a part into a block; zeros stand behind its end.
fn pack(values: &[Range<usize>], from: usize, buffer: &[f32], block: &mut [f32]) {
    let mut end = 0;
    for (place, within) in pieces(values, from, block.len()) {
        end = within.end;
        block[within].copy_from_slice(&buffer[place]);
    }
    block[end..].fill(0.0);
}

/// The reverse of [`pack`].
fn unpack(values: &[Range<usize>], from: usize, block: &[f32], buffer: &mut [f32]) {
    for (place, within) in pieces(values, from, block.len()) {
        buffer[place].copy_from_slice(&block[within]);
    }
}

fn put_zeros(count: usize, put: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let zeros = vec![0.0; count.min(BLOCK)];
    let mut left = count;
    while left > 0 {
        put(&zeros[..left.min(BLOCK)])?;
        left -= left.min(BLOCK);
    }
    Ok(())
}

fn add(into: &mut [f32], values: &[f32]) {
    for (a, b) in into.iter_mut().zip(values) {
        *a += b;
    }
}
