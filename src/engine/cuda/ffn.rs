//! The FFN of a block: dense, or a mixture of experts with its auxiliary losses.
//!
//! A dense FFN leaves its product to the norm behind it, which adds product and bias to the
//! stream. A mixture writes the stream itself, because its rows come back from their
//! experts one by one.
//!
//! The only numbers that the host waits for within a step are the E + 1 bounds of the
//! experts' rows: cuBLAS needs extents. They are read back while the rows are gathered.

use std::ops::Range;

use super::device::{Buffer, Device, Grid, Kind, Slice};
use super::layout::{Places, Weights};
use super::ops::{self, Linear, ROWS_A_CHUNK, Segments};
use super::pass::{
    Back, Batch, Ensemble, HostStarts, Pair, Pass, SORTED, Scratch, Teacher, bounds,
    largest,
};
use crate::config::Activation;
use crate::error::Result;
use crate::model::names::{ParameterId, Part};
use crate::model::{ClipConfig, Tower};

/// Tokens that one warp of the router's kernels handles, and warps of their blocks.
const ROUTED: usize = 4;
const ROUTER_WARPS: usize = 4;

/// Experts whose sums one thread holds side by side (`kernels/router.cuh`).
const ABREAST: usize = 8;

/// Extents of an FFN.
#[derive(Debug, Clone, Copy)]
struct Shape {
    width: usize,
    hidden: usize,
    quick: bool,
}

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

#[derive(Debug)]
pub(super) struct Moe {
    router: Range<usize>,
    fc1: Pair,
    fc2: Pair,
    shape: Shape,
    experts: usize,
    top_k: usize,
    /// The layer's number among the MoE layers of both towers.
    layer: usize,
}

/// What a mixture keeps between forward and backward.
#[derive(Debug)]
pub(super) struct MoeState {
    /// Softmax over the experts [N, E].
    pub(super) probabilities: Buffer,
    /// Chosen experts [N, K], best first.
    pub(super) chosen: Buffer,
    /// Their renormalized weights [N, K].
    weights: Buffer,
    log_sum: Buffer,
    entropy: Buffer,
    /// Bounds of the experts' slots [E + 1], also on the host.
    starts: Buffer,
    host_starts: HostStarts,
    /// The slot of each pair, and the pair of each slot [N K].
    slots: Buffer,
    pairs: Buffer,
    /// The experts' outputs by slot, without their bias [N K, d].
    outputs: Buffer,
    /// Distilled rows and how far the layer's output is from the ensemble's [n, d].
    distilled: Buffer,
    difference: Buffer,
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
            pairs: make(Kind::I32)?,
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
        device.fit(&mut self.starts, experts + 1)?;
        for buffer in
            [&mut self.chosen, &mut self.weights, &mut self.slots, &mut self.pairs]
        {
            device.fit(buffer, rows * k)?;
        }
        for buffer in [&mut self.log_sum, &mut self.entropy] {
            device.fit(buffer, rows)?;
        }
        device.fit(&mut self.outputs, rows * k * d)?;
        device.fit(&mut self.distilled, distilled)?;
        device.fit(&mut self.difference, distilled * d)
    }
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

impl Shape {
    fn fc1(self, rows: usize) -> Linear {
        Linear { rows, inputs: self.width, outputs: self.hidden }
    }

    fn fc2(self, rows: usize) -> Linear {
        Linear { rows, inputs: self.hidden, outputs: self.width }
    }

