//! Launches that the whole engine shares: norms, linear layers, sums of columns.

use super::device::{Arg, Buffer, Device, Extents, Grid, Operand, Slice};
use crate::error::Result;

/// Rows of a chunk of column sums; `kernels/activation.cuh` has the same number.
pub(super) const ROWS_A_CHUNK: usize = 64;

/// Blocks of a LayerNorm's backward: two per multiprocessor of the largest cards, so that few
/// partial sums are left.
const NORM_BLOCKS: usize = 264;

/// Columns that the registers of one warp hold per chunk of a norm's kernels.
const NORM_CHUNK: usize = 256;

/// The rows of a matrix with one row per token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) width: usize,
}

/// Gain and offset of a norm, or their gradients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine<'a> {
    pub(super) gain: Slice<'a>,
    pub(super) offset: Slice<'a>,
}

/// What a norm's forward leaves for its backward.
#[derive(Debug)]
pub(super) struct Moments {
    pub(super) mean: Buffer,
    pub(super) inverse: Buffer,
}

/// A residual addition in front of a norm: `out` = x + `branch` + `bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Added<'a> {
    pub(super) out: Slice<'a>,
    pub(super) branch: Slice<'a>,
    pub(super) bias: Slice<'a>,
}

fn family(name: &str, width: usize) -> String {
    format!("{name}_{}", width.div_ceil(NORM_CHUNK))
}

/// Floats of partial sums that a norm's backward leaves.
pub(super) fn norm_partials(shape: Shape) -> usize {
    norm_blocks(shape.rows) * 3 * shape.width
}

fn norm_blocks(rows: usize) -> usize {
    rows.div_ceil(8).clamp(1, NORM_BLOCKS)
}

/// `y` = norm of x, or of x + added + bias, which is written too.
pub(super) fn norm(
    device: &Device,
    (y, x): (Slice<'_>, Slice<'_>),
    added: Option<Added<'_>>,
    (affine, moments): (Affine<'_>, &Moments),
    Shape { rows, width }: Shape,
) -> Result<()> {
    let moments = [Arg::from(&moments.mean), Arg::from(&moments.inverse)];

    // Null pointers tell the kernel that nothing is added.
    let (out, product, bias) = match added {
        Some(own) => (own.out.into(), own.branch.into(), own.bias.into()),
        None => (Arg::None, Arg::None, Arg::None),
    };
    let affine = [affine.gain.into(), affine.offset.into(), rows.into(), width.into()];
    let args =
        [&[out, y.into()][..], &moments, &[x.into(), product, bias], &affine].concat();
    device.launch(&family("norm_forward", width), Grid::warps(rows), &args)
}

/// `y` = norm of x, both f32: the image tower's first.
pub(super) fn norm_stream(
    device: &Device,
    (y, x): (Slice<'_>, Slice<'_>),
    (affine, moments): (Affine<'_>, &Moments),
    Shape { rows, width }: Shape,
) -> Result<()> {
    let args = [
        y.into(),
        (&moments.mean).into(),
        (&moments.inverse).into(),
        x.into(),
        affine.gain.into(),
        affine.offset.into(),
        rows.into(),
        width.into(),
    ];

    device.launch(&family("norm_stream", width), Grid::warps(rows), &args)
}

/// The stream's gradient in f32, with a copy that matrix products read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream<'a> {
    pub(super) dx: Slice<'a>,
    pub(super) copy: Slice<'a>,
}

/// What a norm's backward reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormBack<'a> {
    pub(super) dy: Slice<'a>,
    pub(super) x: Slice<'a>,
    pub(super) moments: &'a Moments,
    pub(super) gain: Slice<'a>,
    pub(super) shape: Shape,
    /// Whether the stream's gradient is added to, or replaced.
    pub(super) add: bool,
}

/// Where a norm's backward leaves the gradients of parameters; `bias` is the one that was
/// added in front of the norm's input.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormInto<'a> {
    pub(super) affine: Affine<'a>,
    pub(super) bias: Option<Slice<'a>>,
}

/// The gradient of a norm's input, and those of its parameters.
pub(super) fn norm_backward(
    device: &Device,
    stream: Stream<'_>,
    of: NormBack<'_>,
    into: NormInto<'_>,
    partial: &Buffer,
) -> Result<()> {
    let Shape { rows, width } = of.shape;
    let blocks = norm_blocks(rows);
    let args = [
        stream.dx.into(),
        stream.copy.into(),
        partial.into(),
        of.dy.into(),
        of.x.into(),
        (&of.moments.mean).into(),
        (&of.moments.inverse).into(),
        of.gain.into(),
        rows.into(),
        width.into(),
        of.add.into(),
    ];

    // Shared memory holds one row of f32 sums for each of a block's 8 warps.
    let grid = Grid::new([blocks, 1, 1], 256).shared(8 * width * 4);
    device.launch(&family("norm_backward", width), grid, &args)?;

    // Partial sums lie [blocks, 3, d]: gain, offset, and the bias in front of the norm.
    let targets = [Some(into.affine.gain), Some(into.affine.offset), into.bias];
    for (index, target) in targets.into_iter().enumerate() {
        let Some(target) = target else { continue };
        let own = partial.at(index * width..blocks * 3 * width);
        sum_partials(device, target, own, (blocks, 3 * width))?;
    }
    Ok(())
}

