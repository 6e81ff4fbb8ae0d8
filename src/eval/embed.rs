//! From splits and texts to matrices, one batch at a time.
//!
//! This is the only file of evaluation that calls the model. It checks what the [`Encoder`]
//! promises: one row per input, of the promised width and of unit length.

use std::marker::PhantomData;

use super::similarity::norm;
use super::{Encoder, Split, Vocabulary};
use crate::error::{Context, Error, Result};
use crate::image::Pixels;
use crate::linalg::Matrix;

/// How far a row's length may be from 1: the rounding of a tower in bf16.
const UNIT_TOLERANCE: f64 = 1e-2;

/// Embedded pictures with their labels, in the role of their split.
#[derive(Debug, Clone)]
pub struct LabelledImages<R> {
    /// Name of the split.
    pub split: String,
    /// Unit embeddings [n, P].
    pub embeddings: Matrix,
    /// Concept of each picture.
    pub concept: Vec<usize>,
    /// Sample number of each picture.
    pub sample: Vec<u32>,
    role: PhantomData<R>,
}

impl<R> LabelledImages<R> {
    /// Pictures that were embedded as they streamed by; their positions become their sample
    /// numbers.
    pub fn embedded(
        split: &str,
        embeddings: Matrix,
        concept: Vec<usize>,
    ) -> Result<Self> {
        let n = concept.len();
        whole(embeddings.rows(), n, "embeddings")?;
        let sample = (0..n).map(crate::num::index_u32).collect();
        let split = split.to_owned();
        Ok(Self { split, embeddings, concept, sample, role: PhantomData })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.sample.len()
    }

    /// Whether there are no pictures.
    pub fn is_empty(&self) -> bool {
        self.sample.is_empty()
    }

    /// The pictures that show one of the first `classes` concepts.
    pub fn of_classes(&self, classes: usize) -> Result<Self> {
        let rows: Vec<usize> =
            (0..self.len()).filter(|&row| self.concept[row] < classes).collect();
        Ok(Self {
            split: self.split.clone(),
            embeddings: self.embeddings.select(&rows)?,
            concept: rows.iter().map(|&row| self.concept[row]).collect(),
            sample: rows.iter().map(|&row| self.sample[row]).collect(),
            role: PhantomData,
        })
    }
}

/// Unit embeddings [n, P] of `n` pictures, `pixels` [n, 3, S, S].
pub fn embed_pictures(
    encoder: &mut dyn Encoder,
    pixels: Pixels<'_>,
    n: usize,
) -> Result<Matrix> {
    whole(pixels.len(), n, "pixels")?;
    let found = encoder.images(pixels, n)?;
    checked(found, n, encoder.embed_dim())
}

/// Embeds the pictures of a split at `indices`, `batch` at a time.
pub(super) fn images<R>(
    encoder: &mut dyn Encoder,
    split: &Split<'_, R>,
    indices: &[usize],
    batch: usize,
) -> Result<LabelledImages<R>> {
    // Pixels are read and dropped batch by batch: only embeddings stay in memory.
    let mut data = Vec::with_capacity(indices.len() * encoder.embed_dim());
    for part in indices.chunks(batch.max(1)) {
        let rows = (split.pixels)(part)
            .and_then(|pixels| embed_pictures(encoder, pixels.view(), part.len()))
            .context(|| format!("embedding pictures of split {}", split.name))?;
        data.extend(rows.into_data());
    }

    Ok(LabelledImages {
        split: split.name.clone(),
        embeddings: Matrix::new(indices.len(), encoder.embed_dim(), data)?,
        concept: indices.iter().map(|&i| split.concept[i]).collect(),
        sample: indices.iter().map(|&i| split.sample[i]).collect(),
        role: PhantomData,
    })
}

/// Embeds a whole split.
pub(super) fn split<R>(
    encoder: &mut dyn Encoder,
    split: &Split<'_, R>,
    batch: usize,
) -> Result<LabelledImages<R>> {
    let all: Vec<usize> = (0..split.len()).collect();
    images(encoder, split, &all, batch)
}

/// Embeds texts `[n]` to [n, P], `batch` at a time.
pub(super) fn texts(
    encoder: &mut dyn Encoder,
    vocabulary: &Vocabulary<'_>,
    texts: &[String],
    batch: usize,
) -> Result<Matrix> {
    let mut data = Vec::with_capacity(texts.len() * encoder.embed_dim());
    for part in texts.chunks(batch.max(1)) {
        // The tokenizer is the caller's, so its answer is checked like a file.
        let rows = (vocabulary.tokenize)(part)
            .and_then(|ids| {
                whole(ids.len(), part.len(), "token ids")?;
                let found = encoder.texts(&ids, part.len())?;
                checked(found, part.len(), encoder.embed_dim())
            })
            .context(|| format!("embedding texts from {:?} on", part[0]))?;
        data.extend(rows.into_data());
    }
    Matrix::new(texts.len(), encoder.embed_dim(), data)
}

/// The retrieval captions of the pictures at `indices`: their embeddings and the position in
/// `indices` that owns each.
pub(super) fn captions<R>(
    encoder: &mut dyn Encoder,
    vocabulary: &Vocabulary<'_>,
    split: &Split<'_, R>,
    indices: &[usize],
    batch: usize,
) -> Result<(Matrix, Vec<usize>)> {
    let (mut all, mut owner) = (Vec::new(), Vec::new());
    for (place, &index) in indices.iter().enumerate() {
        let own = split.captions.get(index).map_or(&[][..], Vec::as_slice);
        if own.is_empty() {
            let (name, sample) = (&split.name, split.sample[index]);
            return Err(Error::corrupt(format!(
                "split {name}: sample {sample} has no retrieval caption"
            )));
        }
        all.extend_from_slice(own);
        owner.extend(own.iter().map(|_| place));
    }

    Ok((texts(encoder, vocabulary, &all, batch)?, owner))
}

/// Refuses `len` values that do not divide evenly among `n` inputs.
fn whole(len: usize, n: usize, what: &str) -> Result<()> {
    if len == 0 || !len.is_multiple_of(n) {
        return Err(Error::failed(format!(
            "found {len} {what} for {n} inputs, expected a positive multiple of {n}"
        )));
    }
    Ok(())
}

/// The embeddings, if they are `n` unit rows of `width` values.
fn checked(found: Matrix, n: usize, width: usize) -> Result<Matrix> {
    let (rows, cols) = (found.rows(), found.cols());
    if (rows, cols) != (n, width) {
        return Err(Error::failed(format!(
            "the encoder returned {rows}×{cols} values, expected {n}×{width}"
        )));
    }

    // NaN compares false with everything and would pass a plain comparison.
    for (index, row) in found.iter_rows().enumerate() {
        let norm = norm(row);
        let off = (norm - 1.0).abs();
        if !off.is_finite() || off > UNIT_TOLERANCE {
            return Err(Error::failed(format!(
                "the embedding of input {index} has norm {norm}, expected 1"
            )));
        }
    }
    Ok(found)
}
