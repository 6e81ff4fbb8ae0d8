//! The transformer of one tower over a micro-batch: forward, and backward by hand.
//!
//! Rows of all samples lie packed, as on the CPU. The residual stream is f32 and kept twice
//! per block, before each norm; the products in between are `real`. What a linear layer of
//! the residual branch yields is added by the norm behind it, in one pass over the rows.

use std::collections::BTreeMap;

use super::attention::{self, Attention};
use super::device::{Buffer, Device, Grid, Kind, Slice};
use super::ffn::Ffn;
use super::layout::Places;
use super::moe::{self, MoeState};
use super::ops::{self, Added, Linear, Moments, NormBack, NormInto, Shape};
use super::pass::{Back, Batch, Pair, Pass, Scratch, Teacher, moments};
use crate::engine::LayerRouting;
use crate::error::Result;
use crate::model::names::{ParameterId, Part};
use crate::model::{ClipConfig, Tower, TowerShape};

#[derive(Debug)]
struct Block {
    ln_1: Pair,
    qkv: Pair,
    out: Pair,
    ln_2: Pair,
    ffn: Ffn,
}

/// What somebody outside takes from every block of a forward pass.
#[derive(Debug)]
pub(super) enum Watch<'a> {
    /// Nothing.
    Nothing,
    /// The FFN inputs of the blocks that are keys.
    Inputs(&'a mut BTreeMap<usize, Vec<f32>>),
    /// How the MoE layers route.
    Routing(&'a mut Vec<LayerRouting>),
}

/// What one block keeps between forward and backward.
#[derive(Debug)]
struct BlockState {
    /// The residual stream at the block's input, and between attention and FFN [N, d].
    x: Buffer,
    middle: Buffer,
    ln_1: Moments,
    ln_2: Moments,
    /// Outputs of both norms [N, d].
    attention_input: Buffer,
    ffn_input: Buffer,
    qkv: Buffer,
    log_sum: Buffer,
    mixed: Buffer,
    /// W1 x of the FFN, without its bias [N, h], or [N K, h] by slot.
    hidden: Buffer,
    moe: MoeState,
}

/// One tower's state over a micro-batch.
#[derive(Debug)]
pub(super) struct TowerState {
    blocks: Vec<BlockState>,
    /// The residual stream behind the last block [N, d].
    pub(super) stream: Buffer,
}

/// The transformer of one tower.
#[derive(Debug)]
pub(super) struct Transformer {
    pub(super) shape: TowerShape,
    blocks: Vec<Block>,
    experts: usize,
    top_k: usize,
}

impl Transformer {
    /// `first_layer` is the number of MoE layers of the towers before.
    pub(super) fn new(
        config: &ClipConfig,
        places: &Places,
        tower: Tower,
        first_layer: usize,
    ) -> Self {
        let shape = config.tower(tower);
        let mut layer = first_layer;
        let block = |index| {
            let pair = |weight, bias| {
                let id = |part| ParameterId::Block(tower, index, part);
                Pair::new(places, id(weight), id(bias))
            };
            let ffn = Ffn::new(config, places, (tower, index), layer);
            layer += usize::from(config.is_moe(tower, index));
            Block {
                ln_1: pair(Part::Ln1Weight, Part::Ln1Bias),
                qkv: pair(Part::InProjWeight, Part::InProjBias),
                out: pair(Part::OutProjWeight, Part::OutProjBias),
                ln_2: pair(Part::Ln2Weight, Part::Ln2Bias),
                ffn,
            }
        };

        let blocks = (0..shape.layers).map(block).collect();
        let (experts, top_k) =
            config.moe.as_ref().map_or((0, 1), |moe| (moe.experts, moe.top_k));
        Self { shape, blocks, experts, top_k }
    }

    /// A state for a backward, or, where none will follow, of the memory of one block.
    pub(super) fn state(&self, device: &Device, light: bool) -> Result<TowerState> {
        let count = if light { 1 } else { self.blocks.len() };
        let blocks =
            (0..count).map(|_| BlockState::new(device)).collect::<Result<_>>()?;
        Ok(TowerState { blocks, stream: device.buffer(Kind::F32, 0)? })
    }

    fn width(&self, rows: usize) -> Shape {
        Shape { rows, width: self.shape.width }
    }

    /// Makes all buffers hold the rows of a batch.
    pub(super) fn fit(
        &self,
        (device, teacher): (&Device, Teacher<'_>),
        batch: &Batch,
        (state, scratch): (&mut TowerState, &mut Scratch),
    ) -> Result<()> {
        let rows = batch.rows();
        let distilled = batch.selection().map_or(0, |own| own.total);
        let TowerShape { width: d, hidden: h, heads, .. } = self.shape;

        // In a light state all blocks share one: it must fit the largest, mixture or not.
        let light = state.blocks.len() < self.blocks.len();
        let most =
            self.blocks.iter().map(|b| b.ffn.product_rows(rows)).max().unwrap_or(rows);
        let mixtures = self.blocks.iter().any(|block| block.ffn.is_moe());

        device.fit(&mut state.stream, rows * d)?;
        for (own, block) in state.blocks.iter_mut().zip(&self.blocks) {
            for buffer in [&mut own.x, &mut own.middle] {
                device.fit(buffer, rows * d)?;
            }
            for buffer in [&mut own.attention_input, &mut own.ffn_input, &mut own.mixed] {
                device.fit(buffer, rows * d)?;
            }
            for moments in [&mut own.ln_1, &mut own.ln_2] {
                device.fit(&mut moments.mean, rows)?;
                device.fit(&mut moments.inverse, rows)?;
            }

            device.fit(&mut own.qkv, rows * 3 * d)?;
            device.fit(&mut own.log_sum, rows * heads)?;
            let hidden = if light { most } else { block.ffn.product_rows(rows) };
            device.fit(&mut own.hidden, hidden * h)?;

            if block.ffn.is_moe() || (light && mixtures) {
                let extents = (rows, distilled, d);
                own.moe.fit(device, extents, (self.experts, self.top_k))?;
            }
        }
        self.fit_scratch((device, teacher), batch, scratch)
    }

    /// Makes the buffers in common hold the rows of a batch: both towers use them in turn.
    pub(super) fn fit_scratch(
        &self,
        (device, teacher): (&Device, Teacher<'_>),
        batch: &Batch,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let TowerShape { width: d, hidden: h, .. } = self.shape;
        let rows = batch.rows();
        let most =
            self.blocks.iter().map(|b| b.ffn.product_rows(rows)).max().unwrap_or(rows);
        let distilled = batch.selection().map_or(0, |own| own.total);

        for buffer in [&mut scratch.product, &mut scratch.inner] {
            device.fit(buffer, rows * d)?;
        }

        device.fit(&mut scratch.routing.moments.mean, rows)?;
        device.fit(&mut scratch.routing.moments.inverse, rows)?;
        device.fit(&mut scratch.hidden, most * h)?;
        let partial = self.partials(rows);
        device.fit(&mut scratch.partial, partial)?;

        if self.experts > 0 {
            device.fit(&mut scratch.slots, most * d)?;
            scratch.routing.fit(device, rows, (self.experts, self.top_k))?;

            // A whole ensemble runs every row, a student's teacher only some.
            let taught = match teacher {
                Teacher::IsEnsemble => rows,
                Teacher::None | Teacher::Ensemble(..) => distilled,
            };
            let experts = (self.experts, self.top_k);
            scratch.routing.fit_ensemble(device, taught, (d, h), experts)?;

            // Statistics leave 3 + 2E sums per 256 rows, distillation two per row.
            device.fit(
                &mut scratch.partial_f64,
                rows.div_ceil(256) * (3 + 2 * self.experts) + 2 * rows,
            )?;
        }
        Ok(())
    }

    /// Room for a backward, on top of [`Self::fit_scratch`].
    pub(super) fn fit_backward(
        &self,
        device: &Device,
        batch: &Batch,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (TowerShape { width: d, heads, .. }, rows) = (self.shape, batch.rows());
        self.fit_scratch((device, Teacher::None), batch, scratch)?;

        device.fit(&mut scratch.dx, rows * d)?;
        device.fit(&mut scratch.dx_copy, rows * d)?;
        device.fit(&mut scratch.dqkv, rows * 3 * d)?;
        device.fit(&mut scratch.delta, rows * heads)?;
        let slots = if self.experts > 0 { self.slots(rows) } else { 0 };
        device.fit(&mut scratch.slot_gradients, slots * d)
    }

    /// Slots of a mixture's rows; an expert may own all of them.
    fn slots(&self, rows: usize) -> usize {
        moe::slots(rows * self.top_k, self.experts)
    }

    /// Floats of the largest partial sums of a backward over `rows` rows: by norms, by
    /// columns of one expert or of all (an expert may own every pair), by routers.
    fn partials(&self, rows: usize) -> usize {
        let TowerShape { width: d, hidden: h, .. } = self.shape;
        let chunks = self.slots(rows).div_ceil(ops::ROWS_A_CHUNK);
        let columns = (3 * d).max(h);
        ops::norm_partials(self.width(rows))
            .max(chunks * columns * self.experts.max(1))
            .max(rows.div_ceil(ops::ROWS_A_CHUNK) * self.experts * d)
    }

    /// Runs all blocks from [`input`] to `state.stream`.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        batch: &Batch,
        (state, scratch): (&TowerState, &Scratch),
        mut watch: Watch<'_>,
    ) -> Result<()> {
        let Pass { device, weights, .. } = pass;
        let (d, rows) = (self.shape.width, batch.rows());
        let (shape, last) = (self.width(rows), state.blocks.len() - 1);
        // Product and bias of a dense FFN wait here for the next norm, which adds them.
        let mut product: Option<(Slice<'_>, Slice<'_>)> = None;
        for (index, block) in self.blocks.iter().enumerate() {
            // A light state has one block, which every index means.
            let own = &state.blocks[index.min(last)];
            let before = &state.blocks[index.saturating_sub(1).min(last)];

            // Behind a mixture there is nothing to add: it has written the stream itself.
            let norm = (block.ln_1.affine(weights), &own.ln_1);
            let (x, added) = match product {
                Some((from, bias)) => {
                    let added = Added { out: own.x.all(), branch: from, bias };
                    (before.middle.all(), Some(added))
                }
                None => (own.x.all(), None),
            };
            ops::norm(device, (own.attention_input.all(), x), added, norm, shape)?;

            let linear = Linear { rows, inputs: d, outputs: 3 * d };
            let weight = weights.real(&block.qkv.weight);
            linear.forward(device, own.qkv.all(), own.attention_input.all(), weight)?;

            let bias = weights.master(&block.qkv.bias);
            let args = [(&own.qkv).into(), bias.into(), rows.into(), (3 * d).into()];
            device.launch("bias_rows", Grid::warps(rows), &args)?;
            attention::forward(device, own.attention(), self.shape, batch)?;

            let linear = Linear { rows, inputs: d, outputs: d };
            let weight = weights.real(&block.out.weight);
            linear.forward(device, scratch.product.all(), own.mixed.all(), weight)?;

            let bias = weights.master(&block.out.bias);
            let added =
                Added { out: own.middle.all(), branch: scratch.product.all(), bias };
            let norm = (block.ln_2.affine(weights), &own.ln_2);
            let (y, x) = (own.ffn_input.all(), own.x.all());
            ops::norm(device, (y, x), Some(added), norm, shape)?;

            // A mixture writes here: the next block's input, or what the tower gives.
            let next = match state.blocks.get(index + 1) {
                _ if index + 1 == self.blocks.len() => state.stream.all(),
                Some(next) => next.x.all(),
                None => own.x.all(),
            };
            let stream = (own.middle.all(), next);
            let kept = (own.hidden.all(), &own.moe);
            let input = own.ffn_input.all();
            let bias =
                block.ffn.forward(pass, batch, (input, stream), (kept, scratch))?;
            product = bias.map(|bias| (scratch.product.all(), bias));

            // In a light state the next block writes over all of this.
            watch.take(device, (index, block), own, batch)?;
        }
        // A dense last block leaves its product to be added; the norm's output is not used.
        if let Some((added, bias)) = product {
            let (own, block) = (&state.blocks[last], &self.blocks[self.blocks.len() - 1]);
            let added = Added { out: state.stream.all(), branch: added, bias };
            let norm = (block.ln_1.affine(weights), &scratch.routing.moments);
            let y = scratch.inner.all();
            ops::norm(device, (y, own.middle.all()), Some(added), norm, shape)?;
        }
        Ok(())
    }

    /// Turns the stream's gradient in `scratch`, that of the blocks' output, into that of
    /// their input, and adds to the parameters' gradients.
    pub(super) fn backward(
        &self,
        back: Back<'_>,
        batch: &Batch,
        (state, scratch): (&TowerState, &Scratch),
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let (d, rows) = (self.shape.width, batch.rows());
        let shape = self.width(rows);

        // Other such biases are summed by the next block's norm; no block follows here.
        if let Some(bias) = self.blocks.last().and_then(|block| block.ffn.stream_bias()) {
            let into = back.of(bias);
            let dy = scratch.dx_copy.all();
            ops::column_sums(device, into, dy, batch.whole(), &scratch.partial)?;
        }

        for (index, block) in self.blocks.iter().enumerate().rev() {
            let own = &state.blocks[index];
            let kept = (own.hidden.all(), &own.moe);
            block.ffn.backward(back, batch, own.ffn_input.all(), (kept, scratch))?;

            // The branch's gradient is added to the stream's, which went past it.
            let of = NormBack {
                dy: scratch.inner.all(),
                x: own.middle.all(),
                moments: &own.ln_2,
                gain: weights.master(&block.ln_2.weight),
                shape,
                add: true,
            };

            // The output projection's bias was added in front of this norm.
            let into = NormInto {
                affine: block.ln_2.gradient(back.gradient),
                bias: Some(back.of(&block.out.bias)),
            };
            ops::norm_backward(device, scratch.stream(), of, into, &scratch.partial)?;

            let linear = Linear { rows, inputs: d, outputs: d };
            let (dy, x) = (scratch.dx_copy.all(), own.mixed.all());
            linear.backward_weight(device, back.of(&block.out.weight), dy, x)?;
            let weight = weights.real(&block.out.weight);
            linear.backward_input(device, scratch.inner.all(), dy, weight)?;

            // Attention is the last to read `inner`, which then takes the next gradient.
            let gradients = (scratch.dqkv.all(), scratch.inner.all(), &scratch.delta);
            attention::backward(device, gradients, own.attention(), (self.shape, batch))?;

            let into = back.of(&block.qkv.bias);
            let dqkv = scratch.dqkv.all();
            ops::column_sums(device, into, dqkv, batch.whole(), &scratch.partial)?;
            let linear = Linear { rows, inputs: d, outputs: 3 * d };
            let x = own.attention_input.all();
            linear.backward_weight(device, back.of(&block.qkv.weight), dqkv, x)?;
            let weight = weights.real(&block.qkv.weight);
            linear.backward_input(device, scratch.inner.all(), dqkv, weight)?;

            // The first norm sums the bias of the block before, where that one is dense.
            let before =
                index.checked_sub(1).and_then(|i| self.blocks[i].ffn.stream_bias());
            let of = NormBack {
                dy: scratch.inner.all(),
                x: own.x.all(),
                moments: &own.ln_1,
                gain: weights.master(&block.ln_1.weight),
                shape,
                add: true,
            };
            let into = NormInto {
                affine: block.ln_1.gradient(back.gradient),
                bias: before.map(|bias| back.of(bias)),
            };
            ops::norm_backward(device, scratch.stream(), of, into, &scratch.partial)?;
        }
        Ok(())
    }
}

impl BlockState {
    fn new(device: &Device) -> Result<Self> {
        let real = || device.buffer(device.real(), 0);
        let float = || device.buffer(Kind::F32, 0);
        Ok(Self {
            x: float()?,
            middle: float()?,
            ln_1: moments(device)?,
            ln_2: moments(device)?,
            attention_input: real()?,
            ffn_input: real()?,
            qkv: real()?,
            log_sum: float()?,
            mixed: real()?,
            hidden: real()?,
            moe: MoeState::new(device)?,
        })
    }

    fn attention(&self) -> Attention<'_> {
        Attention { qkv: self.qkv.all(), out: self.mixed.all(), log_sum: &self.log_sum }
    }
}

impl Watch<'_> {
    fn take(
        &mut self,
        device: &Device,
        (index, block): (usize, &Block),
        own: &BlockState,
        batch: &Batch,
    ) -> Result<()> {
        match self {
            Self::Nothing => {}
            Self::Inputs(kept) => {
                if let Some(kept) = kept.get_mut(&index) {
                    kept.extend(reals(device, &own.ffn_input)?);
                }
            }
            Self::Routing(layers) => {
                if block.ffn.is_moe() {
                    layers.push(own.routing(device, index, batch)?);
                }
            }
        }

        Ok(())
    }
}

