//! Training batches as a pure function of seed and step.
//!
//! Resuming a run needs no state: batch `step` of seed `s` is the same whoever asks and
//! whatever was asked before. Ranks need no word about it either: each makes its own part. A
//! [`Sampler`] says which samples a batch is made of; captions and augmentation are drawn here.

use std::ops::Range;
use std::sync::Arc;

use super::read::Split;
use super::sampler::{Concepts, Sampler};
use crate::config::Augment;
use crate::error::{Error, Result};
use crate::image::{Augmenter, PixelBuffer};
use crate::par;
use crate::rng::{self, RngExt};
use crate::text::Tokenizer;

/// One batch, or a part of one; B samples, pictures of side S, captions of T tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The step it belongs to.
    pub step: usize,
    /// Pictures: levels where augmentation leaves them so.
    pub pixels: PixelBuffer,
    /// Token ids [B, T].
    pub ids: Vec<u32>,
    /// Numbers of the samples `[B]`.
    pub samples: Vec<u32>,
}

/// A part of every batch: the samples of one of several ranks, which lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which part, from 0.
    pub rank: usize,
    /// Number of parts; they are of equal length, and what does not divide is in none.
    pub count: usize,
}

impl Share {
    /// The whole batch.
    pub const WHOLE: Self = Self { rank: 0, count: 1 };

    /// The places of this part in a batch of `len` samples.
    fn of(self, len: usize) -> Range<usize> {
        let own = len / self.count;
        self.rank * own..(self.rank + 1) * own
    }
}

/// How batches are made.
#[derive(Debug, Clone, Copy)]
pub struct BatchSettings {
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
    settings: BatchSettings,
    augmenter: Augmenter,
    /// Token ids of every caption, sample after sample.
    ids: Vec<u32>,
    /// First caption of every sample; one entry more than samples.
    captions: Vec<usize>,
    sampler: Box<dyn Sampler>,
}

impl Batches {
    /// Batches in which no concept meets itself ([`Concepts`]); all captions are tokenized.
    ///
    /// Refuses a batch larger than the number of concepts.
    pub fn new(
        split: Arc<Split>,
        tokenizer: &Tokenizer,
        settings: BatchSettings,
    ) -> Result<Self> {
        let concepts: Vec<u32> = split.rows.iter().map(|row| row.concept).collect();
        let sampler = Concepts::new(&concepts, settings.batch, settings.seed)?;
        Self::with_sampler(split, tokenizer, settings, Box::new(sampler))
    }

    /// Batches of the rows that `sampler` chooses; it must know the rows of this split and
    /// the size of a batch.
    pub fn with_sampler(
        split: Arc<Split>,
        tokenizer: &Tokenizer,
        settings: BatchSettings,
        sampler: Box<dyn Sampler>,
    ) -> Result<Self> {
        let (mut texts, mut captions) = (Vec::new(), vec![0]);
        for row in &split.rows {
            if row.captions.is_empty() {
                return Err(Error::corrupt(format!(
                    "sample {} has no caption",
                    row.sample
                )));
            }
            texts.extend(row.captions.iter().map(String::as_str));
            captions.push(texts.len());
        }

        let ids = tokenizer.encode_all(&texts, settings.context)?;
        let augmenter = Augmenter::new(settings.augment, split.side(), split.normalise());
        Ok(Self { split, settings, augmenter, ids, captions, sampler })
    }

    /// Batches after which the samples are dealt anew.
    pub fn steps_per_epoch(&self) -> usize {
        self.sampler.steps_per_epoch()
    }

    /// How the batches are made.
    pub fn settings(&self) -> BatchSettings {
        self.settings
    }

    /// Batch number `step`, from 0. Pictures are made in parallel.
    ///
    /// # Errors
    /// A picture that cannot be read any more.
    pub fn batch(&self, step: usize) -> Result<Batch> {
        self.part(step, Share::WHOLE)
    }

    /// The samples of `share` in batch number `step`: the same as in the whole batch.
    ///
    /// # Errors
    /// As [`Batches::batch`].
    pub fn part(&self, step: usize, share: Share) -> Result<Batch> {
        let rows = self.sampler.batch(step);
        let own = share.of(rows.len());

        let seed = self.settings.seed;

        // One stream draws the captions of the whole batch, in the order of its rows.
        let mut stream = rng::stream(seed, &format!("batches/captions/{step}"));
        let context = self.settings.context;
        let mut ids = Vec::with_capacity(own.len() * context);
        for (place, &row) in rows.iter().enumerate() {
            let caption = stream.random_range(self.captions[row]..self.captions[row + 1]);
            if own.contains(&place) {
                let caption = caption * context..(caption + 1) * context;
                ids.extend_from_slice(&self.ids[caption]);
            }
        }

        let pixels = self.pictures(step, (&rows[own.clone()], own.start))?;
        let samples = rows[own].iter().map(|&row| self.split.rows[row].sample).collect();
        Ok(Batch { step, pixels, ids, samples })
    }

