//! What passes over a micro-batch share: its rows, what a pass needs beside them, and the
//! buffers that blocks use in turn.

use std::cell::RefCell;
use std::ops::Range;

use super::device::{Buffer, Device, Kind, Slice};
use super::layout::{Places, Weights};
use super::ops::{Affine, Moments, Segments, Stream};
use crate::error::Result;
use crate::model::names::ParameterId;
use crate::num::{truncate_usize, widen};

/// Pairs of a block of the sort by expert (`kernels/experts.cuh`).
pub(super) const SORTED: usize = 256;

/// Samples of a group within which distillation chooses its rows, as on the CPU.
const GROUP: usize = crate::engine::cpu::clip::GROUP;

/// The rows of a micro-batch: whose they are and what is asked of them.
#[derive(Debug)]
pub(super) struct Batch {
    host_starts: Vec<usize>,
    host_counted: Vec<bool>,
    starts: Buffer,
    counted: Buffer,
    pooled: Buffer,
    whole: Buffer,
    groups: Buffer,
    group_starts: Vec<usize>,
    selection: Option<Selection>,
}

impl Batch {
    /// `starts` has one entry per sample and the end; `pooled` one row per sample. A teacher
    /// of layers sees the `taught` fraction of the rows that count.
    pub(super) fn new(
        device: &Device,
        (starts, counted): (Vec<usize>, Vec<bool>),
        pooled: &[usize],
        taught: Option<f64>,
    ) -> Result<Self> {
        let rows = starts.last().copied().unwrap_or(0);
        let samples = starts.len() - 1;

        // The last group may be smaller, and then no step falls on its end.
        let mut group_starts: Vec<usize> =
            starts.iter().copied().step_by(GROUP).collect();
        if !samples.is_multiple_of(GROUP) {
            group_starts.push(rows);
        }

        let own = (counted.as_slice(), group_starts.as_slice());
        let select = |fraction| Selection::new(device, own, fraction);
        let selection = taught.map(select).transpose()?;

        let flags: Vec<i32> = counted.iter().map(|&own| i32::from(own)).collect();
        Ok(Self {
            starts: device.upload(Kind::I32, &ints(&starts))?,
            counted: device.upload(Kind::I32, &flags)?,
            pooled: device.upload(Kind::I32, &ints(pooled))?,
            whole: device.upload(Kind::I32, &ints(&[0, rows]))?,
            groups: device.upload(Kind::I32, &ints(&group_starts))?,
            host_starts: starts,
            host_counted: counted,
            group_starts,
            selection,
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.host_counted.len()
    }

    pub(super) fn samples(&self) -> usize {
        self.host_starts.len() - 1
    }

    /// Rows of the longest sample.
    pub(super) fn longest(&self) -> usize {
        self.host_starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    pub(super) fn host_starts(&self) -> &[usize] {
        &self.host_starts
    }

    pub(super) fn host_counted(&self) -> &[bool] {
        &self.host_counted
    }

    pub(super) fn starts(&self) -> &Buffer {
        &self.starts
    }

    pub(super) fn counted(&self) -> &Buffer {
        &self.counted
    }

    /// The row of each sample that the embedding is made of.
    pub(super) fn pooled(&self) -> &Buffer {
        &self.pooled
    }

    /// The bounds of the groups of [`GROUP`] samples, and of each its rows that count.
    pub(super) fn groups(&self) -> (&Buffer, &[usize]) {
        (&self.groups, &self.group_starts)
    }

    /// The rows that a teacher of layers sees.
    pub(super) fn selection(&self) -> Option<&Selection> {
        self.selection.as_ref()
    }

    /// All rows as those of one expert.
    pub(super) fn whole(&self) -> Segments<'_> {
        Segments { starts: self.whole.all(), experts: 1, largest: self.rows() }
    }
}

/// Indices as the device reads them.
///
/// # Panics
/// Beyond 2,147,483,647: buffers of a micro-batch are smaller.
pub(super) fn ints(values: &[usize]) -> Vec<i32> {
    let int =
        |&n: &usize| i32::try_from(n).expect("indices of a micro-batch are below 2^31");
    values.iter().map(int).collect()
}

/// A weight and its bias among the parameters.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) weight: Range<usize>,
    pub(super) bias: Range<usize>,
}

impl Pair {
    pub(super) fn new(places: &Places, weight: ParameterId, bias: ParameterId) -> Self {
        Self { weight: places.range(weight), bias: places.range(bias) }
    }

