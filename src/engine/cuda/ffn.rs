//! The FFN of a block: dense, or a mixture of experts.
//!
//! A dense FFN leaves its product to the norm behind it, which adds product and bias to the
//! stream. A mixture writes the stream itself, because its rows come back from their
//! experts one by one.

use std::ops::Range;

use super::device::Slice;
use super::hidden::Shape;
use super::layout::Places;
use super::moe::{Moe, MoeState};
use super::pass::{Back, Batch, Pair, Pass, Scratch};
use crate::config::Activation;
use crate::error::Result;
use crate::model::names::{ParameterId, Part};
use crate::model::{ClipConfig, Tower};

/// An FFN's place among the parameters.
#[derive(Debug)]
pub(super) enum Ffn {
    /// One FFN for all rows.
    Dense(Dense),
    /// A router and its experts.
    Moe(Moe),
}

#[derive(Debug)]
pub(super) struct Dense {
    fc1: Pair,
    fc2: Pair,
    shape: Shape,
}

impl Ffn {
    /// `layer` is the number that an MoE layer gets here.
    pub(super) fn new(
        config: &ClipConfig,
        places: &Places,
        at: (Tower, usize),
        layer: usize,
    ) -> Self {
        let id = |part| ParameterId::Block(at.0, at.1, part);
        let pair = |weight, bias| Pair::new(places, id(weight), id(bias));

        let tower = config.tower(at.0);
        let quick = config.activation == Activation::QuickGelu;
        let shape = Shape { width: tower.width, hidden: tower.hidden, quick };

        match &config.moe {
            Some(moe) if config.is_moe(at.0, at.1) => Self::Moe(Moe {
                router: places.range(id(Part::Router)),
                fc1: pair(Part::ExpertFcWeight, Part::ExpertFcBias),
                fc2: pair(Part::ExpertProjWeight, Part::ExpertProjBias),
                shape,
                experts: moe.experts,
                top_k: moe.top_k,
                layer,
            }),
            _ => Self::Dense(Dense {
                fc1: pair(Part::FcWeight, Part::FcBias),
                fc2: pair(Part::ProjWeight, Part::ProjBias),
                shape,
            }),
        }
    }

    pub(super) fn is_moe(&self) -> bool {
        matches!(self, Self::Moe(_))
    }

    /// Rows of the products over so many rows of a batch.
    pub(super) fn product_rows(&self, rows: usize) -> usize {
        match self {
            Self::Dense(_) => rows,
            Self::Moe(moe) => moe.slots(rows),
        }
    }

    /// The bias that the norm behind a dense FFN adds to the stream.
    pub(super) fn stream_bias(&self) -> Option<&Range<usize>> {
        match self {
            Self::Dense(dense) => Some(&dense.fc2.bias),
            Self::Moe(_) => None,
        }
    }

    /// FFN of `x` [N, d]. A dense one leaves its product in the scratch and returns the bias
    /// that belongs to it; a mixture writes `next` = `middle` + its output.
    pub(super) fn forward<'a>(
        &self,
        pass: Pass<'a>,
        batch: &Batch,
        (x, stream): (Slice<'_>, (Slice<'_>, Slice<'_>)),
        (kept, scratch): ((Slice<'_>, &MoeState), &Scratch),
    ) -> Result<Option<Slice<'a>>> {
        match self {
            Self::Dense(dense) => {
                dense.forward(pass, batch, (x, kept.0), scratch).map(Some)
            }
            Self::Moe(moe) => {
                moe.forward(pass, batch, (x, stream), (kept, scratch))?;
                Ok(None)
            }
        }
    }

    /// `scratch.inner` = the gradient of the FFN's input, from the stream's.
    pub(super) fn backward(
        &self,
        back: Back<'_>,
        batch: &Batch,
        x: Slice<'_>,
        (kept, scratch): ((Slice<'_>, &MoeState), &Scratch),
    ) -> Result<()> {
        match self {
            Self::Dense(dense) => dense.backward(back, batch, (x, kept.0), scratch),
            Self::Moe(moe) => moe.backward(back, batch, x, (kept, scratch)),
        }
    }
}

impl Dense {
    fn forward<'a>(
        &self,
        pass: Pass<'a>,
        batch: &Batch,
        (x, pre): (Slice<'_>, Slice<'_>),
        scratch: &Scratch,
    ) -> Result<Slice<'a>> {
        let Pass { device, weights, .. } = pass;
        let (rows, shape) = (batch.rows(), self.shape);

        // A backward makes the hidden rows again from `pre`: they are scratch.
        shape.fc1(rows).forward(device, pre, x, weights.real(&self.fc1.weight))?;
        let (hidden, bias) = (scratch.hidden.all(), weights.master(&self.fc1.bias));
        shape.activate(device, (hidden, pre), bias, (batch.whole(), rows))?;

        let (product, weight) = (scratch.product.all(), weights.real(&self.fc2.weight));
        shape.fc2(rows).forward(device, product, hidden, weight)?;
        Ok(weights.master(&self.fc2.bias))
    }

    fn backward(
        &self,
        back: Back<'_>,
        batch: &Batch,
        (x, pre): (Slice<'_>, Slice<'_>),
        scratch: &Scratch,
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let (rows, shape) = (batch.rows(), self.shape);

        let (dy, dh) = (scratch.dx_copy.all(), scratch.hidden.all());
        shape.fc2(rows).backward_input(device, dh, dy, weights.real(&self.fc2.weight))?;

        let bias = (weights.master(&self.fc1.bias), back.of(&self.fc1.bias));
        shape.activate_backward(
            device,
            (dh, pre),
            bias,
            (batch.whole(), &scratch.partial),
        )?;
        // From here on `pre` holds the hidden rows.
        shape.fc2(rows).backward_weight(device, back.of(&self.fc2.weight), dy, pre)?;
        shape.fc1(rows).backward_weight(device, back.of(&self.fc1.weight), dh, x)?;

        let (dx, weight) = (scratch.inner.all(), weights.real(&self.fc1.weight));
        shape.fc1(rows).backward_input(device, dx, dh, weight)
    }
}
