//! Ranks: processes that train one model together, each on its part of every batch.
//!
//! The trainer and the engines are written once, against [`Ranks`]; a run on one machine is
//! the case of one rank, [`Alone`]. What a rank computes is decided by whoever calls, and
//! ranks only move values: sums are formed by the callers, in an order that the number of ranks
//! does not change. The reductions of MPI and NCCL are not used for that reason: their order,
//! and so the last bits, depend on the algorithm that the library picks.
//!
//! All ranks call the same methods in the same order (a *collective*), with blocks of equal
//! length. A number of ranks is a power of two, so that the pairwise tree of [`Shards::sum`]
//! has no rank left over.

#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(not(feature = "mpi"))]
#[path = "mpi_absent.rs"]
pub mod mpi;
mod shards;
mod threads;

use std::fmt::Debug;
use std::time::Duration;

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use crate::error::Result;

pub use shards::Shards;
pub use threads::Threads;

/// One rank's view of all of them: what moves bytes.
///
/// Callers use the typed methods of `dyn Ranks`, which never move a block without a byte: some
/// MPI libraries refuse one.
pub trait Ranks: Debug + Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks, a power of two.
    fn count(&self) -> usize;

    /// The number of this rank among those on its machine, from 0.
    fn neighbor(&self) -> usize;

    /// Says what the collectives that follow belong to, such as "step 17": people are told
    /// when a rank hangs.
    fn enter(&self, work: &str);

    /// Time that was spent in collectives so far.
    fn spent(&self) -> Duration;

    /// See `gather` below.
    fn gather_bytes(&self, own: &[u8], all: &mut [u8]) -> Result<()>;

    /// See `exchange` below.
    fn exchange_bytes(&self, own: &[u8], received: &mut [u8]) -> Result<()>;

    /// See `fetch` below.
    fn fetch_bytes(&self, from: usize, block: &mut [u8]) -> Result<()>;
}

impl dyn Ranks + '_ {
    /// Whether this rank is the first, which tells, measures and publishes for all.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// The texts of all ranks, in the order of their numbers.
    pub fn tell(&self, own: &str) -> Result<Vec<String>> {
        let mut lengths = vec![0; self.count()];
        self.gather(&[own.len() as u64], &mut lengths)?;
        let lengths: Vec<usize> = lengths
            .into_iter()
            .map(|length| usize::try_from(length).unwrap_or(0))
            .collect();

        // Blocks are of equal length, so shorter texts are padded.
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = own.as_bytes().to_vec();
        padded.resize(longest, 0);
        let mut all = vec![0; longest * self.count()];
        self.gather(&padded, &mut all)?;

        let texts = all.chunks_exact(longest).zip(lengths);
        Ok(texts
            .map(|(text, len)| String::from_utf8_lossy(&text[..len]).into())
            .collect())
    }

    /// The blocks of all ranks in the order of their numbers: `all` is as long as `count`
    /// blocks of the length of `own`.
    pub fn gather<T: Pod>(&self, own: &[T], all: &mut [T]) -> Result<()> {
        if own.is_empty() {
            return Ok(());
        }
        self.gather_bytes(cast_slice(own), cast_slice_mut(all))
    }

    /// Block p of `own` goes to rank p, and block q of `received` comes from rank q; both
    /// have `count` blocks of equal length.
    pub fn exchange<T: Pod>(&self, own: &[T], received: &mut [T]) -> Result<()> {
        if own.is_empty() {
            return Ok(());
        }
        self.exchange_bytes(cast_slice(own), cast_slice_mut(received))
    }

    /// Rank 0 gets the block of rank `from`; nothing happens on other ranks.
    pub fn fetch<T: Pod>(&self, from: usize, block: &mut [T]) -> Result<()> {
        if from == 0 || block.is_empty() || ![0, from].contains(&self.rank()) {
            return Ok(());
        }
        self.fetch_bytes(from, cast_slice_mut(block))
    }
}

/// The only rank: nothing moves anywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn neighbor(&self) -> usize {
        0
    }

    fn enter(&self, _work: &str) {}

    fn spent(&self) -> Duration {
        Duration::ZERO
    }

    fn gather_bytes(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        all.copy_from_slice(own);
        Ok(())
    }

    fn exchange_bytes(&self, own: &[u8], received: &mut [u8]) -> Result<()> {
        received.copy_from_slice(own);
        Ok(())
    }

    fn fetch_bytes(&self, _from: usize, _block: &mut [u8]) -> Result<()> {
        Ok(())
    }
}
