//! Ranks that are threads of one process: the same collectives without MPI.
//!
//! Tests run whole trainings on them in any build. Every rank lays its block on a table, all
//! wait for each other, every rank takes what is meant for it, and all wait again before the
//! table is used anew.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Ranks;
use crate::error::{Error, Result};

/// One of several threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// What the threads share.
#[derive(Debug)]
struct Meeting {
    count: usize,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug)]
struct Table {
    /// The block of every rank.
    blocks: Vec<Vec<u8>>,
    /// What every rank sent to rank 0 alone.
    letters: Vec<VecDeque<Vec<u8>>>,
    /// Ranks that wait, and how often all have met.
    waiting: usize,
    met: usize,
    /// Whether a rank has gone: nobody can meet it any more.
    gone: Option<usize>,
}

impl Threads {
    /// The views of `count` ranks, a power of two; each goes into a thread of its own.
    ///
    /// # Panics
    /// If `count` is no power of two.
    pub fn new(count: usize) -> Vec<Self> {
        assert!(count.is_power_of_two(), "found {count} ranks, expected a power of two");
        let meeting = Arc::new(Meeting {
            count,
            table: Mutex::new(Table {
                blocks: vec![Vec::new(); count],
                letters: vec![VecDeque::new(); count],
                waiting: 0,
                met: 0,
                gone: None,
            }),
            changed: Condvar::new(),
        });
        (0..count).map(|rank| Self { rank, meeting: Arc::clone(&meeting) }).collect()
    }

    /// Lays down a block, and lets `take` read those of all ranks.
    fn meet(
        &self,
        own: &[u8],
        take: impl FnOnce(&[Vec<u8>]) -> Result<()>,
    ) -> Result<()> {
        let mut table = self.meeting.lock();
        table.blocks[self.rank] = own.to_vec();
        let table = self.meeting.wait_for_all(table)?;
        take(&table.blocks)?;
        self.meeting.wait_for_all(table).map(|_table| ())
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_all<'a>(
        &self,
        mut table: MutexGuard<'a, Table>,
    ) -> Result<MutexGuard<'a, Table>> {
        table.waiting += 1;
        if table.waiting == self.count {
            table.waiting = 0;
            table.met += 1;
            self.changed.notify_all();
            return Ok(table);
        }

        // Whoever goes after this meeting is not missed by it.
        let met = table.met;
        let waits = |table: &mut Table| table.met == met && table.gone.is_none();
        let table = self.changed.wait_while(table, waits);
        let table = table.unwrap_or_else(PoisonError::into_inner);
        if table.met == met { Err(alone(table.gone)) } else { Ok(table) }
    }
}

