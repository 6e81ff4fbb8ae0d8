//! Both towers with their heads: uploaded rows to raw embeddings, and the gradients back.

use std::ops::Range;

use super::device::{Arg, Buffer, Device, Extents, Grid, Kind, Operand, Slice};
use super::layout::Places;
use super::ops::{self, Linear, Moments, NormBack, NormInto, Shape, Stream};
use super::pass::{Back, Batch, Pair, Pass, Scratch, Teacher, moments};
use super::tower::{self, TowerState, Transformer, Watch};
use super::uploaded::{Captions, Input, Pictures, Uploaded};
use crate::error::Result;
use crate::model::names::ParameterId;
use crate::model::{ClipConfig, Tower};

/// Where both towers' parameters lie.
#[derive(Debug)]
pub(super) struct Clip {
    config: ClipConfig,
    vision: Head,
    text: Head,
    patch: Range<usize>,
    class: Range<usize>,
    token: Range<usize>,
    pre_norm: Pair,
}

/// What both towers have: positions, blocks, a norm and a projection.
#[derive(Debug)]
struct Head {
    position: Range<usize>,
    blocks: Transformer,
    norm: Pair,
    projection: Range<usize>,
    embed_dim: usize,
}

/// What a head keeps beside its blocks' states.
#[derive(Debug)]
pub(super) struct HeadState {
    blocks: TowerState,
    pooled: Buffer,
    norm: Moments,
    normed: Buffer,
    dnormed: Buffer,
    dpooled: Buffer,
    dpooled_copy: Buffer,
    patches: Buffer,
    embedded: Buffer,
    raw: Buffer,
    pre_norm: Moments,
}

impl Head {
    fn new(
        config: &ClipConfig,
        places: &Places,
        tower: Tower,
        first_layer: usize,
    ) -> Self {
        let (weight, bias) =
            (ParameterId::PostNormWeight(tower), ParameterId::PostNormBias(tower));
        Self {
            position: places.range(ParameterId::PositionEmbedding(tower)),
            blocks: Transformer::new(config, places, tower, first_layer),
            norm: Pair::new(places, weight, bias),
            projection: places.range(ParameterId::Projection(tower)),
            embed_dim: config.embed_dim,
        }
    }

    fn width(&self) -> usize {
        self.blocks.shape.width
    }

    fn projected(&self, samples: usize) -> Extents {
        Extents { m: samples, n: self.embed_dim, k: self.width() }
    }
}

impl Clip {
    pub(super) fn new(config: &ClipConfig, places: &Places) -> Self {
        let first = config.moe_blocks(Tower::Vision).len();
        Self {
            vision: Head::new(config, places, Tower::Vision, 0),
            text: Head::new(config, places, Tower::Text, first),
            patch: places.range(ParameterId::PatchEmbedding),
            class: places.range(ParameterId::ClassEmbedding),
            token: places.range(ParameterId::TokenEmbedding),
            pre_norm: Pair::new(
                places,
                ParameterId::PreNormWeight,
                ParameterId::PreNormBias,
            ),
            config: config.clone(),
        }
    }

    fn head(&self, tower: Tower) -> &Head {
        match tower {
            Tower::Vision => &self.vision,
            Tower::Text => &self.text,
        }
    }

    /// The state of a tower for a backward, or without one.
    pub(super) fn state(
        &self,
        device: &Device,
        tower: Tower,
        light: bool,
    ) -> Result<HeadState> {
        let real = || device.buffer(device.real(), 0);
        let float = || device.buffer(Kind::F32, 0);

        Ok(HeadState {
            blocks: self.head(tower).blocks.state(device, light)?,
            pooled: float()?,
            norm: moments(device)?,
            normed: real()?,
            dnormed: real()?,
            dpooled: float()?,
            dpooled_copy: real()?,
            patches: real()?,
            embedded: real()?,
            raw: float()?,
            pre_norm: moments(device)?,
        })
    }

