//! The ranks that train together, each with a card of its own.
//!
//! NCCL moves values and adds nothing: sums are formed here, in an order that the batch and
//! `optim.micro_batch` decide. The gradient of each micro-batch is formed by itself, and
//! gradients are added in a tree over pairs:
//!
//! ```text
//! micro-batches   0   1   2   3        5 of them: 0   1   2   3   4
//!                  \ /     \ /                      \ /     \ /     |
//! 1 level         0+1     2+3                      0+1     2+3    |
//!                   \     /                          \     /      |
//! 2 levels      (0+1)+(2+3)                      (0+1)+(2+3)     |
//!                                                          \    /
//! ```
//!
//! An even number of micro-batches is two halves, and an odd one is all but the last and the
//! last. So the halves, quarters, .. of a batch are subtrees wherever micro-batches divide
//! evenly: ranks form theirs, and the tree goes on over the ranks. The number of ranks moves
//! the border between the two, and no bit.
//!
//! The losses see the whole batch on every rank: embeddings and sums are gathered, and what is
//! small beside the towers is computed by all alike.

use super::device::{Buffer, Device, Grid, Link, Slice};
use super::layout::PAGE;
use crate::config::OptimConfig;
use crate::error::{Error, Result};
use crate::ranks::Ranks;

/// Values that a rank sends to each other rank at a time, in whole pages: few enough to bound
/// the buffer that receives them (16 MiB for each rank), and enough to fill a network.
const PIECE: usize = 1 << 22;

/// The own place among ranks, and the way to the others.
#[derive(Debug)]
pub(super) struct Group {
    rank: usize,
    count: usize,
    /// None for one rank.
    link: Option<Link>,
}

impl Group {
    /// One rank, which needs no library.
    pub(super) fn alone() -> Self {
        Self { rank: 0, count: 1, link: None }
    }

    /// Connects this card with those of the other ranks, where there are some.
    pub(super) fn join(device: &Device, ranks: &dyn Ranks) -> Result<Self> {
        let (rank, count) = (ranks.rank(), ranks.count());
        let link = if count == 1 { None } else { Some(Link::join(device, ranks)?) };
        Ok(Self { rank, count, link })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The length of a gradient that ranks can share: as many whole pages for each.
    pub(super) fn padded(&self, len: usize) -> usize {
        len.next_multiple_of(PAGE * self.count)
    }

    /// Gathers in place: `all` has a block for each rank, of which the own one is filled in.
    pub(super) fn gather(&self, device: &Device, all: Slice<'_>) -> Result<()> {
        self.link.as_ref().map_or(Ok(()), |link| link.gather(device, all))
    }

    /// Replaces a gradient, whose length is [`Group::padded`], by the sum over all ranks;
    /// `received` grows as needed.
    ///
    /// Every rank adds up one part of it and sends that to all: 2 (R-1)/R of the buffer in
    /// each direction, as a ring does.
    pub(super) fn sum(
        &self,
        device: &Device,
        gradient: &Buffer,
        received: &mut Buffer,
    ) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let part = gradient.len() / self.count;
        let piece = part.min(PIECE);
        device.fit(received, self.count * piece)?;

        for from in (0..part).step_by(piece) {
            let len = piece.min(part - from);
            let each = |first: usize, stride: usize| {
                let starts = (0..self.count).map(move |rank| first + rank * stride);
                starts.map(move |start| start..start + len)
            };
            let sent: Vec<_> = each(from, part).map(|own| gradient.at(own)).collect();
            let place: Vec<_> = each(0, piece).map(|own| received.at(own)).collect();
            device.copy(place[self.rank], sent[self.rank])?;
            link.exchange(device, &sent, &place)?;

            // The upper levels of the tree.
            let mut distance = 1;
            while distance < self.count {
                for left in (0..self.count).step_by(2 * distance) {
                    add(device, place[left], place[left + distance])?;
                }
                distance *= 2;
            }
            device.copy(sent[self.rank], place[0])?;
        }
        link.gather(device, gradient.all())
    }
}

/// `into` += `other`, which are whole pages.
pub(super) fn add(device: &Device, into: Slice<'_>, other: Slice<'_>) -> Result<()> {
    let grid = Grid::new([into.len() / PAGE, 1, 1], 256);
    device.launch("add_pages", grid, &[into.into(), other.into()])
}

/// How many pairs of sums are added behind each of `count` micro-batches: always the last two
/// that there are.
pub(super) fn additions(count: usize) -> Vec<usize> {
    if count <= 1 {
        return vec![0; count];
    }
    if !count.is_multiple_of(2) {
        let mut all = additions(count - 1);
        all.push(1);
        return all;
    }

    // The second half ends with the sum of both.
    let mut all = additions(count / 2).repeat(2);
    all[count - 1] += 1;
    all
}

/// Refuses a batch whose micro-batches `ranks` ranks cannot share evenly.
pub fn check_share(optim: &OptimConfig, ranks: usize) -> Result<()> {
    let OptimConfig { batch, micro_batch, .. } = *optim;
    let size = if micro_batch == 0 { batch } else { micro_batch };
    if ranks == 1 || batch.is_multiple_of(size * ranks) {
        return Ok(());
    }

    let (count, most) = (batch.div_ceil(size), batch / ranks);
    let s = if count == 1 { "" } else { "es" };
    Err(Error::usage(format!(
        "optim.micro_batch: found {micro_batch}, which cuts a batch of {batch} pairs into \
         {count} micro-batch{s} that {ranks} ranks on cards cannot share evenly; expected a \
         number that divides {most}: set `optim.micro_batch={most}`, which trains another model \
         in its last bits, or use fewer ranks"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of micro-batches `first..first + count` as a text, by the additions.
    fn sum(first: usize, count: usize) -> (String, usize) {
        let (mut stack, mut most) = (Vec::new(), 0);
        for (index, pairs) in additions(count).into_iter().enumerate() {
            stack.push((first + index).to_string());
            most = most.max(stack.len());
            for _ in 0..pairs {
                let (right, left) = (stack.pop().unwrap(), stack.pop().unwrap());
                stack.push(format!("({left}+{right})"));
            }
        }
        assert_eq!(stack.len(), 1, "{count}");
        (stack.pop().unwrap(), most)
    }

    #[test]
    fn the_sum_is_a_tree_whose_parts_are_those_of_ranks() {
        assert_eq!(sum(0, 4).0, "((0+1)+(2+3))");
        assert_eq!(sum(0, 5).0, "(((0+1)+(2+3))+4)");
        for count in 1..=96_usize {
            let (whole, most) = sum(0, count);
            let levels = usize::try_from(count.ilog2()).unwrap();
            assert!(most <= levels + 1, "{count}: {most} gradients at once");

            for ranks in [2, 4, 8].into_iter().filter(|r| count.is_multiple_of(*r)) {
                let own = count / ranks;
                let mut parts: Vec<_> = (0..ranks).map(|r| sum(r * own, own).0).collect();
                while parts.len() > 1 {
                    let pairs = parts.chunks_exact(2);
                    parts =
                        pairs.map(|pair| format!("({}+{})", pair[0], pair[1])).collect();
                }
                assert_eq!(parts[0], whole, "{count} on {ranks}");
            }
        }
    }
}
