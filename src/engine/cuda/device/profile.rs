//! How long kernels and products take on the card, and what they move, by name.

use std::collections::BTreeMap;

use cudarc::driver::{CudaEvent, sys};

use super::card::{Device, Recorded};
use super::driver::failed;
use crate::error::Result;

/// How often something ran, and how long in all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Launches or products.
    pub calls: usize,
    /// Their time on the device.
    pub milliseconds: f64,
    /// Bytes of their arguments, each counted once: what a kernel moves that reads or writes
    /// every value of its arguments once.
    pub bytes: u64,
}

impl Device {
    /// Records from now on when every kernel and product begins and ends.
    pub fn start_profile(&self) {
        *self.profile.borrow_mut() = Some(Vec::new());
    }

    /// The time of every kernel since [`Self::start_profile`], by name; ends the recording.
    pub fn profile(&self) -> Result<BTreeMap<String, Spent>> {
        // Events have times only when the card has reached them.
        self.wait()?;

        let mut all: BTreeMap<String, Spent> = BTreeMap::new();
        for own in self.profile.borrow_mut().take().unwrap_or_default() {
            let time = own.begin.elapsed_ms(&own.end);
            let time = time.map_err(|e| failed("timing a kernel", &e))?;
            let spent = all.entry(own.name).or_default();
            spent.calls += 1;
            spent.milliseconds += f64::from(time);
            spent.bytes += own.bytes;
        }
        Ok(all)
    }

    /// Runs work that is recorded under a name, with its bytes, while a profile is taken.
    pub(super) fn timed(
        &self,
        describe: impl FnOnce() -> (String, u64),
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if self.profile.borrow().is_none() {
            return work();
        }
        let begin = self.mark()?;
        work()?;
        let end = self.mark()?;

        if let Some(profile) = self.profile.borrow_mut().as_mut() {
            let (name, bytes) = describe();
            profile.push(Recorded { name, bytes, begin, end });
        }
        Ok(())
    }

    /// Marks this point of the stream, for timings.
    fn mark(&self) -> Result<CudaEvent> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.stream.record_event(flags).map_err(|e| failed("recording an event", &e))
    }
}