    /// Runs a tower; raw embeddings [n, P] go to `into`.
    pub(super) fn forward(
        &self,
        pass: Pass<'_>,
        (tower, rows): (Tower, &Uploaded),
        (state, scratch): (&mut HeadState, &mut Scratch),
        (into, watch): (Slice<'_>, Watch<'_>),
    ) -> Result<()> {
        let Pass { device, weights, teacher, .. } = pass;
        let (head, batch) = (self.head(tower), &rows.batch);

        head.blocks.fit((device, teacher), batch, (&mut state.blocks, scratch))?;
        state.fit(device, (batch.samples(), head.width()))?;

        match &rows.input {
            Input::Pictures(pixels) => {
                self.embed_pictures(pass, (pixels, batch), state)?;
            }
            Input::Captions(captions) => {
                let args = [
                    tower::input(&state.blocks).into(),
                    (&captions.ids).into(),
                    (&captions.places).into(),
                    weights.master(&self.token).into(),
                    weights.master(&head.position).into(),
                    batch.rows().into(),
                    head.width().into(),
                ];
                device.launch("captions_embed", Grid::warps(batch.rows()), &args)?;
            }
        }

        head.blocks.forward(pass, batch, (&state.blocks, scratch), watch)?;

        // From here on only the row that makes the embedding is needed, one per sample.
        let (samples, d) = (batch.samples(), head.width());
        let args = [
            (&state.pooled).into(),
            (&state.blocks.stream).into(),
            batch.pooled().into(),
            samples.into(),
            d.into(),
        ];
        device.launch("rows_gather", Grid::warps(samples), &args)?;
        let norm = (head.norm.affine(weights), &state.norm);
        let shape = Shape { rows: samples, width: d };
        let (y, x) = (state.normed.all(), state.pooled.all());
        ops::norm(device, (y, x), None, norm, shape)?;

        let projection = Operand::new(weights.real(&head.projection), head.embed_dim);
        let operands = (Operand::new(y, d), projection);
        device.gemm((into, head.embed_dim), operands, head.projected(samples), 0.0)
    }

    fn embed_pictures(
        &self,
        pass: Pass<'_>,
        (pictures, batch): (&Pictures, &Batch),
        state: &mut HeadState,
    ) -> Result<()> {
        let Pass { device, weights, .. } = pass;
        let vision = &self.config.vision;
        let (d, tokens) = (vision.width, self.vision.blocks.shape.tokens);
        let (samples, rows) = (batch.samples(), batch.rows());
        let (patches, values) = (samples * (tokens - 1), 3 * vision.patch * vision.patch);

        device.fit(&mut state.patches, patches * values)?;
        device.fit(&mut state.embedded, patches * d)?;
        device.fit(&mut state.raw, rows * d)?;
        device.fit(&mut state.pre_norm.mean, rows)?;
        device.fit(&mut state.pre_norm.inverse, rows)?;

        // The stream of kernels waits here until the pixels have come; the host goes on.
        let pixels = pictures.pixels.arrived(device)?;
        let sizes = [vision.image_size, vision.patch, samples].map(Arg::from);

        // At most 65536 blocks: threads go on with the value one grid further.
        let grid = Grid::new([(patches * values).div_ceil(256).min(1 << 16), 1, 1], 256);
        let (out, pixels) = (Arg::from(&state.patches), Arg::from(pixels));
        if let Some(lines) = &pictures.lines {
            let args = [&[out, pixels, lines.into()][..], &sizes].concat();
            device.launch("patches_cut_levels", grid, &args)?;
        } else {
            let args = [&[out, pixels][..], &sizes].concat();
            device.launch("patches_cut", grid, &args)?;
        }

        // Patches do not overlap, so the convolution is one product.
        let linear = Linear { rows: patches, inputs: values, outputs: d };
        let weight = weights.real(&self.patch);
        linear.forward(device, state.embedded.all(), state.patches.all(), weight)?;

        let args = [
            (&state.raw).into(),
            (&state.embedded).into(),
            weights.master(&self.class).into(),
            weights.master(&self.vision.position).into(),
            rows.into(),
            tokens.into(),
            d.into(),
        ];
        device.launch("patches_embed", Grid::warps(rows), &args)?;

        let norm = (self.pre_norm.affine(weights), &state.pre_norm);
        let x = tower::input(&state.blocks);
        ops::norm_stream(device, (x, state.raw.all()), norm, Shape { rows, width: d })
    }

    /// Adds to the gradient of every parameter of a tower, from that of its raw embeddings
    /// [n, P] as products read it.
    pub(super) fn backward(
        &self,
        back: Back<'_>,
        (tower, rows): (Tower, &Uploaded),
        dembedding: Slice<'_>,
        (state, scratch): (&mut HeadState, &mut Scratch),
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let (head, batch) = (self.head(tower), &rows.batch);
        let (samples, d) = (batch.samples(), head.width());
        let width = head.embed_dim;

        // The other tower may have left scratch at its own sizes.
        head.blocks.fit_backward(device, batch, scratch)?;

        let operands = (
            Operand::new(state.normed.all(), d).turned(),
            Operand::new(dembedding, width),
        );
        let extents = Extents { m: d, n: width, k: samples };
        device.gemm((back.of(&head.projection), width), operands, extents, 0.0)?;

        let projection = Operand::new(weights.real(&head.projection), width).turned();
        let operands = (Operand::new(dembedding, width), projection);
        let extents = Extents { m: samples, n: d, k: width };
        device.gemm((state.dnormed.all(), d), operands, extents, 0.0)?;
        let of = NormBack {
            dy: state.dnormed.all(),
            x: state.pooled.all(),
            moments: &state.norm,
            gain: weights.master(&head.norm.weight),
            shape: Shape { rows: samples, width: d },
            add: false,
        };
        let affine = head.norm.gradient(back.gradient);
        let into = NormInto { affine, bias: None };

        // Only pooled rows went through this norm: their gradient has buffers of its own.
        let stream = Stream { dx: state.dpooled.all(), copy: state.dpooled_copy.all() };
        ops::norm_backward(device, stream, of, into, &scratch.partial)?;

        // All other rows of the stream got no gradient from the head: they start at zero.
        device.clear(scratch.dx.all())?;
        device.clear(scratch.dx_copy.all())?;
        let args = [
            (&scratch.dx).into(),
            (&scratch.dx_copy).into(),
            (&state.dpooled).into(),
            batch.pooled().into(),
            samples.into(),
            d.into(),
        ];
        device.launch("rows_scatter", Grid::warps(samples), &args)?;

        head.blocks.backward(back, batch, (&state.blocks, scratch))?;
        match &rows.input {
            Input::Pictures(_) => self.pictures_backward(back, batch, (state, scratch)),
            Input::Captions(captions) => {
                let dx = scratch.dx.all();
                self.captions_backward(back, (captions, batch), dx)
            }
        }
    }

