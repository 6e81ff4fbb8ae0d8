//! A replacement for MPI in a program that was built without it.
//!
//! It has the same names and signatures, and refuses to join anything.

use std::sync::Arc;
use std::time::Duration;

use super::Ranks;
use crate::error::{Error, Result};

/// A session that does not exist.
#[derive(Debug, Clone, Copy)]
pub enum Session {}

impl Session {
    /// Refuses, because there is no MPI in this program.
    pub fn join(
        count: usize,
        _patience: Duration,
        _say: Box<dyn Fn(&str) + Send>,
    ) -> Result<Self> {
        Err(Error::usage(format!(
            "--ranks: found {count}, but this program was built without MPI and runs as one \
             rank; build it with `cargo build --release --features mpi`, as `make RANKS={count}` \
             does (docs/scale.md)"
        )))
    }

    /// The view of this rank.
    pub fn ranks(&self) -> Arc<dyn Ranks> {
        match *self {}
    }

    /// Ranks on this machine.
    pub fn neighbors(&self) -> usize {
        match *self {}
    }

    /// Ends all ranks.
    pub fn abort(&self, _code: u8, _tell: impl FnOnce()) -> ! {
        match *self {}
    }
}
