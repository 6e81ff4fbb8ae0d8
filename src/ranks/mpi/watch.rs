//! A watch over collectives: MPI calls have no time limit, so that ranks whose neighbor hangs
//! would wait for ever and say nothing.
//!
//! The first note comes after a minute, and the time between notes doubles. After the patience
//! that was given, all ranks end. Every waiting rank speaks: the one that does not is the one
//! that hangs.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator as _;

use crate::error::{Context as _, Result};

/// How people are told.
pub(super) type Say = Box<dyn Fn(&str) + Send>;

/// The first note.
const FIRST: Duration = Duration::from_mins(1);

/// How often the state is looked at.
const PULSE: Duration = Duration::from_millis(200);

/// A thread beside the work. It ends with this value.
#[derive(Debug)]
pub(super) struct Watch {
    state: Arc<Mutex<State>>,
    _end: Sender<()>,
}

/// What a rank is at.
#[derive(Debug)]
struct State {
    /// What collectives belong to, such as "step 17".
    work: String,
    /// The collective that is waited in, and since when.
    call: Option<(&'static str, Instant)>,
    spent: Duration,
}

impl Watch {
    /// Starts to watch over rank `rank`.
    pub(super) fn start(rank: usize, patience: Duration, say: Say) -> Result<Self> {
        let work = "the start".to_owned();
        let state = State { work, call: None, spent: Duration::ZERO };
        let state = Arc::new(Mutex::new(state));
        let (end, ended) = channel::<()>();

        let own = Arc::clone(&state);
        let watch = move || {
            let mut next = FIRST;
            while ended.recv_timeout(PULSE) == Err(RecvTimeoutError::Timeout) {
                let state = hold(&own);
                let Some((call, since)) = state.call else {
                    next = FIRST;
                    continue;
                };
                let waited = since.elapsed();
                let (work, seconds) = (&state.work, waited.as_secs());
                if waited >= patience {
                    say(&format!(
                        "error: rank {rank} waited {seconds} s for other ranks in the \
                         collective `{call}` of {work}; a rank that does not say so hangs: look \
                         at its machine, and start again, or wait longer with --patience"
                    ));
                    SimpleCommunicator::world().abort(1);
                }
                if waited >= next {
                    say(&format!(
                        "rank {rank} has waited {seconds} s for other ranks in the collective \
                         `{call}` of {work}"
                    ));
                    next *= 2;
                }
            }
        };
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(watch)
            .context(|| "starting the thread that watches over ranks".to_owned())?;
        Ok(Self { state, _end: end })
    }

    /// Says what the next collectives belong to.
    pub(super) fn enter(&self, work: &str) {
        work.clone_into(&mut hold(&self.state).work);
    }

    /// Time in collectives so far.
    pub(super) fn spent(&self) -> Duration {
        hold(&self.state).spent
    }

    /// Runs a collective.
    pub(super) fn over(&self, name: &'static str, call: impl FnOnce()) {
        let since = Instant::now();
        hold(&self.state).call = Some((name, since));
        call();
        let mut state = hold(&self.state);
        state.call = None;
        state.spent += since.elapsed();
    }
}

fn hold(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
