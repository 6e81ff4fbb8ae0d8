//! Pictures of a batch as an engine reads them: normalized values, or levels.

use std::borrow::Cow;
use std::ops::Range;

use super::Normalise;

/// Pictures [n, 3, S, S] that somebody else keeps.
#[derive(Debug, Clone, Copy)]
pub enum Pixels<'a> {
    /// Normalized values.
    Values(&'a [f32]),
    /// Levels 0..255, and how they are normalized: a quarter of the bytes on their way to a
    /// card, which makes the same values of them.
    Levels(&'a [u8], Normalise),
}

/// Pictures [n, 3, S, S] of one's own.
#[derive(Debug, Clone, PartialEq)]
pub enum PixelBuffer {
    /// Normalized values.
    Values(Vec<f32>),
    /// Levels 0..255, and how they are normalized.
    Levels(Vec<u8>, Normalise),
}

impl PixelBuffer {
    /// What an engine reads.
    pub fn view(&self) -> Pixels<'_> {
        match self {
            Self::Values(values) => Pixels::Values(values),
            Self::Levels(levels, normalise) => Pixels::Levels(levels, *normalise),
        }
    }
}

impl<'a> Pixels<'a> {
    /// Pixels of all channels.
    pub fn len(self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Levels(levels, _) => levels.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// A part of them.
    ///
    /// # Panics
    /// If the range is not within them.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Values(values) => Self::Values(&values[range]),
            Self::Levels(levels, normalise) => Self::Levels(&levels[range], normalise),
        }
    }

    /// Parts of `size` pixels, the last one shorter.
    ///
    /// # Panics
    /// If `size` is zero.
    pub fn parts(self, size: usize) -> impl Iterator<Item = Self> {
        let all = self.len();
        (0..all).step_by(size).map(move |at| self.part(at..(at + size).min(all)))
    }

    /// Normalized values; `area` pixels make a plane.
    pub fn values(self, area: usize) -> Cow<'a, [f32]> {
        match self {
            Self::Values(values) => Cow::Borrowed(values),
            Self::Levels(levels, normalise) => {
                let mut values = vec![0.0; levels.len()];
                let pictures = levels.chunks_exact(3 * area);
                for (from, to) in pictures.zip(values.chunks_exact_mut(3 * area)) {
                    normalise.apply(from, to);
                }
                Cow::Owned(values)
            }
        }
    }
}
