//! Batches made ahead of their use on a thread of their own, in order.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::batches::{Batch, Batches};
use crate::error::{Context, Error, Result};

/// A running producer and its queue.
#[derive(Debug)]
pub struct Prefetch {
    queue: Option<Receiver<Batch>>,
    producer: Option<JoinHandle<()>>,
    left: usize,
    started: Instant,
    waited: Duration,
}

impl Prefetch {
    /// Starts making the batches of `steps`, at most `depth` ahead of the consumer.
    pub fn start(
        batches: Arc<Batches>,
        steps: Range<usize>,
        depth: usize,
    ) -> Result<Self> {
        let (send, receive) = sync_channel(depth.max(1));
        let left = steps.len();
        let work = move || {
            for step in steps {
                // The consumer may stop early: nothing is lost.
                if send.send(batches.batch(step)).is_err() {
                    return;
                }
            }
        };
        let producer = std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn(work)
            .context(|| "starting the thread that makes batches".to_owned())?;
        let queue = Some(receive);
        let (started, waited) = (Instant::now(), Duration::ZERO);
        Ok(Self { queue, producer: Some(producer), left, started, waited })
    }

    /// The next batch; `None` after the last.
    ///
    /// An error means that the producer died, which is a defect.
    pub fn next(&mut self) -> Result<Option<Batch>> {
        if self.left == 0 {
            return Ok(None);
        }
        let asked = Instant::now();
        let batch = self.queue.as_ref().and_then(|queue| queue.recv().ok());
        self.waited += asked.elapsed();
        self.left -= 1;
        match batch {
            Some(batch) => Ok(Some(batch)),
            None => Err(Error::failed("the thread that makes batches died")),
        }
    }

    /// Share of the time since the start that [`Prefetch::next`] waited.
    pub fn waited_share(&self) -> f64 {
        self.waited.as_secs_f64() / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// Stops the producer: the queue is closed first, so that it cannot block on sending.
impl Drop for Prefetch {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(producer) = self.producer.take() {
            // A panic of the producer was reported by `next`.
            let _ = producer.join();
        }
    }
}