impl Ranks for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.meeting.count
    }

    fn neighbor(&self) -> usize {
        self.rank
    }

    fn enter(&self, _work: &str) {}

    fn spent(&self) -> Duration {
        Duration::ZERO
    }

    fn gather_bytes(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        self.meet(own, |blocks| {
            for (block, out) in blocks.iter().zip(all.chunks_exact_mut(own.len())) {
                copy(block, out)?;
            }
            Ok(())
        })
    }

    fn exchange_bytes(&self, own: &[u8], received: &mut [u8]) -> Result<()> {
        let len = own.len() / self.count();
        self.meet(own, |blocks| {
            for (blocks, out) in blocks.iter().zip(received.chunks_exact_mut(len)) {
                let mine = blocks.chunks_exact(len).nth(self.rank).unwrap_or_default();
                copy(mine, out)?;
            }
            Ok(())
        })
    }

    fn fetch_bytes(&self, from: usize, block: &mut [u8]) -> Result<()> {
        let mut table = self.meeting.lock();
        if self.rank == from {
            table.letters[from].push_back(block.to_vec());
            self.meeting.changed.notify_all();
            return Ok(());
        }

        loop {
            if let Some(letter) = table.letters[from].pop_front() {
                return copy(&letter, block);
            }
            if table.gone.is_some() {
                return Err(alone(table.gone));
            }
            let woken = self.meeting.changed.wait(table);
            table = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A rank that goes, at its end or by a panic, lets nobody wait for it.
impl Drop for Threads {
    fn drop(&mut self) {
        self.meeting.lock().gone.get_or_insert(self.rank);
        self.meeting.changed.notify_all();
    }
}

fn alone(gone: Option<usize>) -> Error {
    let rank = gone.unwrap_or_default();
    Error::failed(format!("rank {rank} ended while this one waited for it"))
}

fn copy(block: &[u8], out: &mut [u8]) -> Result<()> {
    if block.len() == out.len() {
        out.copy_from_slice(block);
        return Ok(());
    }
    let (found, expected) = (block.len(), out.len());
    Err(Error::failed(format!(
        "a rank sent {found} bytes, expected {expected}: ranks that differ in their program or \
         configuration cannot work together"
    )))
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::Shards;
    use super::*;

    /// What `work` returns on each of `count` ranks.
    fn on<T: Send>(count: usize, work: impl Fn(&dyn Ranks) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let work = &work;
            let start = |rank: Threads| scope.spawn(move || work(&rank));
            let all: Vec<_> = Threads::new(count).into_iter().map(start).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Chunks of a buffer of 1,000 values, with gaps before, between and behind.
    fn chunks() -> Vec<Range<usize>> {
        vec![3..40, 40..41, 60..400, 400..640, 640..700, 710..711, 711..950]
    }

    fn values(rank: usize) -> Vec<f32> {
        (0..1000_u16)
            .map(|i| (f32::from(i) * 0.37 + 1.0).sin() * (rank as f32 + 0.1))
            .collect()
    }

    #[test]
    fn blocks_arrive_in_the_order_of_ranks() {
        for found in on(4, |ranks| {
            let own = [10 * crate::num::index_u32(ranks.rank()), 1];
            let mut all = [0; 8];
            ranks.gather(&own, &mut all).unwrap();
            let sent =
                [0_u32, 1, 2, 3].map(|to| to + 10 * crate::num::index_u32(ranks.rank()));
            let mut received = [0_u32; 4];
            ranks.exchange(&sent, &mut received).unwrap();
            (all, (ranks.rank(), received))
        }) {
            assert_eq!(found.0, [0, 1, 10, 1, 20, 1, 30, 1]);
            let (rank, received) = found.1;
            let rank = crate::num::index_u32(rank);
            assert_eq!(received, [rank, rank + 10, rank + 20, rank + 30]);
        }
    }

    /// Sums are those of the tree, to the last bit, and reach every rank; gaps are untouched.
    #[test]
    fn a_buffer_is_summed_in_a_tree_by_its_owners() {
        let expected = |count: usize, index: usize| -> f32 {
            let mut sums: Vec<f32> = (0..count).map(|rank| values(rank)[index]).collect();
            while sums.len() > 1 {
                sums = sums.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
            }
            sums[0]
        };
        for count in [1, 2, 4, 8] {
            let all = on(count, |ranks| {
                let shards = Shards::new(&chunks(), ranks);
                let mut buffer = values(ranks.rank());
                shards.sum(ranks, &mut buffer).unwrap();
                shards.share(ranks, &mut buffer).unwrap();
                buffer
            });
            for (rank, buffer) in all.iter().enumerate() {
                for (index, found) in buffer.iter().enumerate() {
                    let owned = chunks().iter().any(|chunk| chunk.contains(&index));
                    let expected =
                        if owned { expected(count, index) } else { values(rank)[index] };
                    assert_eq!(found.to_bits(), expected.to_bits(), "{count} {index}");
                }
            }
        }
    }

    #[test]
    fn a_packed_buffer_streams_to_rank_0_and_back() {
        for count in [1, 2, 4] {
            let streamed = on(count, |ranks| {
                let shards = Shards::new(&chunks(), ranks);
                let mut own = vec![0.0; shards.len()];
                let from = values(0);
                let read = |at: usize, out: &mut [f32]| {
                    out.copy_from_slice(&from[at..at + out.len()]);
                    Ok(())
                };
                shards.read(&mut own, read).unwrap();
                let mut whole = Vec::new();
                let mut put = |piece: &[f32]| {
                    whole.extend_from_slice(piece);
                    Ok(())
                };
                shards.stream(ranks, (&own, 1000), &mut put).unwrap();
                let numbers: Vec<f64> = shards.own().map(|chunk| chunk as f64).collect();
                let all = shards.gather(ranks, &numbers).unwrap();
                assert!(all.into_iter().eq((0..7).map(f64::from)));
                whole
            });
            for (rank, found) in streamed.into_iter().enumerate() {
                let mut expected = values(0);
                for (index, value) in expected.iter_mut().enumerate() {
                    if !chunks().iter().any(|chunk| chunk.contains(&index)) {
                        *value = 0.0;
                    }
                }
                assert!(
                    found == if rank == 0 { expected } else { Vec::new() },
                    "{count}"
                );
            }
        }
    }

    #[test]
    fn a_rank_that_ends_early_fails_the_others_instead_of_hanging_them() {
        let found = on(4, |ranks| {
            if ranks.rank() == 2 {
                return String::new();
            }
            ranks.gather(&[1.0], &mut [0.0; 4]).unwrap_err().to_string()
        });
        let expected = "rank 2 ended while this one waited for it";
        assert_eq!(found, [expected, expected, "", expected]);
    }
}
