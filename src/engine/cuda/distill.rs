//! Self-distillation of a layer: the ensemble of all experts, for the rows whose routing is
//! least certain.

use super::device::{Device, Grid, Slice};
use super::hidden::Shape;
use super::layout::Weights;
use super::moe::{Moe, MoeState, Routed};
use super::ops::sum_statistics;
use super::pass::{Back, Batch, Ensemble, Pass, Scratch, Selection, largest};
use crate::error::Result;

impl Moe {
    /// `taught.target` [n, d] = the sum over all experts of p E(x); hidden rows are scaled
    /// by p, so that the second products add up without buffers.
    pub(super) fn ensemble(
        &self,
        device: &Device,
        (taught, weights): (&Ensemble, &Weights),
        (x, rows): (Slice<'_>, usize),
        p: Slice<'_>,
    ) -> Result<()> {
        let Shape { width: d, hidden: h, quick } = self.shape;
        let target = taught.target.at(0..rows * d);

        // The second biases begin the sum, and every product adds to it.
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

        // The experts take turns in one buffer: the stream keeps their order.
        let hidden = taught.hidden.at(0..rows * h);
        for e in 0..self.experts {
            let weight = weights.real(&self.expert(&self.fc1.weight, e));
            self.shape.fc1(rows).forward(device, hidden, x, weight)?;

            // The probabilities of one expert lie as far apart as there are experts.
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
    pub(super) fn distill(
        &self,
        (pass, teacher): (Pass<'_>, &Weights),
        batch: &Batch,
        x: Slice<'_>,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let (device, d) = (pass.device, self.shape.width);
        let Some(selection) = batch.selection() else { return Ok(()) };
        let n = selection.total;
        select(device, (batch, selection), (kept, scratch))?;

        let taught = &scratch.routing.taught;
        let inputs = taught.inputs.at(0..n * d);
        let rows = kept.distilled.all();
        let args = [inputs.into(), x.into(), rows.into(), n.into(), d.into()];
        device.launch("distill_gather", Grid::warps(n), &args)?;

        // The teacher has a router of its own.
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
        self.compare(pass, n, (kept, scratch))
    }

    /// Keeps how far the layer's output is from the ensemble's, and adds the squares up.
    fn compare(
        &self,
        pass: Pass<'_>,
        n: usize,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let device = pass.device;

        let args = [
            (&kept.difference).into(),
            (&scratch.partial_f64).into(),
            (&scratch.routing.taught.target).into(),
            (&kept.outputs).into(),
            pass.weights.master(&self.fc2.bias).into(),
            (&kept.slots).into(),
            (&kept.chosen).into(),
            (&kept.weights).into(),
            (&kept.distilled).into(),
            n.into(),
            self.top_k.into(),
            self.shape.width.into(),
        ];
        device.launch("distill_difference", Grid::warps(n), &args)?;

        // Two numbers end each layer's sums: the squares of distance and target.
        let Some(all) = pass.statistics else { return Ok(()) };
        let end = (self.layer + 1) * (5 + 2 * self.experts);
        sum_statistics(device, all.at(end - 2..end), (scratch.partial_f64.all(), n))
    }

    /// Adds the pull towards the ensemble to the gradient of the layer's output.
    pub(super) fn pull(
        &self,
        back: Back<'_>,
        batch: &Batch,
        (kept, scratch): (&MoeState, &Scratch),
    ) -> Result<()> {
        let Some(selection) = batch.selection() else { return Ok(()) };

        // The copy alone is written: the layer is pulled, not the stream.
        let weight = self.pulls(back).at(self.experts + 1..self.experts + 2);
        let args = [
            (&scratch.dx_copy).into(),
            (&scratch.dx).into(),
            (&kept.difference).into(),
            (&kept.distilled).into(),
            weight.into(),
            selection.total.into(),
            self.shape.width.into(),
        ];
        back.device.launch("distill_pull", Grid::warps(selection.total), &args)
    }
}

/// Marks the most uncertain counted rows of each group and lists them in order.
fn select(
    device: &Device,
    (batch, selection): (&Batch, &Selection),
    (kept, scratch): (&MoeState, &Scratch),
) -> Result<()> {
    let (bounds, groups) = batch.groups();
    let marked = &scratch.routing.marked;

    let args = [
        marked.into(),
        (&kept.entropy).into(),
        batch.counted().into(),
        bounds.into(),
        (&selection.keep).into(),
    ];
    let (longest, count) = (largest(groups).div_ceil(256), groups.len() - 1);
    device.launch("uncertain_mark", Grid::new([longest, count, 1], 256), &args)?;

    // One block per group keeps the marked rows in their order.
    let args = [
        (&kept.distilled).into(),
        marked.into(),
        bounds.into(),
        (&selection.offsets).into(),
    ];
    device.launch("uncertain_place", Grid::new([count, 1, 1], 256), &args)
}
