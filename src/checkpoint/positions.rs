//! Another picture size: the grid of position embeddings resized as `open_clip` does.
//!
//! `open_clip` calls PyTorch's bicubic interpolation with antialiasing and without corner
//! alignment on the grid [g, g, d] and keeps the class token's row. That is Keys' cubic with
//! a = -0.5 whose support grows with the scale when the grid shrinks, weights normalized per
//! output, the horizontal pass first.

use crate::error::{Error, Result};
use crate::image::cubic;
use crate::io::tensors::Tensors;
use crate::model::names::ParameterId;
use crate::model::{ClipConfig, Tower};
use crate::num::{round_f32, truncate_usize};

/// Turns a model into one for pictures of `side` pixels. The patch size stays, and the same
/// side changes nothing.
///
/// # Errors
/// Where the side is not a multiple of the patch size.
pub fn resize_positions(
    config: &mut ClipConfig,
    tensors: &mut Tensors,
    side: usize,
) -> Result<()> {
    let (patch, width) = (config.vision.patch, config.vision.width);
    if side == 0 || !side.is_multiple_of(patch) {
        return Err(Error::usage(format!(
            "pictures of {side} pixels are not cut evenly into patches of {patch}"
        )));
    }

    let (from, to) = (config.vision.image_size / patch, side / patch);
    let name = ParameterId::PositionEmbedding(Tower::Vision).name();
    let Some(tensor) = tensors.get_mut(&name) else {
        return Err(Error::failed(format!("there is no tensor {name}")));
    };
    if tensor.shape != [from * from + 1, width] {
        let found = &tensor.shape;
        return Err(Error::failed(format!(
            "{name} is {found:?}, expected [{}, {width}]",
            from * from + 1
        )));
    }

    if from != to {
        // The first row belongs to the class token, which has no place in the grid.
        let (class, grid) = tensor.data.split_at(width);
        let mut data = class.to_vec();
        data.extend(resize_grid(grid, [from, to], width));
        tensor.data = data;
        tensor.shape[0] = to * to + 1;
    }
    config.vision.image_size = side;
    Ok(())
}

/// Resizes a grid [from, from, width] to [to, to, width]; sums are f64.
fn resize_grid(grid: &[f32], [from, to]: [usize; 2], width: usize) -> Vec<f32> {
    // The grid is square, so rows and columns have the same weights.
    let taps: Vec<Taps> = (0..to).map(|at| Taps::new(at, from, to)).collect();

    // The horizontal pass: [from, from, width] becomes [from, to, width].
    let mut middle = vec![0.0_f64; from * to * width];
    for (row, out) in middle.chunks_exact_mut(to * width).enumerate() {
        for (taps, out) in taps.iter().zip(out.chunks_exact_mut(width)) {
            for (offset, weight) in taps.weights.iter().enumerate() {
                let start = (row * from + taps.start + offset) * width;
                let source = &grid[start..start + width];
                out.iter_mut()
                    .zip(source)
                    .for_each(|(o, v)| *o += weight * f64::from(*v));
            }
        }
    }

    // The vertical pass, a row of the result at a time.
    let mut sums = vec![0.0_f64; to * width];
    let mut data = Vec::with_capacity(to * to * width);
    for taps in &taps {
        sums.fill(0.0);
        for (offset, weight) in taps.weights.iter().enumerate() {
            let start = (taps.start + offset) * to * width;
            let source = &middle[start..start + to * width];
            sums.iter_mut().zip(source).for_each(|(o, v)| *o += weight * v);
        }
        data.extend(sums.iter().map(|v| round_f32(*v)));
    }
    data
}

/// The inputs of one output position and their weights, which sum to 1.
struct Taps {
    /// The first input.
    start: usize,
    weights: Vec<f64>,
}

impl Taps {
    /// The inputs of position `at` of `to`, out of `from` positions.
    fn new(at: usize, from: usize, to: usize) -> Self {
        // When the grid shrinks, the support grows with the scale: that is the antialiasing.
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);

        // Without corner alignment, positions are the centers of cells, half a cell in.
        let center = (at as f64 + 0.5) * scale;
        let start = truncate_usize(center - 2.0 * stretch + 0.5);
        let end = truncate_usize(center + 2.0 * stretch + 0.5).min(from);

        // What would lie beyond the border is left out, and the other weights make up for it.
        let weight = |j: usize| cubic((j as f64 - center + 0.5) / stretch);
        let raw: Vec<f64> = (start..end).map(weight).collect();
        let total: f64 = raw.iter().sum();
        Self { start, weights: raw.iter().map(|w| w / total).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::{Hints, import};
    use crate::io::tensors;

    /// PyTorch's numbers, see `tests/fixtures/positions/README.md`.
    #[test]
    fn equals_open_clips_resize_up_and_down() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let expected =
            tensors::read(&root.join("positions/expected.safetensors")).unwrap();
        let source = root.join("clip-tiny-gelu/open_clip");
        for side in [8, 16, 24, 32, 40, 56, 72] {
            let (mut config, mut tensors) = import(&source, &Hints::default()).unwrap();
            resize_positions(&mut config, &mut tensors, side).unwrap();
            assert_eq!(config.vision.image_size, side);
            let found = &tensors["visual.positional_embedding"];
            let truth = &expected[&format!("side_{side}")];
            assert_eq!(found.shape, truth.shape, "side {side}");
            let gaps = found.data.iter().zip(&truth.data).map(|(a, b)| (a - b).abs());
            let worst = gaps.fold(0.0, f32::max);
            assert!(worst < 1e-6, "side {side}: {worst}");
        }
    }

    #[test]
    fn a_side_that_patches_do_not_divide_is_refused() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/clip-tiny-gelu/open_clip");
        let (mut config, mut tensors) = import(&source, &Hints::default()).unwrap();
        for side in [0, 12, 33] {
            let error = resize_positions(&mut config, &mut tensors, side).unwrap_err();
            assert!(error.message().contains("patches of 8"), "{error}");
        }
    }
}
