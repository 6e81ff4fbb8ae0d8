//! The weights in the form in which they train and the form in which they run.
//!
//! The two differ for experts of low rank only: those are merged before a forward, and the
//! gradient is pulled back through the same products after the backward.

use crate::error::{Error, Result};
use crate::model::ClipConfig;
use crate::model::low_rank::LowRank;
use crate::model::params::Layout;

/// The weights of a model.
#[derive(Debug)]
pub(super) struct Weights {
    len: usize,
    /// In the form in which they train and are stored; empty before the first load.
    kept: Vec<f32>,
    low_rank: Option<Merged>,
}

/// Whole experts, made of those of low rank.
#[derive(Debug)]
struct Merged {
    form: LowRank,
    values: Vec<f32>,
}

impl Weights {
    /// Room for the weights of a model.
    pub(super) fn new(config: &ClipConfig) -> Self {
        let merged = |form| Merged { form, values: Vec::new() };
        Self {
            len: Layout::new(config).len(),
            kept: Vec::new(),
            low_rank: LowRank::of(config).map(merged),
        }
    }

    /// Replaces all weights.
    pub(super) fn replace(&mut self, values: Vec<f32>) -> Result<()> {
        if values.len() != self.len {
            let (found, expected) = (values.len(), self.len);
            return Err(Error::failed(format!(
                "the engine was given {found} weights, expected {expected}: the weights \
                 belong to a model of another shape"
            )));
        }

        self.kept = values;
        self.merge();
        Ok(())
    }

    /// Changes the weights in place, in the form in which they train.
    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut [f32]) -> T) -> T {
        let done = change(&mut self.kept);
        self.merge();
        done
    }

    fn merge(&mut self) {
        if let Some(Merged { form, values }) = &mut self.low_rank {
            values.resize(form.merged_len(), 0.0);
            form.merge(&self.kept, values);
        }
    }

    /// The weights in the form in which they train.
    pub(super) fn kept(&self) -> Result<&[f32]> {
        if self.kept.is_empty() { Err(not_loaded()) } else { Ok(&self.kept) }
    }

    /// As [`Self::kept`], and nothing else stays.
    pub(super) fn into_kept(self) -> Result<Vec<f32>> {
        if self.kept.is_empty() { Err(not_loaded()) } else { Ok(self.kept) }
    }

    /// The weights with all experts whole.
    pub(super) fn whole(&self) -> Result<&[f32]> {
        match &self.low_rank {
            Some(merged) if !merged.values.is_empty() => Ok(&merged.values),
            Some(_) => Err(not_loaded()),
            None => self.kept(),
        }
    }

    /// The gradient in the form in which weights train, from that by the whole experts;
    /// `buffer` is used where the two differ.
    pub(super) fn pull_back<'a>(
        &self,
        gradient: &'a mut [f32],
        buffer: &'a mut Vec<f32>,
    ) -> &'a mut [f32] {
        let Some(Merged { form, .. }) = &self.low_rank else { return gradient };
        buffer.resize(self.len, 0.0);
        form.pull_back(&self.kept, gradient, buffer);
        buffer
    }

    /// Whether experts are of low rank.
    pub(super) fn is_low_rank(&self) -> bool {
        self.low_rank.is_some()
    }
}

fn not_loaded() -> Error {
    Error::failed("the engine has no weights yet: call load first")
}
