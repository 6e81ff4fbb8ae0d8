//! Launches of attention: the grid, the scale and the sizes of shared memory.

use super::device::{Buffer, Device, Grid, Kind, Slice};
use super::pass::Batch;
use crate::error::Result;
use crate::model::TowerShape;

/// Buffers of one attention layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    /// Packed queries, keys and values [N, 3d].
    pub(super) qkv: Slice<'a>,
    /// Outputs [N, d].
    pub(super) out: Slice<'a>,
    /// Log sums of the scores [heads, N].
    pub(super) log_sum: &'a Buffer,
}

/// Rows of a tile, and bytes of a tile in shared memory (`kernels/tiles.cuh`).
fn tile(device: &Device, head: usize) -> (usize, usize) {
    // Eight unused values a row keep `ldmatrix` from bank conflicts; f32 has no tiles.
    match device.real() {
        Kind::Bf16 => (64, 64 * (head + 8) * 2),
        _ => (128, 0),
    }
}

fn sizes(
    device: &Device,
    shape: TowerShape,
    batch: &Batch,
) -> (usize, usize, [usize; 3]) {
    let head = shape.width / shape.heads;
    let (rows, bytes) = tile(device, head);
    (head, bytes, [batch.longest().div_ceil(rows), shape.heads, batch.samples()])
}

/// `out` and `log_sum` from `qkv`.
pub(super) fn forward(
    device: &Device,
    own: Attention<'_>,
    shape: TowerShape,
    batch: &Batch,
) -> Result<()> {
    let (head, bytes, blocks) = sizes(device, shape, batch);
    let args = [
        own.out.into(),
        own.log_sum.into(),
        own.qkv.into(),
        batch.starts().into(),
        shape.width.into(),
        shape.causal.into(),
        scale(head).into(),
    ];

    // Three tiles: queries, keys and values.
    let grid = Grid::new(blocks, 128).shared(3 * bytes);
    device.launch(&format!("attention_forward_{head}"), grid, &args)
}

/// `dqkv` from the gradient of `out`; `delta` [heads, N] is scratch.
pub(super) fn backward(
    device: &Device,
    (dqkv, dout, delta): (Slice<'_>, Slice<'_>, &Buffer),
    own: Attention<'_>,
    (shape, batch): (TowerShape, &Batch),
) -> Result<()> {
    let (head, bytes, blocks) = sizes(device, shape, batch);
    let rows = batch.rows();

    // D = <dout, out> by row and head comes first: both kernels below read it.
    let args =
        [delta.into(), dout.into(), own.out.into(), rows.into(), shape.heads.into()];
    let lanes = rows * shape.heads * head / 8;
    device.launch(
        &format!("attention_delta_{head}"),
        Grid::threads(lanes, 128),
        &args,
    )?;

    let args = [
        dqkv.into(),
        dout.into(),
        own.qkv.into(),
        own.log_sum.into(),
        delta.into(),
        batch.starts().into(),
        shape.width.into(),
        shape.causal.into(),
        scale(head).into(),
    ];

    // Four tiles; in bf16 the log sums and D of 64 rows lie behind them.
    let sums = if bytes == 0 { 0 } else { 2 * 64 * 4 };
    let grid = Grid::new(blocks, 128).shared(4 * bytes + sums);

    // Blocks of the first own dK and dV, those of the second dQ: every sum has one owner.
    device.launch(&format!("attention_keys_{head}"), grid, &args)?;
    device.launch(&format!("attention_queries_{head}"), grid, &args)
}

fn scale(head: usize) -> f32 {
    1.0 / (head as f32).sqrt()
}