    /// The variants of some rows' pictures in batch `step`, in which the first of them has
    /// the place `first`.
    fn pictures(
        &self,
        step: usize,
        (rows, first): (&[usize], usize),
    ) -> Result<PixelBuffer> {
        let count = 3 * self.split.side() * self.split.side();
        let stream = |i| {
            let place = first + i;
            rng::stream(self.settings.seed, &format!("batches/augment/{step}/{place}"))
        };
        if self.augmenter.keeps_levels() {
            let mut levels = vec![0; rows.len() * count];
            par::try_for_each_chunk(&mut levels, count, |i, out| {
                let planes = self.split.planes(rows[i])?;
                self.augmenter.levels(&planes, &mut stream(i), out);
                Ok::<_, Error>(())
            })?;
            return Ok(PixelBuffer::Levels(levels, self.augmenter.normalise()));
        }
        let mut values = vec![0.0; rows.len() * count];
        par::try_for_each_chunk(&mut values, count, |i, out| {
            let planes = self.split.planes(rows[i])?;
            self.augmenter.apply(&planes, &mut stream(i), out);
            Ok::<_, Error>(())
        })?;
        Ok(PixelBuffer::Values(values))
    }
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
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::data::tests::TRAINING;

    fn batches(batch: usize, seed: u64, augment: Augment) -> Batches {
        let (tokenizer, split) = &*TRAINING;
        let settings = BatchSettings { batch, context: 16, seed, augment };
        Batches::new(Arc::clone(split), tokenizer, settings).unwrap()
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
    fn the_parts_of_a_batch_are_the_batch() {
        for augment in [Augment::None, Augment::Affine] {
            let batches = batches(32, 1, augment);
            for step in [0, 7] {
                let whole = batches.batch(step).unwrap();
                let parts =
                    (0..4).map(|rank| batches.part(step, Share { rank, count: 4 }));
                let parts: Vec<Batch> = parts.map(Result::unwrap).collect();
                let ids: Vec<_> = parts.iter().map(|part| part.ids.clone()).collect();
                let samples: Vec<_> =
                    parts.iter().map(|part| part.samples.clone()).collect();
                assert!(ids.concat() == whole.ids && samples.concat() == whole.samples);
                let levels = |batch: &Batch| match &batch.pixels {
                    PixelBuffer::Values(values) => {
                        values.iter().map(|v| v.to_bits()).collect()
                    }
                    PixelBuffer::Levels(levels, _) => {
                        levels.iter().map(|&level| level.into()).collect::<Vec<u32>>()
                    }
                };
                let pixels: Vec<_> = parts.iter().map(levels).collect();
                assert!(pixels.concat() == levels(&whole), "{augment:?} {step}");
            }
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
        let PixelBuffer::Levels(levels, normalise) = &made.pixels else {
            panic!("unchanged pictures are levels");
        };
        assert_eq!((levels.len(), made.ids.len()), (16 * values, 16 * 16));
        for (i, sample) in made.samples.iter().enumerate() {
            let row =
                batches.split.rows.iter().position(|r| r.sample == *sample).unwrap();
            let found = levels[i * values..(i + 1) * values].to_vec();
            let found = PixelBuffer::Levels(found, *normalise);
            assert!(batches.split.pixels(&[row]).unwrap() == found);
            let own = batches.captions[row] * 16..batches.captions[row + 1] * 16;
            let mut captions = batches.ids[own].chunks_exact(16);
            assert!(captions.any(|ids| ids == &made.ids[i * 16..(i + 1) * 16]));
        }
    }

    #[test]
    fn a_batch_larger_than_the_concepts_is_refused() {
        let (tokenizer, split) = &*TRAINING;
        for batch in [0, 61] {
            let augment = Augment::None;
            let settings = BatchSettings { batch, context: 16, seed: 1, augment };
            let made = Batches::new(Arc::clone(split), tokenizer, settings);
            let error = made.unwrap_err().to_string();
            assert!(error.contains("60 concepts"), "{error}");
        }
    }
}