    /// Both in f32, as a norm reads them.
    pub(super) fn affine<'a>(&self, weights: &'a Weights) -> Affine<'a> {
        Affine { gain: weights.master(&self.weight), offset: weights.master(&self.bias) }
    }

    /// Their gradients.
    pub(super) fn gradient<'a>(&self, flat: &'a Buffer) -> Affine<'a> {
        Affine { gain: flat.at(self.weight.clone()), offset: flat.at(self.bias.clone()) }
    }
}

/// Which rows of each group of samples a layer's teacher sees: as many as the fraction says,
/// known before any entropy is.
#[derive(Debug)]
pub(super) struct Selection {
    /// Rows of each group.
    pub(super) keep: Buffer,
    /// Where they go.
    pub(super) offsets: Buffer,
    /// All of them.
    pub(super) total: usize,
}

impl Selection {
    /// The `fraction` of the counted rows of each group, rounded up.
    pub(super) fn new(
        device: &Device,
        (counted, groups): (&[bool], &[usize]),
        fraction: f64,
    ) -> Result<Self> {
        let (mut keep, mut offsets, mut total) = (Vec::new(), Vec::new(), 0);
        for group in groups.windows(2) {
            let count = counted[group[0]..group[1]].iter().filter(|own| **own).count();
            let own = truncate_usize((fraction * count as f64).ceil()).min(count);
            keep.push(own);
            offsets.push(total);
            total += own;
        }

        Ok(Self {
            keep: device.upload(Kind::I32, &ints(&keep))?,
            offsets: device.upload(Kind::I32, &ints(&offsets))?,
            total,
        })
    }
}

/// Who teaches the MoE layers of a forward pass.
#[derive(Debug, Clone, Copy)]
pub(super) enum Teacher<'a> {
    /// Nobody: top-K routing alone.
    None,
    /// The ensemble of these weights, for the rows that the batch's selection names.
    Ensemble(&'a Weights),
    /// No student: every MoE layer's output is the ensemble of all its experts.
    IsEnsemble,
}

/// What a forward pass needs beside the rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) device: &'a Device,
    pub(super) weights: &'a Weights,
    pub(super) teacher: Teacher<'a>,
    /// Where the sums over the batch go, [layers, 5 + 2E] of f64; none where no one asks.
    pub(super) statistics: Option<Slice<'a>>,
}

/// What a backward pass needs beside the rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Back<'a> {
    pub(super) device: &'a Device,
    pub(super) weights: &'a Weights,
    /// The flat gradient of the micro-batch, which replaces what is there.
    pub(super) gradient: &'a Buffer,
    /// Weights of the auxiliary losses [layers, E + 2].
    pub(super) pulls: &'a Buffer,
}

impl<'a> Back<'a> {
    /// The gradient of a parameter.
    pub(super) fn of(&self, range: &Range<usize>) -> Slice<'a> {
        self.gradient.at(range.clone())
    }
}

/// Buffers that every block of both towers uses in turn.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Products that are added to the stream [N, d].
    pub(super) product: Buffer,
    /// FFN hidden rows, then their gradients [N K, h].
    pub(super) hidden: Buffer,
    /// Rows by slot [N K, d].
    pub(super) slots: Buffer,
    pub(super) slot_gradients: Buffer,
    /// Partial sums.
    pub(super) partial: Buffer,
    pub(super) partial_f64: Buffer,
    /// The stream's gradient in f32 and as products read it [N, d].
    pub(super) dx: Buffer,
    pub(super) dx_copy: Buffer,
    /// The gradient within a residual branch [N, d].
    pub(super) inner: Buffer,
    pub(super) dqkv: Buffer,
    pub(super) delta: Buffer,
    pub(super) routing: RouterScratch,
}

impl Scratch {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let real = || device.buffer(device.real(), 0);
        let float = || device.buffer(Kind::F32, 0);

