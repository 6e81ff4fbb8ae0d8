//! Batches made ahead of their use, in order, by threads of their own.
//!
//! They do not share the trainer's pool: there, pictures would wait for the layers that run
//! and the layers for the pictures.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::batches::{Batch, Batches, Share};
use crate::error::{Context, Error, Result};

/// A running producer and its queue.
#[derive(Debug)]
pub struct Prefetch {
    queue: Option<Receiver<Result<Batch>>>,
    producer: Option<JoinHandle<()>>,
    left: usize,
    started: Instant,
    waited: Duration,
}

impl Prefetch {
    /// Starts making the parts of the batches of `steps`, at most `depth` ahead of the consumer.
    pub fn start(
        (batches, share): (Arc<Batches>, Share),
        steps: Range<usize>,
        depth: usize,
    ) -> Result<Self> {
        let (send, receive) = sync_channel(depth.max(1));
        let left = steps.len();

        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|index| format!("pictures-{index}"))
            .build()
            .context(|| "starting the threads that make batches".to_owned())?;

        let work = move || {
            for step in steps {
                // The consumer may stop early: nothing is lost.
                if send.send(pool.install(|| batches.part(step, share))).is_err() {
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
    /// An error means a picture that cannot be read, or that the producer died, which is a
    /// defect.
    pub fn take(&mut self) -> Result<Option<Batch>> {
        if self.left == 0 {
            return Ok(None);
        }

        let asked = Instant::now();
        let batch = self.queue.as_ref().and_then(|queue| queue.recv().ok());
        self.waited += asked.elapsed();
        self.left -= 1;

        match batch {
            Some(batch) => batch.map(Some),
            None => Err(Error::failed("the thread that makes batches died")),
        }
    }

    /// Fraction of the time since the start that [`Prefetch::take`] waited.
    pub fn waited_share(&self) -> f64 {
        self.waited.as_secs_f64() / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// Stops the producer: the queue is closed first, so that it cannot block on sending.
impl Drop for Prefetch {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(producer) = self.producer.take() {
            // A panic of the producer was reported by `take`.
            let _ = producer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batches::BatchSettings;
    use super::*;
    use crate::config::Augment;
    use crate::data::tests::TRAINING;

    fn batches() -> Arc<Batches> {
        let (tokenizer, split) = &*TRAINING;
        let augment = Augment::Affine;
        let settings = BatchSettings { batch: 16, context: 16, seed: 1, augment };
        Arc::new(Batches::new(Arc::clone(split), tokenizer, settings).unwrap())
    }

    #[test]
    fn batches_come_in_order_and_end() {
        let batches = batches();
        let mut ahead =
            Prefetch::start((Arc::clone(&batches), Share::WHOLE), 5..25, 3).unwrap();
        for step in 5..25 {
            assert!(
                ahead.take().unwrap().unwrap() == batches.batch(step).unwrap(),
                "{step}"
            );
        }
        assert!(ahead.take().unwrap().is_none());
        assert!((0.0..=1.0).contains(&ahead.waited_share()));
    }

    #[test]
    fn stopping_early_does_not_hang() {
        let mut ahead =
            Prefetch::start((batches(), Share::WHOLE), 0..1_000_000, 1).unwrap();
        assert!(ahead.take().unwrap().is_some());
        drop(ahead);
    }
}