/// `into` = the sum of `count` rows of partial sums, `stride` values apart.
pub(super) fn sum_partials(
    device: &Device,
    into: Slice<'_>,
    partial: Slice<'_>,
    (count, stride): (usize, usize),
) -> Result<()> {
    let width = into.len();
    let grid = Grid::new([width.div_ceil(32), 1, 1], 256);
    let args = [into.into(), partial.into(), count.into(), stride.into(), width.into()];

    device.launch("sum_partials", grid, &args)
}

/// `unit` [n, P] = the rows of `raw` divided by their lengths.
pub(super) fn normalize(
    device: &Device,
    (unit, inverse, raw): (Slice<'_>, Slice<'_>, Slice<'_>),
    (samples, width): (usize, usize),
) -> Result<()> {
    let args = [unit.into(), inverse.into(), raw.into(), samples.into(), width.into()];
    device.launch("unit_forward", Grid::warps(samples), &args)
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

/// Rows sorted by expert: their bounds on the device, and the rows of the largest expert.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segments<'a> {
    pub(super) starts: Slice<'a>,
    pub(super) experts: usize,
    pub(super) largest: usize,
}

impl Segments<'_> {
    /// Chunks of the largest expert.
    pub(super) fn chunks(&self) -> usize {
        self.largest.div_ceil(ROWS_A_CHUNK)
    }

    /// The grid of kernels that sum columns by chunks.
    pub(super) fn grid(&self, width: usize) -> Grid {
        Grid::new([width.div_ceil(1024), self.chunks(), self.experts], 128)
    }
}

/// `into` [experts, width] = the column sums of each expert's rows of `y`.
pub(super) fn column_sums(
    device: &Device,
    into: Slice<'_>,
    y: Slice<'_>,
    segments: Segments<'_>,
    partial: &Buffer,
) -> Result<()> {
    let width = into.len() / segments.experts;
    let args = [partial.into(), y.into(), segments.starts.into(), width.into()];

    // No atomics: chunks leave partial sums, which are then added in one order.
    device.launch("column_sums", segments.grid(width), &args)?;
    sum_chunks(device, into, segments, partial)
}

/// The second half of [`column_sums`].
pub(super) fn sum_chunks(
    device: &Device,
    into: Slice<'_>,
    segments: Segments<'_>,
    partial: &Buffer,
) -> Result<()> {
    let width = into.len() / segments.experts;
    let grid = Grid::new([width.div_ceil(32), segments.experts, 1], 256);
    let args = [
        into.into(),
        partial.into(),
        segments.starts.into(),
        segments.chunks().into(),
        width.into(),
    ];

    device.launch("sum_chunks", grid, &args)
}

/// A linear layer's rows, inputs and outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Linear {
    /// `y` [N, o] = `x` [N, i] Wᵀ; the bias is added by whoever reads `y`.
    pub(super) fn forward(
        self,
        device: &Device,
        y: Slice<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
    ) -> Result<()> {
        self.forward_beta(device, (y, 0.0), x, weight)
    }

    /// `y` = `x` Wᵀ + beta `y`.
    pub(super) fn forward_beta(
        self,
        device: &Device,
        (y, beta): (Slice<'_>, f32),
        x: Slice<'_>,
        weight: Slice<'_>,
    ) -> Result<()> {
        let Self { rows, inputs, outputs } = self;
        let operands = (Operand::new(x, inputs), Operand::new(weight, inputs).turned());
        let extents = Extents { m: rows, n: outputs, k: inputs };
        device.gemm((y, outputs), operands, extents, beta)
    }

    /// `dx` [N, i] = `dy` [N, o] W.
    pub(super) fn backward_input(
        self,
        device: &Device,
        dx: Slice<'_>,
        dy: Slice<'_>,
        weight: Slice<'_>,
    ) -> Result<()> {
        let Self { rows, inputs, outputs } = self;
        let operands = (Operand::new(dy, outputs), Operand::new(weight, inputs));
        let extents = Extents { m: rows, n: inputs, k: outputs };
        device.gemm((dx, inputs), operands, extents, 0.0)
    }

    /// `dw` [o, i] = dyᵀ x.
    pub(super) fn backward_weight(
        self,
        device: &Device,
        dw: Slice<'_>,
        dy: Slice<'_>,
        x: Slice<'_>,
    ) -> Result<()> {
        let Self { rows, inputs, outputs } = self;
        let operands = (Operand::new(dy, outputs).turned(), Operand::new(x, inputs));
        let extents = Extents { m: outputs, n: inputs, k: rows };
        device.gemm((dw, inputs), operands, extents, 0.0)
    }
}
