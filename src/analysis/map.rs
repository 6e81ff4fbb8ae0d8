//! Embeddings in two dimensions: the directions along which they differ most.
//!
//! Pictures and captions of a CLIP lie apart, and that gap would take the first direction. So
//! each side is centered on its own mean first, and the directions are those of both together.

use crate::error::Result;
use crate::linalg::wide::{gram, widened};
use crate::linalg::{Matrix, eigen};

/// Dimensions of the map.
const DIMENSIONS: usize = 2;

/// The first two principal components of `images` [n, P] and of `texts` [m, P], one pair per
/// row. Signs are those of [`eigen::symmetric`]; with fewer than two directions, what is
/// missing is 0. Cost: (n + m) P² + 9 P³, in f64.
pub fn map(images: &Matrix, texts: &Matrix) -> Result<[Vec<[f64; DIMENSIONS]>; 2]> {
    let sides = [centered(images), centered(texts)];
    let p = images.cols();
    let mut scatter = faer::Mat::<f64>::zeros(p, p);
    for side in &sides {
        scatter += gram(side.transpose());
    }

    let axes = eigen::symmetric(scatter.as_ref())?.vectors;
    let place = |side: &faer::Mat<f64>, row: usize| -> [f64; DIMENSIONS] {
        std::array::from_fn(|axis| {
            if axis >= p {
                return 0.0;
            }
            (0..p).map(|i| side[(row, i)] * axes[(i, axis)]).sum()
        })
    };
    Ok(sides.map(|side| (0..side.nrows()).map(|row| place(&side, row)).collect()))
}

/// The rows without their mean.
fn centered(rows: &Matrix) -> faer::Mat<f64> {
    let mut out = widened(rows);
    let n = out.nrows().max(1) as f64;
    for column in 0..out.ncols() {
        let mean = (0..out.nrows()).map(|row| out[(row, column)]).sum::<f64>() / n;
        for row in 0..out.nrows() {
            out[(row, column)] -= mean;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_direction_is_the_longest_and_the_gap_between_sides_does_not_count() {
        // Along axis 1 by 3, along axis 2 by 1; the sides are 10 apart along axis 0.
        let side = |gap: f32| {
            let data = vec![gap, 3.0, 0.0, gap, -3.0, 0.0, gap, 0.0, 1.0, gap, 0.0, -1.0];
            Matrix::new(4, 3, data).unwrap()
        };
        let [images, texts] = map(&side(0.0), &side(10.0)).unwrap();
        let expected = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]];
        for found in [images, texts] {
            for (found, expected) in found.iter().zip(expected) {
                let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9);
                assert!(near, "{found:?} {expected:?}");
            }
        }
    }

    #[test]
    fn one_dimension_leaves_the_second_at_zero() {
        let rows = Matrix::new(2, 1, vec![1.0, -1.0]).unwrap();
        let [images, _] = map(&rows, &rows).unwrap();
        assert!(images.iter().all(|place| place[1].abs() < 1e-12));
    }
}
