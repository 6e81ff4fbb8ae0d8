//! Ranks that MPI started: processes on one machine or on many.
//!
//! A [`Session`] lasts as long as the work. It ends with all ranks together, or with all of
//! them at once: a rank that fails calls [`Session::abort`], because MPI would otherwise let
//! the others wait for it. MPI calls have no time limit, so a [`watch`] stands beside them.

mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{
    Communicator as _, CommunicatorCollectives as _, Destination as _, Source as _,
};

use super::Ranks;
use crate::error::{Error, Result};
use watch::{Say, Watch};

/// How long a rank that is not the first waits before it says what a failure all ranks share
/// already said; on a busy machine ranks come to the same failure more than a second apart.
const PRECEDENCE: Duration = Duration::from_secs(3);

/// The time in which this process is a rank.
pub struct Session {
    ranks: Arc<Mpi>,
    neighbors: usize,
    /// Ends MPI when it goes, after everything above.
    _universe: Universe,
}

impl Session {
    /// Makes this process one of `count` ranks, which an MPI launcher has started. A rank that
    /// waits for the others is announced with `say`, and ends all of them after `patience`.
    pub fn join(count: usize, patience: Duration, say: Say) -> Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Multiple);
        let (universe, threading) = started.ok_or_else(|| {
            Error::failed("MPI was started twice in one process, which is a defect")
        })?;
        if threading < Threading::Serialized {
            return Err(Error::failed(
                "--ranks: this MPI library serves the main thread alone, expected support of \
                 threads (MPI_THREAD_SERIALIZED); use another build of it",
            ));
        }

        let world = universe.world();
        let (rank, found) = (index(world.rank()), index(world.size()));
        if let Err(error) = check_count(count, found) {
            // All ranks find the same, and one of them says so.
            if rank > 0 {
                std::thread::sleep(PRECEDENCE);
            }
            return Err(error);
        }

        let machine = world.split_shared(world.rank());
        let (neighbor, neighbors) = (index(machine.rank()), index(machine.size()));
        let watch = Watch::start(rank, patience, say)?;
        Ok(Self {
            ranks: Arc::new(Mpi { rank, count, neighbor, watch }),
            neighbors,
            _universe: universe,
        })
    }

    /// The view of this rank.
    pub fn ranks(&self) -> Arc<dyn Ranks> {
        Arc::clone(&self.ranks) as Arc<dyn Ranks>
    }

    /// Ranks on this machine, this one included.
    pub fn neighbors(&self) -> usize {
        self.neighbors
    }

    /// Tells an error by `tell` and ends all ranks. Where all failed alike, the first is the
    /// one that is heard.
    pub fn abort(&self, code: u8, tell: impl FnOnce()) -> ! {
        if self.ranks.rank > 0 {
            std::thread::sleep(PRECEDENCE);
        }
        tell();
        SimpleCommunicator::world().abort(code.into())
    }
}

/// MPI's own part has nothing to show.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, neighbors, .. } = self;
        let mut shown = f.debug_struct("Session");
        shown.field("ranks", ranks).field("neighbors", neighbors).finish_non_exhaustive()
    }
}

/// A panic that unwound through here would wait in MPI's end for ranks that wait for it.
impl Drop for Session {
    fn drop(&mut self) {
        if std::thread::panicking() {
            SimpleCommunicator::world().abort(1);
        }
    }
}

/// One of the processes that MPI started.
#[derive(Debug)]
struct Mpi {
    rank: usize,
    count: usize,
    neighbor: usize,
    watch: Watch,
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn neighbor(&self) -> usize {
        self.neighbor
    }

    fn enter(&self, work: &str) {
        self.watch.enter(work);
    }

    fn spent(&self) -> Duration {
        self.watch.spent()
    }

    fn gather_bytes(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        check_length(own.len())?;
        let world = SimpleCommunicator::world();
        self.watch.over("gather", || world.all_gather_into(own, all));
        Ok(())
    }

    fn exchange_bytes(&self, own: &[u8], received: &mut [u8]) -> Result<()> {
        check_length(own.len() / self.count)?;
        let world = SimpleCommunicator::world();
        self.watch.over("exchange", || world.all_to_all_into(own, received));
        Ok(())
    }

    fn fetch_bytes(&self, from: usize, block: &mut [u8]) -> Result<()> {
        check_length(block.len())?;
        let world = SimpleCommunicator::world();
        let process =
            |rank: usize| world.process_at_rank(i32::try_from(rank).unwrap_or(0));
        self.watch.over("fetch", || {
            if self.rank == from {
                process(0).send(&*block);
            } else {
                process(from).receive_into(block);
            }
        });
        Ok(())
    }
}

/// Refuses another number of ranks than MPI started, and one that is no power of two.
fn check_count(count: usize, found: usize) -> Result<()> {
    if found != count {
        return Err(Error::usage(format!(
            "--ranks: found {count}, but MPI started {found} as one group; start as many with \
             `mpirun -np {count}` or `srun --mpi=pmix -n {count}` (srun without PMIx starts \
             every process alone)"
        )));
    }
    if count.is_power_of_two() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "--ranks: found {count}, expected a power of two, because sums are formed over pairs of \
         ranks"
    )))
}

/// MPI counts in 32 bits.
fn check_length(bytes: usize) -> Result<()> {
    if i32::try_from(bytes).is_ok() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "a block of {bytes} bytes cannot be sent by MPI, expected less than 2 GiB; use more \
         ranks, or smaller batches"
    )))
}

/// A number of MPI's, which is never negative.
fn index(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}