        // All are empty until the first micro-batch says how large they must be.
        Ok(Self {
            product: real()?,
            hidden: real()?,
            slots: real()?,
            slot_gradients: real()?,
            partial: float()?,
            partial_f64: device.buffer(Kind::F64, 0)?,
            dx: float()?,
            dx_copy: real()?,
            inner: real()?,
            dqkv: real()?,
            delta: float()?,
            routing: RouterScratch::new(device)?,
        })
    }

    /// The gradient of the stream.
    pub(super) fn stream(&self) -> Stream<'_> {
        Stream { dx: self.dx.all(), copy: self.dx_copy.all() }
    }
}

/// Buffers that routers use in turn.
#[derive(Debug)]
pub(super) struct RouterScratch {
    /// For a norm whose moments nobody reads.
    pub(super) moments: Moments,
    pub(super) counts: Buffer,
    pub(super) dweight: Buffer,
    pub(super) dlogits: Buffer,
    pub(super) marked: Buffer,
    pub(super) taught: Ensemble,
}

/// Buffers of the ensemble over some rows.
#[derive(Debug)]
pub(super) struct Ensemble {
    pub(super) inputs: Buffer,
    pub(super) target: Buffer,
    pub(super) hidden: Buffer,
    pub(super) probabilities: Buffer,
    pub(super) chosen: Buffer,
    pub(super) weights: Buffer,
    pub(super) log_sum: Buffer,
    pub(super) entropy: Buffer,
}

impl RouterScratch {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let make = |kind| device.buffer(kind, 0);
        let taught = Ensemble {
            inputs: make(device.real())?,
            target: make(Kind::F32)?,
            hidden: make(device.real())?,
            probabilities: make(Kind::F32)?,
            chosen: make(Kind::I32)?,
            weights: make(Kind::F32)?,
            log_sum: make(Kind::F32)?,
            entropy: make(Kind::F32)?,
        };

        Ok(Self {
            moments: moments(device)?,
            counts: make(Kind::I32)?,
            dweight: make(Kind::F32)?,
            dlogits: make(Kind::F32)?,
            marked: make(Kind::I32)?,
            taught,
        })
    }

    pub(super) fn fit(
        &mut self,
        device: &Device,
        rows: usize,
        (experts, k): (usize, usize),
    ) -> Result<()> {
        device.fit(&mut self.counts, (rows * k).div_ceil(SORTED) * experts)?;
        device.fit(&mut self.dweight, rows * k)?;
        device.fit(&mut self.dlogits, rows * experts)?;
        device.fit(&mut self.marked, rows)
    }

    /// Room for the ensemble over `rows` rows.
    pub(super) fn fit_ensemble(
        &mut self,
        device: &Device,
        rows: usize,
        (width, hidden): (usize, usize),
        (experts, k): (usize, usize),
    ) -> Result<()> {
        let taught = &mut self.taught;
        device.fit(&mut taught.inputs, rows * width)?;
        device.fit(&mut taught.target, rows * width)?;
        device.fit(&mut taught.hidden, rows * hidden)?;

        // Routing writes all of these, though only the probabilities are read.
        device.fit(&mut taught.probabilities, rows * experts)?;
        device.fit(&mut taught.chosen, rows * k)?;
        device.fit(&mut taught.weights, rows * k)?;
        device.fit(&mut taught.log_sum, rows)?;
        device.fit(&mut taught.entropy, rows)
    }
}

/// Room for a norm's means and deviations.
pub(super) fn moments(device: &Device) -> Result<Moments> {
    Ok(Moments {
        mean: device.buffer(Kind::F32, 0)?,
        inverse: device.buffer(Kind::F32, 0)?,
    })
}

/// Expert bounds on the host, written when a layer has been routed.
pub(super) type HostStarts = RefCell<Vec<usize>>;

/// The largest difference of neighbors.
pub(super) fn largest(starts: &[usize]) -> usize {
    starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

/// Bounds as the device wrote them.
pub(super) fn bounds(values: &[i32]) -> Vec<usize> {
    values.iter().map(|n| widen(n.cast_unsigned())).collect()
}