    /// `hidden` = act(`pre` + bias), by segments.
    fn activate(
        self,
        device: &Device,
        (hidden, pre): (Slice<'_>, Slice<'_>),
        bias: Slice<'_>,
        (segments, rows): (Segments<'_>, usize),
    ) -> Result<()> {
        let args = [
            hidden.into(),
            pre.into(),
            bias.into(),
            segments.starts.into(),
            segments.experts.into(),
            self.hidden.into(),
            self.quick.into(),
            None.into(),
            0_usize.into(),
        ];
        device.launch("bias_activation", Grid::new([rows, 1, 1], 128), &args)
    }

    /// `dh` becomes the gradient in front of the activation, `pre` the hidden rows; the
    /// biases' gradient goes to `into`.
    fn activate_backward(
        self,
        device: &Device,
        (dh, pre): (Slice<'_>, Slice<'_>),
        (bias, into, beta): (Slice<'_>, Slice<'_>, f32),
        (segments, partial): (Segments<'_>, &Buffer),
    ) -> Result<()> {
        let args = [
            dh.into(),
            pre.into(),
            partial.into(),
            bias.into(),
            segments.starts.into(),
            self.hidden.into(),
            self.quick.into(),
        ];
        device.launch("bias_activation_backward", segments.grid(self.hidden), &args)?;
        ops::sum_chunks(device, (into, beta), segments, partial)
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
        let Back { device, weights, beta, .. } = back;
        let (rows, shape) = (batch.rows(), self.shape);
        let (dy, dh) = (scratch.dx_copy.all(), scratch.hidden.all());
        shape.fc2(rows).backward_input(device, dh, dy, weights.real(&self.fc2.weight))?;
        let bias = (weights.master(&self.fc1.bias), back.of(&self.fc1.bias), beta);
        shape.activate_backward(
            device,
            (dh, pre),
            bias,
            (batch.whole(), &scratch.partial),
        )?;
        // From here on `pre` holds the hidden rows.
        shape.fc2(rows).backward_weight(
            device,
            (back.of(&self.fc2.weight), beta),
            dy,
            pre,
        )?;
        shape.fc1(rows).backward_weight(
            device,
            (back.of(&self.fc1.weight), beta),
            dh,
            x,
        )?;
        let (dx, weight) = (scratch.inner.all(), weights.real(&self.fc1.weight));
        shape.fc1(rows).backward_input(device, dx, dh, weight)
    }
}

/// Where a routing goes.
#[derive(Debug, Clone, Copy)]
struct Routed<'a> {
    probabilities: &'a Buffer,
    chosen: &'a Buffer,
    weights: &'a Buffer,
    log_sum: &'a Buffer,
    entropy: &'a Buffer,
}

impl Moe {
    /// One expert's part of a stack of matrices.
    fn expert(&self, stack: &Range<usize>, e: usize) -> Range<usize> {
        let size = stack.len() / self.experts;
        stack.start + e * size..stack.start + (e + 1) * size
    }