impl BlockState {
    /// How the counted rows were routed.
    fn routing(
        &self,
        device: &Device,
        block: usize,
        batch: &Batch,
    ) -> Result<LayerRouting> {
        let inputs = reals(device, &self.ffn_input)?;
        let probabilities: Vec<f32> = device.download(&self.moe.probabilities)?;
        let chosen: Vec<i32> = device.download(&self.moe.chosen)?;
        let chosen: Vec<u32> = chosen.iter().map(|e| e.cast_unsigned()).collect();

        let counted = batch.host_counted();
        Ok(LayerRouting {
            block,
            inputs: counted_rows(&inputs, counted),
            probabilities: counted_rows(&probabilities, counted),
            chosen: counted_rows(&chosen, counted),
        })
    }
}

/// The rows that count.
fn counted_rows<T: Copy>(values: &[T], counted: &[bool]) -> Vec<T> {
    let width = values.len() / counted.len().max(1);
    let rows = values.chunks_exact(width.max(1)).zip(counted);
    rows.filter(|(_, own)| **own).flat_map(|(row, _)| row).copied().collect()
}

/// Activations as f32.
fn reals(device: &Device, buffer: &Buffer) -> Result<Vec<f32>> {
    if device.real() == Kind::F32 {
        return device.download(buffer);
    }

    // A bf16 is the upper half of an f32.
    let bits: Vec<u16> = device.download(buffer)?;
    Ok(bits.into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect())
}

/// The place of the stream that the embedding fills.
pub(super) fn input(state: &TowerState) -> Slice<'_> {
    state.blocks[0].x.all()
}
