//! Training batches as a pure function of seed and step.
//!
//! Resuming a run needs no state: batch `step` of seed `s` is the same whoever asks and
//! whatever was asked before. An epoch is `steps_per_epoch` batches:
//!
//! ```text
//! samples of concept a, b, c, ..   each shuffled, concepts shuffled
//! a1 a2 a3 b1 c1 c2 d1 ..          dealt to K batches like cards:
//! batch 1: a1 b1 ..   batch 2: a2 c1 ..   batch 3: a3 c2 ..
//! ```
//!
//! A concept with at most K samples cannot meet itself in a batch, so that the contrastive
//! loss has no false negatives; a sample is dealt at most once an epoch. K B samples are
//! dealt; which ones are left out is drawn anew in each epoch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::read::Split;
use crate::config::Augment;
use crate::error::{Error, Result};
use crate::image::Augmenter;
use crate::num;
use crate::par;
use crate::rng::{self, RngExt, SliceRandom};
use crate::text::Tokenizer;

/// One batch; B samples, pictures of side S, captions of T tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The step it belongs to.
    pub step: usize,
    /// Normalised pixels [B, 3, S, S].
    pub pixels: Vec<f32>,
    /// Token ids [B, T].
    pub ids: Vec<u32>,
    /// Numbers of the samples [B].
    pub samples: Vec<u32>,
}

/// How batches are made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Samples of a batch.
    pub batch: usize,
    /// Tokens of a caption.
    pub context: usize,
    /// Seed of order, captions and augmentation.
    pub seed: u64,
    /// How pictures are varied.
    pub augment: Augment,
}

/// The batches of a split.
#[derive(Debug)]
pub struct Batches {
    split: Arc<Split>,
    plan: Plan,
    augmenter: Augmenter,
    /// Token ids of every caption, sample after sample.
    ids: Vec<u32>,
    /// First caption of every sample; one entry more than samples.
    captions: Vec<usize>,
    /// Rows of every concept.
    concepts: Vec<Vec<usize>>,
    steps_per_epoch: usize,
    /// The epoch dealt last: steps come in order, dealing again for each would be waste.
    dealt: Mutex<Option<(usize, Arc<Vec<usize>>)>>,
}

impl Batches {
    /// Tokenises all captions and prepares the dealing.
    ///
    /// Refuses a batch larger than the number of concepts.
    pub fn new(split: Arc<Split>, tokenizer: &Tokenizer, plan: Plan) -> Result<Self> {
        let mut concepts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        let (mut texts, mut captions) = (Vec::new(), vec![0]);
        for (index, row) in split.rows.iter().enumerate() {
            concepts.entry(row.concept).or_default().push(index);
            if row.captions.is_empty() {
                return Err(Error::corrupt(format!(
                    "sample {} has no caption",
                    row.sample
                )));
            }
            texts.extend(row.captions.iter().map(String::as_str));
            captions.push(texts.len());
        }
        let concepts: Vec<Vec<usize>> = concepts.into_values().collect();
        if plan.batch == 0 || plan.batch > concepts.len() {
            return Err(Error::usage(format!(
                "a batch holds a concept at most once: batch {} of {} concepts",
                plan.batch,
                concepts.len()
            )));
        }
        let ids = tokenizer.encode_all(&texts, plan.context)?;
        let augmenter = Augmenter::new(plan.augment, split.side(), split.normalise());
        let steps_per_epoch = steps_per_epoch(&concepts, plan.batch);
        let dealt = Mutex::new(None);
        Ok(Self {
            split,
            plan,
            augmenter,
            ids,
            captions,
            concepts,
            steps_per_epoch,
            dealt,
        })
    }

    /// Batches after which the samples are dealt anew.
    pub fn steps_per_epoch(&self) -> usize {
        self.steps_per_epoch
    }

    /// How the batches are made.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Batch number `step`, from 0. Pictures are made in parallel.
    pub fn batch(&self, step: usize) -> Batch {
        let (epoch, position) =
            (step / self.steps_per_epoch, step % self.steps_per_epoch);
        let order = self.epoch(epoch);
        let size = self.plan.batch;
        let rows = &order[position * size..(position + 1) * size];
        let mut stream = rng::stream(self.plan.seed, &format!("batches/captions/{step}"));
        let context = self.plan.context;
        let mut ids = Vec::with_capacity(size * context);
        for &row in rows {
            let caption = stream.random_range(self.captions[row]..self.captions[row + 1]);
            ids.extend_from_slice(&self.ids[caption * context..(caption + 1) * context]);
        }
        let values = 3 * self.split.side() * self.split.side();
        let mut pixels = vec![0.0; size * values];
        par::for_each_piece(&mut pixels, values, |i, picture| {
            let name = format!("batches/augment/{step}/{i}");
            let mut stream = rng::stream(self.plan.seed, &name);
            self.augmenter.apply(self.split.planes(rows[i]), &mut stream, picture);
        });
        let samples = rows.iter().map(|&row| self.split.rows[row].sample).collect();
        Batch { step, pixels, ids, samples }
    }

    /// The rows of an epoch, batch after batch.
    fn epoch(&self, epoch: usize) -> Arc<Vec<usize>> {
        let mut dealt = self.dealt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, order)) = dealt.as_ref()
            && *known == epoch
        {
            return Arc::clone(order);
        }
        let order = Arc::new(self.deal(epoch));
        *dealt = Some((epoch, Arc::clone(&order)));
        order
    }

    fn deal(&self, epoch: usize) -> Vec<usize> {
        let (steps, size) = (self.steps_per_epoch, self.plan.batch);
        let mut stream = rng::stream(self.plan.seed, &format!("batches/epoch/{epoch}"));
        let mut hands = self.concepts.clone();
        hands.shuffle(&mut stream);
        let mut cards = Vec::new();
        for hand in &mut hands {
            hand.shuffle(&mut stream);
            cards.extend_from_slice(&hand[..hand.len().min(steps)]);
        }
        let mut kept: Vec<usize> = (0..cards.len()).collect();
        kept.shuffle(&mut stream);
        kept.truncate(steps * size);
        kept.sort_unstable();
        let mut places: Vec<usize> = (0..steps).collect();
        places.shuffle(&mut stream);
        let mut order = vec![0; steps * size];
        for (i, card) in kept.into_iter().enumerate() {
            order[places[i % steps] * size + i / steps] = cards[card];
        }
        order
    }
}

/// The largest K such that K full batches can be dealt with no concept twice in one.
fn steps_per_epoch(concepts: &[Vec<usize>], batch: usize) -> usize {
    let total: usize = concepts.iter().map(Vec::len).sum();
    let fits =
        |k: usize| concepts.iter().map(|c| c.len().min(k)).sum::<usize>() >= k * batch;
    (1..=total / batch).rev().find(|&k| fits(k)).unwrap_or(1)
}

impl Batch {
    /// Number B of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample; never so for a batch of [`Batches`].
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Number of samples seen when this batch is done, from the start of the run.
    pub fn seen(&self) -> u32 {
        num::index_u32((self.step + 1) * self.len())
    }
}
