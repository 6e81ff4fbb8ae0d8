//! A command that several processes run together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Context as _, Kind, Result};
use crate::pipeline::Panics;
use crate::ranks::mpi::Session;
use crate::ranks::{Alone, Ranks};

/// Who works on a command.
#[derive(Debug, Clone)]
pub(super) struct Together {
    /// The ranks.
    pub(super) ranks: Arc<dyn Ranks>,
    /// How many of them share this machine.
    pub(super) neighbors: usize,
}

/// Runs `work` as one of `count` ranks. An error or a panic of a rank ends all of them with
/// its exit code, and does not come back.
pub(super) fn together(
    (count, patience): (usize, Duration),
    panics: &Panics,
    work: impl FnOnce(&Together) -> Result<()>,
) -> Result<()> {
    if count == 1 {
        return work(&Together { ranks: Arc::new(Alone), neighbors: 1 });
    }

    let say = |text: &str| super::line(text);
    let session = Session::join(count, patience, Box::new(say))?;
    let together = Together { ranks: session.ranks(), neighbors: session.neighbors() };

    // A panic is caught here, before it reaches the end of MPI, which waits for all ranks.
    let result = catch_unwind(AssertUnwindSafe(|| work(&together)));
    let Err(error) = result.unwrap_or_else(|_payload| Err(panics.take())) else {
        return Ok(());
    };
    let rank = together.ranks.rank();
    let code = error.kind().exit_code();
    let quiet = error.kind() == Kind::ClosedPipe;
    let error = Err::<(), _>(error).context(|| format!("on rank {rank}"));
    session.abort(code, || {
        if let (Err(error), false) = (&error, quiet) {
            super::report(error);
        }
    })
}