    fn pictures_backward(
        &self,
        back: Back<'_>,
        batch: &Batch,
        (state, scratch): (&HeadState, &Scratch),
    ) -> Result<()> {
        let Back { device, weights, .. } = back;
        let vision = &self.config.vision;
        let (d, tokens) = (vision.width, self.vision.blocks.shape.tokens);
        let (samples, rows) = (batch.samples(), batch.rows());

        let of = NormBack {
            dy: scratch.dx_copy.all(),
            x: state.raw.all(),
            moments: &state.pre_norm,
            gain: weights.master(&self.pre_norm.weight),
            shape: Shape { rows, width: d },
            add: false,
        };
        let affine = self.pre_norm.gradient(back.gradient);
        let into = NormInto { affine, bias: None };

        // The stream's gradient is not needed any more; that of the raw rows takes its place.
        let stream = Stream { dx: scratch.dx.all(), copy: scratch.inner.all() };
        ops::norm_backward(device, stream, of, into, &scratch.partial)?;

        // Only the class token stands at position 0: that sum is the gradient of both.
        for (into, tokens) in [(&self.vision.position, tokens), (&self.class, 1)] {
            let into = back.of(into);
            position_backward(device, into, (scratch.dx.all(), batch), (tokens, d))?;
        }

        // Nobody reads the forward's products any more: their gradient takes their place.
        let args = [
            (&state.embedded).into(),
            (&scratch.dx).into(),
            rows.into(),
            tokens.into(),
            d.into(),
        ];
        device.launch("patches_embed_backward", Grid::warps(rows), &args)?;

        let (patches, values) = (samples * (tokens - 1), 3 * vision.patch * vision.patch);
        let linear = Linear { rows: patches, inputs: values, outputs: d };
        let into = back.of(&self.patch);
        linear.backward_weight(device, into, state.embedded.all(), state.patches.all())
    }

    fn captions_backward(
        &self,
        back: Back<'_>,
        (captions, batch): (&Captions, &Batch),
        dx: Slice<'_>,
    ) -> Result<()> {
        let device = back.device;
        let (d, context) = (self.config.text.width, self.config.text.context);
        let into = back.of(&self.text.position);
        position_backward(device, into, (dx, batch), (context, d))?;

        // The kernel only adds to ids that occur.
        let token = back.of(&self.token);
        device.clear(token)?;

        let args: [Arg<'_>; 6] = [
            token.into(),
            dx.into(),
            (&captions.unique).into(),
            (&captions.firsts).into(),
            (&captions.rows).into(),
            d.into(),
        ];
        let grid = Grid::new([captions.unique.len(), 1, 1], 128);
        device.launch("token_backward", grid, &args)
    }
}

/// Sums the rows of each position over the samples that have it.
fn position_backward(
    device: &Device,
    into: Slice<'_>,
    (dx, batch): (Slice<'_>, &Batch),
    (tokens, d): (usize, usize),
) -> Result<()> {
    let args = [
        into.into(),
        dx.into(),
        batch.starts().into(),
        batch.samples().into(),
        tokens.into(),
        d.into(),
    ];
    device.launch("position_backward", Grid::threads(tokens * d, 256), &args)
}

impl HeadState {
    fn fit(&mut self, device: &Device, (samples, d): (usize, usize)) -> Result<()> {
        for buffer in [&mut self.pooled, &mut self.dpooled] {
            device.fit(buffer, samples * d)?;
        }
        for buffer in [&mut self.normed, &mut self.dnormed, &mut self.dpooled_copy] {
            device.fit(buffer, samples * d)?;
        }
        device.fit(&mut self.norm.mean, samples)?;
        device.fit(&mut self.norm.inverse, samples)
    }
}

/// A pass without a teacher and without statistics.
impl<'a> Pass<'a> {
    pub(super) fn plain(device: &'a Device, weights: &'a super::layout::Weights) -> Self {
        Self { device, weights, teacher: Teacher::None, statistics: None }
    }
}
