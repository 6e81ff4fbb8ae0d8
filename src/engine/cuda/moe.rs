//! A mixture of experts: route, sort, run every expert over its own rows, and come back.
//!
//! The only numbers that the host waits for within a step are the bounds of the experts' rows:
//! cuBLAS needs extents. They are read back while the rows are gathered.
//!
//! Each expert's rows are rounded up to a multiple of [`ROUNDED`] by rows of zeros, so that
//! products come in few shapes: cuBLAS chooses a kernel by shape and loads it when it is first
//! needed, which takes longer than the product. Zeros change no sum: what an expert makes of
//! them is read by nobody, and their gradient is zero.

use std::ops::Range;

use super::device::{Buffer, Device, Grid, Kind, Slice};
use super::hidden::Shape;
use super::layout::Weights;
use super::ops::{self, ROWS_A_CHUNK, Segments, sum_statistics};
use super::pass::{
    Back, Batch, HostStarts, Pair, Pass, SORTED, Scratch, Teacher, bounds, largest,
};
use crate::error::Result;

/// Tokens that one warp of the router's kernels handles, and warps of their blocks.
const ROUTED: usize = 4;
const ROUTER_WARPS: usize = 4;

/// Experts whose sums one thread holds side by side (`kernels/router.cuh`).
const ABREAST: usize = 8;

/// What the rows of an expert are a multiple of (`kernels/experts.cuh`): the rows of a tile of
/// cuBLAS's products on tensor cores, whose last tile costs as much as a whole one anyway.
const ROUNDED: usize = 128;

/// Slots that `pairs` pairs may need, however they spread over the experts.
pub(super) fn slots(pairs: usize, experts: usize) -> usize {
    pairs + experts * (ROUNDED - 1)
}

/// Where router and experts lie among the parameters.
#[derive(Debug)]
pub(super) struct Moe {
    pub(super) router: Range<usize>,
    pub(super) fc1: Pair,
    pub(super) fc2: Pair,
    pub(super) shape: Shape,
    pub(super) experts: usize,
    pub(super) top_k: usize,
    /// The layer's number among the MoE layers of both towers.
    pub(super) layer: usize,
}

/// What a mixture keeps between forward and backward.
#[derive(Debug)]
pub(super) struct MoeState {
    /// Softmax over the experts [N, E].
    pub(super) probabilities: Buffer,
    /// Chosen experts [N, K], best first.
    pub(super) chosen: Buffer,
    /// Their renormalized weights [N, K].
    pub(super) weights: Buffer,
    pub(super) log_sum: Buffer,
    pub(super) entropy: Buffer,
    /// Bounds of the experts' slots [E + 1], also on the host, then the end of each expert's
    /// own rows `[E]`.
    starts: Buffer,
    host_starts: HostStarts,
    /// The slot of each pair [N K].
    pub(super) slots: Buffer,
    /// The experts' outputs by slot, without their bias [slots, d].
    pub(super) outputs: Buffer,
    /// Distilled rows and how far the layer's output is from the ensemble's [n, d].
    pub(super) distilled: Buffer,
    pub(super) difference: Buffer,
}

impl MoeState {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let make = |kind| device.buffer(kind, 0);
        Ok(Self {
            probabilities: make(Kind::F32)?,
            chosen: make(Kind::I32)?,
            weights: make(Kind::F32)?,
            log_sum: make(Kind::F32)?,
            entropy: make(Kind::F32)?,
            starts: make(Kind::I32)?,
            host_starts: HostStarts::default(),
            slots: make(Kind::I32)?,
            outputs: make(device.real())?,
            distilled: make(Kind::I32)?,
            difference: make(device.real())?,
        })
    }

    /// Room for so many rows, of which some are distilled.
    pub(super) fn fit(
        &mut self,
        device: &Device,
        (rows, distilled, d): (usize, usize, usize),
        (experts, k): (usize, usize),
    ) -> Result<()> {
        device.fit(&mut self.probabilities, rows * experts)?;
        device.fit(&mut self.starts, 2 * experts + 1)?;
        for buffer in [&mut self.chosen, &mut self.weights, &mut self.slots] {
            device.fit(buffer, rows * k)?;
        }
        for buffer in [&mut self.log_sum, &mut self.entropy] {
            device.fit(buffer, rows)?;
        }

        // Outputs lie by slot, so the padding of every expert needs room as well.
        device.fit(&mut self.outputs, slots(rows * k, experts) * d)?;
        device.fit(&mut self.distilled, distilled)?;
        device.fit(&mut self.difference, distilled * d)
    }
}

/// Where a routing goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Routed<'a> {
    pub(super) probabilities: &'a Buffer,
    pub(super) chosen: &'a Buffer,
    pub(super) weights: &'a Buffer,
    pub(super) log_sum: &'a Buffer,
    pub(super) entropy: &'a Buffer,
}

