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
    /// Numbers of the samples `[B]`.
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
    ///
    /// # Errors
    /// A picture that cannot be read any more.
    pub fn batch(&self, step: usize) -> Result<Batch> {
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
        par::try_for_each_chunk(&mut pixels, values, |i, picture| {
            let name = format!("batches/augment/{step}/{i}");
            let mut stream = rng::stream(self.plan.seed, &name);
            self.augmenter.apply(&self.split.planes(rows[i])?, &mut stream, picture);
            Ok::<_, Error>(())
        })?;
        let samples = rows.iter().map(|&row| self.split.rows[row].sample).collect();
        Ok(Batch { step, pixels, ids, samples })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::tests::TRAINING;

    fn batches(batch: usize, seed: u64, augment: Augment) -> Batches {
        let (tokenizer, split) = &*TRAINING;
        let plan = Plan { batch, context: 16, seed, augment };
        Batches::new(Arc::clone(split), tokenizer, plan).unwrap()
    }

    #[test]
    fn a_batch_is_a_pure_function_of_seed_and_step() {
        for augment in [Augment::None, Augment::Crop, Augment::Affine] {
            let (one, other) = (batches(16, 1, augment), batches(16, 1, augment));
            let forwards: Vec<Batch> =
                (0..40).map(|step| one.batch(step).unwrap()).collect();
            for step in [39, 3, 17, 0, 16] {
                assert!(
                    other.batch(step).unwrap() == forwards[step],
                    "{augment:?} {step}"
                );
            }
            let another = batches(16, 2, augment);
            assert_ne!(another.batch(0).unwrap().samples, forwards[0].samples);
            let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert!(single.install(|| other.batch(5).unwrap()) == forwards[5]);
        }
    }

    #[test]
    fn a_concept_is_in_a_batch_once_and_a_sample_in_an_epoch_once() {
        for batch in [7, 32, 60] {
            let batches = batches(batch, 3, Augment::None);
            let steps = batches.steps_per_epoch();
            let concept: BTreeMap<u32, u32> =
                batches.split.rows.iter().map(|row| (row.sample, row.concept)).collect();
            let mut ever = BTreeSet::new();
            for epoch in 0..6 {
                let mut seen = BTreeSet::new();
                for step in epoch * steps..(epoch + 1) * steps {
                    let made = batches.batch(step).unwrap();
                    let concepts: BTreeSet<_> =
                        made.samples.iter().map(|s| concept[s]).collect();
                    assert_eq!(concepts.len(), batch);
                    assert!(made.samples.iter().all(|&s| seen.insert(s)));
                }
                let left_out = batches.split.len() - seen.len();
                assert!(
                    batch == 60 || left_out < batch,
                    "{left_out} left out of {batch}"
                );
                ever.extend(seen);
            }
            assert!(ever.len() * 100 >= batches.split.len() * 95, "the left-out change");
        }
    }

    #[test]
    fn shapes_and_captions_of_a_batch_fit_together() {
        let batches = batches(16, 1, Augment::None);
        let made = batches.batch(4).unwrap();
        let values = 3 * 16 * 16;
        assert_eq!((made.pixels.len(), made.ids.len()), (16 * values, 16 * 16));
        assert_eq!(made.seen(), 80);
        for (i, sample) in made.samples.iter().enumerate() {
            let row =
                batches.split.rows.iter().position(|r| r.sample == *sample).unwrap();
            let mut pixels = vec![0.0; values];
            batches.split.pixels(&[row], &mut pixels).unwrap();
            assert!(pixels == made.pixels[i * values..(i + 1) * values]);
            let own = batches.captions[row] * 16..batches.captions[row + 1] * 16;
            let mut captions = batches.ids[own].chunks_exact(16);
            assert!(captions.any(|ids| ids == &made.ids[i * 16..(i + 1) * 16]));
        }
    }

    #[test]
    fn a_batch_larger_than_the_concepts_is_refused() {
        let (tokenizer, split) = &*TRAINING;
        for batch in [0, 61] {
            let plan = Plan { batch, context: 16, seed: 1, augment: Augment::None };
            let made = Batches::new(Arc::clone(split), tokenizer, plan);
            let error = made.unwrap_err().to_string();
            assert!(error.contains("60 concepts"), "{error}");
        }
    }
}