    fn route(
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

    fn forward(
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
        self.sort(device, rows, (kept, &scratch.routing.counts))?;
        let counts = device.read_back(&kept.starts)?;
        self.gather(device, (scratch.slots.all(), x), (kept, rows))?;
        let starts = bounds(&counts.wait::<i32>()?);
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
        let (hidden, bias) = (scratch.hidden.all(), weights.master(&self.fc1.bias));
        let pairs = starts[self.experts];
        let segments = self.segments(kept, starts);
        self.shape.activate(device, (hidden, pre), bias, (segments, pairs))?;
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
        let args = [counts.into(), (&kept.starts).into(), chunks.into(), experts.into()];
        device.launch("experts_scan", Grid::new([1, 1, 1], 1024), &args)?;
        let args = [
            (&kept.slots).into(),
            (&kept.pairs).into(),
            counts.into(),
            chosen.into(),
            pairs.into(),
            experts.into(),
        ];
        device.launch("experts_place", grid, &args)
    }

    /// `slots` = the rows of `x` in the experts' order.
    fn gather(
        &self,
        device: &Device,
        (slots, x): (Slice<'_>, Slice<'_>),
        (kept, rows): (&MoeState, usize),
    ) -> Result<()> {
        let pairs = rows * self.top_k;
        let args = [
            slots.into(),
            x.into(),
            (&kept.pairs).into(),
            pairs.into(),
            self.top_k.into(),
            self.shape.width.into(),
        ];
        device.launch("experts_gather", Grid::warps(pairs), &args)
    }

    /// `taught.target` [n, d] = the sum over all experts of p E(x); hidden rows are scaled
    /// by p, so that the second products add up without buffers.
    fn ensemble(
        &self,
        device: &Device,
        (taught, weights): (&Ensemble, &Weights),
        (x, rows): (Slice<'_>, usize),
        p: Slice<'_>,
    ) -> Result<()> {
        let Shape { width: d, hidden: h, quick } = self.shape;
        let target = taught.target.at(0..rows * d);
        let bias = weights.master(&self.fc2.bias);
        let args = [
            target.into(),
            p.into(),
            bias.into(),
            rows.into(),
            d.into(),
            self.experts.into(),
        ];
        device.launch("ensemble_bias", Grid::warps(rows), &args)?;
        let hidden = taught.hidden.at(0..rows * h);
        for e in 0..self.experts {
            let weight = weights.real(&self.expert(&self.fc1.weight, e));
            self.shape.fc1(rows).forward(device, hidden, x, weight)?;
            let bias = weights.master(&self.expert(&self.fc1.bias, e));
            let args = [
                hidden.into(),
                hidden.into(),
                bias.into(),
                None.into(),
                1_usize.into(),
                h.into(),
                quick.into(),
                p.at(e..p.len()).into(),
                self.experts.into(),
            ];
            device.launch("bias_activation", Grid::new([rows, 1, 1], 128), &args)?;
            let weight = weights.real(&self.expert(&self.fc2.weight, e));
            self.shape.fc2(rows).forward_beta(device, (target, 1.0), hidden, weight)?;
        }
        Ok(())
    }

    /// Runs the teacher on the most uncertain counted rows and keeps how far the layer's
    /// output is from it.
    fn distill(
        &self,
        (pass, teacher): (Pass<'_>, &Weights),
        batch: &Batch,
        x: Slice<'_>,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let (device, d) = (pass.device, self.shape.width);
        let Some(selection) = batch.selection() else { return Ok(()) };
        let (n, groups) = (selection.total, batch.groups().1.len() - 1);
        let routing = &scratch.routing;
        let args = [
            (&routing.marked).into(),
            (&kept.entropy).into(),
            batch.counted().into(),
            batch.groups().0.into(),
            (&selection.keep).into(),
        ];
        let longest = largest(batch.groups().1).div_ceil(256);
        device.launch("uncertain_mark", Grid::new([longest, groups, 1], 256), &args)?;
        let args = [
            (&kept.distilled).into(),
            (&routing.marked).into(),
            batch.groups().0.into(),
            (&selection.offsets).into(),
        ];
        device.launch("uncertain_place", Grid::new([groups, 1, 1], 256), &args)?;
        let taught = &routing.taught;
        let inputs = taught.inputs.at(0..n * d);
        let rows = kept.distilled.all();
        let args = [inputs.into(), x.into(), rows.into(), n.into(), d.into()];
        device.launch("distill_gather", Grid::warps(n), &args)?;
        let into = Routed {
            probabilities: &taught.probabilities,
            chosen: &taught.chosen,
            weights: &taught.weights,
            log_sum: &taught.log_sum,
            entropy: &taught.entropy,
        };
        self.route(device, (inputs, n), teacher.master(&self.router), into)?;
        let p = taught.probabilities.at(0..n * self.experts);
        self.ensemble(device, (taught, teacher), (inputs, n), p)?;
        let args = [
            (&kept.difference).into(),
            (&scratch.partial_f64).into(),
            (&taught.target).into(),
            (&kept.outputs).into(),
            pass.weights.master(&self.fc2.bias).into(),
            (&kept.slots).into(),
            (&kept.chosen).into(),
            (&kept.weights).into(),
            rows.into(),
            n.into(),
            self.top_k.into(),
            d.into(),
        ];
        device.launch("distill_difference", Grid::warps(n), &args)?;
        let Some(all) = pass.statistics else { return Ok(()) };
        let end = (self.layer + 1) * (5 + 2 * self.experts);
        sum_statistics(device, all.at(end - 2..end), (scratch.partial_f64.all(), n))
    }

    fn backward(
        &self,
        back: Back<'_>,
        batch: &Batch,
        x: Slice<'_>,
        ((pre, kept), scratch): ((Slice<'_>, &MoeState), &Scratch),
    ) -> Result<()> {
        let Back { device, weights, beta, .. } = back;
        let Shape { width: d, hidden: h, .. } = self.shape;
        let rows = batch.rows();
        let starts = kept.host_starts.borrow();
        let segments = self.segments(kept, &starts);
        let pulls = self.layer * (self.experts + 2);
        let pull = back.pulls.at(pulls..pulls + self.experts + 2);
        if let Some(selection) = batch.selection() {
            let args = [
                (&scratch.dx_copy).into(),
                (&scratch.dx).into(),
                (&kept.difference).into(),
                (&kept.distilled).into(),
                pull.at(self.experts + 1..self.experts + 2).into(),
                selection.total.into(),
                d.into(),
            ];
            device.launch("distill_pull", Grid::warps(selection.total), &args)?;
        }
        let (dout, routing) = (scratch.slot_gradients.all(), &scratch.routing);
        let pairs = rows * self.top_k;
        let args = [
            dout.into(),
            (&routing.dweight).into(),
            (&scratch.dx_copy).into(),
            (&kept.outputs).into(),
            weights.master(&self.fc2.bias).into(),
            (&kept.slots).into(),
            (&kept.chosen).into(),
            (&kept.weights).into(),
            pairs.into(),
            self.top_k.into(),
            d.into(),
        ];
        device.launch("experts_combine_backward", Grid::warps(pairs), &args)?;
        let (partial, dh) = (&scratch.partial, scratch.hidden.all());
        ops::column_sums(
            device,
            (back.of(&self.fc2.bias), beta),
            dout,
            segments,
            partial,
        )?;
        for e in 0..self.experts {
            let (from, to) = (starts[e], starts[e + 1]);
            let weight = weights.real(&self.expert(&self.fc2.weight, e));
            let (dh, dy) = (dh.at(from * h..to * h), dout.at(from * d..to * d));
            self.shape.fc2(to - from).backward_input(device, dh, dy, weight)?;
        }
        let bias = (weights.master(&self.fc1.bias), back.of(&self.fc1.bias), beta);
        self.shape.activate_backward(device, (dh, pre), bias, (segments, partial))?;
        // From here on `pre` holds the hidden rows. The gathered inputs are made again: that
        // is one pass, and keeping them would cost K rows per token and layer.
        let inputs = scratch.slots.all();
        self.gather(device, (inputs, x), (kept, rows))?;
        for e in 0..self.experts {
            let (from, to) = (starts[e], starts[e + 1]);
            let (fc1, fc2) = (self.shape.fc1(to - from), self.shape.fc2(to - from));
            let (dy, dh) = (dout.at(from * d..to * d), dh.at(from * h..to * h));
            let into = (back.of(&self.expert(&self.fc2.weight, e)), beta);
            fc2.backward_weight(device, into, dy, pre.at(from * h..to * h))?;
            let into = (back.of(&self.expert(&self.fc1.weight, e)), beta);
            fc1.backward_weight(device, into, dh, inputs.at(from * d..to * d))?;
            // The outputs' gradient is done with; the inputs' takes its place.
            let weight = weights.real(&self.expert(&self.fc1.weight, e));
            fc1.backward_input(device, dy, dh, weight)?;
        }
        self.router_backward(back, (batch, pull), x, (kept, scratch))
    }

    /// The gradient of the router, and of the layer's input from both sides.
    fn router_backward(
        &self,
        back: Back<'_>,
        (batch, pull): (&Batch, Slice<'_>),
        x: Slice<'_>,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let Back { device, weights, beta, .. } = back;
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
        ops::sum_partials(device, back.of(&self.router), partial, (chunks, e * d), beta)?;
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

/// `into` += the sums of `count` rows of partial sums.
pub(super) fn sum_statistics(
    device: &Device,
    into: Slice<'_>,
    (partial, count): (Slice<'_>, usize),
) -> Result<()> {
    let width = into.len();
    let args = [into.into(), partial.into(), count.into(), width.into()];
    device.launch("sum_statistics", Grid::new([width, 1, 1], 256), &args)
}