impl Moe {
    /// Slots of so many rows.
    pub(super) fn slots(&self, rows: usize) -> usize {
        slots(rows * self.top_k, self.experts)
    }

    /// One expert's part of a stack of matrices.
    pub(super) fn expert(&self, stack: &Range<usize>, e: usize) -> Range<usize> {
        let size = stack.len() / self.experts;
        stack.start + e * size..stack.start + (e + 1) * size
    }

    pub(super) fn route(
        &self,
        device: &Device,
        (x, rows): (Slice<'_>, usize),
        router: Slice<'_>,
        into: Routed<'_>,
    ) -> Result<()> {
        let args = [
            into.probabilities.into(),
            into.chosen.into(),
            into.weights.into(),
            into.log_sum.into(),
            into.entropy.into(),
            x.into(),
            router.into(),
            rows.into(),
            self.shape.width.into(),
            self.experts.into(),
            self.top_k.into(),
        ];

        device.launch("router_forward", router_grid(rows), &args)
    }

    /// `next` = `middle` + the layer's output for `x` [N, d].
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        batch: &Batch,
        (x, (middle, next)): (Slice<'_>, (Slice<'_>, Slice<'_>)),
        ((pre, kept), scratch): ((Slice<'_>, &MoeState), &Scratch),
    ) -> Result<()> {
        let Pass { device, weights, .. } = pass;
        let (rows, d) = (batch.rows(), self.shape.width);
        let into = Routed {
            probabilities: &kept.probabilities,
            chosen: &kept.chosen,
            weights: &kept.weights,
            log_sum: &kept.log_sum,
            entropy: &kept.entropy,
        };
        self.route(device, (x, rows), weights.master(&self.router), into)?;

        // A teacher sends every row through all experts: there is nothing to sort.
        if let Teacher::IsEnsemble = pass.teacher {
            let p = kept.probabilities.all();
            let taught = &scratch.routing.taught;
            self.ensemble(device, (taught, weights), (x, rows), p)?;
            let vectors = rows * d / 8;
            let args =
                [next.into(), middle.into(), (&taught.target).into(), vectors.into()];
            return device.launch("stream_add", Grid::threads(vectors, 256), &args);
        }
        self.statistics(pass, batch, (kept, scratch))?;

        // The bounds travel to the host while the card gathers rows.
        self.sort(device, rows, (kept, &scratch.routing.counts))?;
        let counts = device.read_back(&kept.starts)?;
        self.gather(device, (scratch.slots.all(), x), (kept, rows))?;
        let starts = bounds(&counts.wait::<i32>()?[..=self.experts]);
        self.experts(device, (weights, &starts), (pre, kept), scratch)?;
        *kept.host_starts.borrow_mut() = starts;

        let args = [
            next.into(),
            middle.into(),
            (&kept.outputs).into(),
            weights.master(&self.fc2.bias).into(),
            (&kept.slots).into(),
            (&kept.chosen).into(),
            (&kept.weights).into(),
            rows.into(),
            self.top_k.into(),
            d.into(),
        ];
        device.launch("experts_combine", Grid::warps(rows), &args)?;

        if let Teacher::Ensemble(taught) = pass.teacher {
            self.distill((pass, taught), batch, x, (kept, scratch))?;
        }
        Ok(())
    }

    /// The experts' products over their own rows.
    fn experts(
        &self,
        device: &Device,
        (weights, starts): (&Weights, &[usize]),
        (pre, kept): (Slice<'_>, &MoeState),
        scratch: &Scratch,
    ) -> Result<()> {
        let Shape { width: d, hidden: h, .. } = self.shape;
        for e in 0..self.experts {
            let (from, to) = (starts[e], starts[e + 1]);
            let weight = weights.real(&self.expert(&self.fc1.weight, e));
            let (y, x) = (pre.at(from * h..to * h), scratch.slots.at(from * d..to * d));
            self.shape.fc1(to - from).forward(device, y, x, weight)?;
        }

        // One launch for all experts: each row finds its bias by the bounds.
        let (hidden, bias) = (scratch.hidden.all(), weights.master(&self.fc1.bias));
        let slots = starts[self.experts];
        let segments = self.segments(kept, starts);
        self.shape.activate(device, (hidden, pre), bias, (segments, slots))?;

        for e in 0..self.experts {
            let (from, to) = (starts[e], starts[e + 1]);
            let weight = weights.real(&self.expert(&self.fc2.weight, e));
            let (y, x) = (kept.outputs.at(from * d..to * d), hidden.at(from * h..to * h));
            self.shape.fc2(to - from).forward(device, y, x, weight)?;
        }
        Ok(())
    }

    fn segments<'a>(&self, kept: &'a MoeState, starts: &[usize]) -> Segments<'a> {
        let starts_there = kept.starts.all();
        Segments { starts: starts_there, experts: self.experts, largest: largest(starts) }
    }

    /// Sums over the rows that count, where somebody asks for them.
    fn statistics(
        &self,
        pass: Pass<'_>,
        batch: &Batch,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let Some(all) = pass.statistics else { return Ok(()) };
        let (device, rows) = (pass.device, batch.rows());
        let (width, blocks) = (3 + 2 * self.experts, rows.div_ceil(256));
        let args = [
            (&scratch.partial_f64).into(),
            (&kept.probabilities).into(),
            (&kept.chosen).into(),
            (&kept.log_sum).into(),
            (&kept.entropy).into(),
            batch.counted().into(),
            rows.into(),
            self.experts.into(),
            self.top_k.into(),
        ];
        device.launch("routing_statistics", Grid::new([blocks, 1, 1], 256), &args)?;

        // The last two numbers of a layer belong to distillation.
        let into = all.at(self.layer * (width + 2)..self.layer * (width + 2) + width);
        sum_statistics(device, into, (scratch.partial_f64.all(), blocks))
    }

    /// Sorts the pairs by expert.
    fn sort(
        &self,
        device: &Device,
        rows: usize,
        (kept, counts): (&MoeState, &Buffer),
    ) -> Result<()> {
        let pairs = rows * self.top_k;
        let chunks = pairs.div_ceil(SORTED);
        let grid = Grid::new([chunks, 1, 1], SORTED);

        let (chosen, experts) = (&kept.chosen, self.experts);
        let args = [counts.into(), chosen.into(), pairs.into(), experts.into()];
        device.launch("experts_count", grid, &args)?;

        // One block makes the first slot of each chunk and the bounds from the counts.
        let args = [counts.into(), (&kept.starts).into(), chunks.into(), experts.into()];
        device.launch("experts_scan", Grid::new([1, 1, 1], 1024), &args)?;

        let args = [
            (&kept.slots).into(),
            counts.into(),
            chosen.into(),
            pairs.into(),
            experts.into(),
        ];
        device.launch("experts_place", grid, &args)
    }

    /// `slots` = the rows of `x` in the experts' order, zeros behind each expert's.
    fn gather(
        &self,
        device: &Device,
        (slots, x): (Slice<'_>, Slice<'_>),
        (kept, rows): (&MoeState, usize),
    ) -> Result<()> {
        let args = [
            slots.into(),
            x.into(),
            (&kept.slots).into(),
            (&kept.starts).into(),
            (rows * self.top_k).into(),
            self.top_k.into(),
            self.shape.width.into(),
            self.experts.into(),
        ];

        device.launch("experts_gather", self.pairs_and_pads(rows), &args)
    }

    /// One warp per pair, then one per slot that may be padding.
    fn pairs_and_pads(&self, rows: usize) -> Grid {
        Grid::warps(rows * self.top_k + self.experts * ROUNDED)
    }

    /// `scratch.inner` = the gradient of `x`, from the stream's; adds to the parameters'.
    pub(super) fn backward(
        &self,
        back: Back<'_>,
        batch: &Batch,
        x: Slice<'_>,
        ((pre, kept), scratch): ((Slice<'_>, &MoeState), &Scratch),
    ) -> Result<()> {
        let starts = kept.host_starts.borrow();

        // The teacher changes the gradient of the layer's output, so it comes first.
        self.pull(back, batch, (kept, scratch))?;
        let pull = self.pulls(back);
        self.combine_backward(back, batch, (kept, scratch))?;

        // The forward's hidden rows are not kept: their buffer takes their gradient.
        let (dout, dh) = (scratch.slot_gradients.all(), scratch.hidden.all());
        let segments = self.segments(kept, &starts);
        self.hidden_backward(
            back,
            (pre, dh, dout),
            (starts.as_slice(), segments),
            scratch,
        )?;

        // From here on `pre` holds the hidden rows. The gathered inputs are made again: that
        // is one pass, and keeping them would cost K rows per token and layer.
        let inputs = scratch.slots.all();
        self.gather(back.device, (inputs, x), (kept, batch.rows()))?;
        self.products_backward(back, (pre, dh, dout, inputs), &starts)?;
        self.router_backward(back, (batch, pull), x, (kept, scratch))
    }

    /// The layer's weights in the auxiliary losses [E + 2].
    pub(super) fn pulls<'a>(&self, back: Back<'a>) -> Slice<'a> {
        let first = self.layer * (self.experts + 2);
        back.pulls.at(first..first + self.experts + 2)
    }

    /// The gradient of the experts' outputs by slot, and of the weights of their sum.
    fn combine_backward(
        &self,
        back: Back<'_>,
        batch: &Batch,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let rows = batch.rows();

        let args = [
            (&scratch.slot_gradients).into(),
            (&scratch.routing.dweight).into(),
            (&scratch.dx_copy).into(),
            (&kept.outputs).into(),
            weights.master(&self.fc2.bias).into(),
            (&kept.slots).into(),
            (&kept.starts).into(),
            (&kept.chosen).into(),
            (&kept.weights).into(),
            (rows * self.top_k).into(),
            self.top_k.into(),
            self.shape.width.into(),
            self.experts.into(),
        ];
        device.launch("experts_combine_backward", self.pairs_and_pads(rows), &args)
    }

    /// `dh` = the gradient in front of the activation, `pre` = the hidden rows, and the
    /// gradients of both biases.
    fn hidden_backward(
        &self,
        back: Back<'_>,
        (pre, dh, dout): (Slice<'_>, Slice<'_>, Slice<'_>),
        (starts, segments): (&[usize], Segments<'_>),
        scratch: &Scratch,
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let Shape { width: d, hidden: h, .. } = self.shape;

        // The products overwrite `dout` later, so its sums by column come first.
        let (partial, into) = (&scratch.partial, back.of(&self.fc2.bias));
        ops::column_sums(device, into, dout, segments, partial)?;

        for e in 0..self.experts {
            let (from, to) = (starts[e], starts[e + 1]);
            let weight = weights.real(&self.expert(&self.fc2.weight, e));
            let (dh, dy) = (dh.at(from * h..to * h), dout.at(from * d..to * d));
            self.shape.fc2(to - from).backward_input(device, dh, dy, weight)?;
        }

        let bias = (weights.master(&self.fc1.bias), back.of(&self.fc1.bias));
        self.shape.activate_backward(device, (dh, pre), bias, (segments, partial))
    }

    /// The gradients of the experts' weights; that of their inputs takes the place of that of
    /// their outputs.
    fn products_backward(
        &self,
        back: Back<'_>,
        (hidden, dh, dout, inputs): (Slice<'_>, Slice<'_>, Slice<'_>, Slice<'_>),
        starts: &[usize],
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let Shape { width: d, hidden: h, .. } = self.shape;

        for e in 0..self.experts {
            let (from, to) = (starts[e], starts[e + 1]);
            let (fc1, fc2) = (self.shape.fc1(to - from), self.shape.fc2(to - from));
            let (dy, dh) = (dout.at(from * d..to * d), dh.at(from * h..to * h));
            let into = back.of(&self.expert(&self.fc2.weight, e));
            fc2.backward_weight(device, into, dy, hidden.at(from * h..to * h))?;
            let into = back.of(&self.expert(&self.fc1.weight, e));
            fc1.backward_weight(device, into, dh, inputs.at(from * d..to * d))?;

            // The outputs' gradient is done with.
            let weight = weights.real(&self.expert(&self.fc1.weight, e));
            fc1.backward_input(device, dy, dh, weight)?;
        }
        Ok(())
    }

    /// The gradient of the router, and of the layer's input from both sides.
    fn router_backward(
        &self,
        back: Back<'_>,
        (batch, pull): (&Batch, Slice<'_>),
        x: Slice<'_>,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let (rows, d, e) = (batch.rows(), self.shape.width, self.experts);
        let routing = &scratch.routing;

        let args = [
            (&routing.dlogits).into(),
            (&kept.probabilities).into(),
            (&kept.chosen).into(),
            (&kept.weights).into(),
            (&routing.dweight).into(),
            (&kept.log_sum).into(),
            batch.counted().into(),
            pull.into(),
            rows.into(),
            e.into(),
            self.top_k.into(),
        ];
        device.launch("router_backward", Grid::threads(rows, 128), &args)?;

        // Chunks of a fixed size, summed in order, give the same bits in every run.
        let chunks = rows.div_ceil(ROWS_A_CHUNK);
        let grid = Grid::new([d.div_ceil(256), chunks, e.div_ceil(ABREAST)], 256);
        let partial = scratch.partial.all();
        let args = [
            partial.into(),
            (&routing.dlogits).into(),
            x.into(),
            rows.into(),
            d.into(),
            e.into(),
        ];
        device.launch("router_weights_backward", grid, &args)?;
        ops::sum_partials(device, back.of(&self.router), partial, (chunks, e * d))?;

        // By now `slot_gradients` holds the gradients of the experts' inputs.
        let args = [
            (&scratch.inner).into(),
            (&scratch.slot_gradients).into(),
            (&kept.slots).into(),
            (&routing.dlogits).into(),
            weights.master(&self.router).into(),
            rows.into(),
            self.top_k.into(),
            d.into(),
            e.into(),
        ];
        device.launch("experts_scatter", router_grid(rows), &args)
    }
}

fn router_grid(rows: usize) -> Grid {
    Grid::new([rows.div_ceil(ROUTED * ROUTER_WARPS), 1, 1], 32 * ROUTER_WARPS)
}
