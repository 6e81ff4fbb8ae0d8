//! Dot products of every query with every candidate, one block of queries at a time.
//!
//! This is a plain blocked loop instead of a library's matrix product for one property: every
//! score is the sum over the axis P in order, whatever its place in a tile. So equal vectors
//! have equal scores to the last bit, which makes the tie rule of [`super::ranking`] exact; a
//! permutation of the candidates permutes the scores; and neither threads nor the processor's
//! vector width changes a bit.

use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::par;

/// Candidates a panel holds side by side: two registers of four f32 on the baseline.
const LANES: usize = 8;
/// Queries multiplied at a time with one panel.
const ROWS: usize = 4;
/// Queries of a parallel task; a multiple of [`ROWS`].
const BLOCK: usize = 32;

/// Scores each row of `queries` [n, P] against all rows of `candidates` [C, P] and returns
/// `work(query, scores [C])` of every query in order.
///
/// The cost is n·C·P multiply-adds and memory for C·(P + 32) floats per thread. Sums are in
/// f32.
pub fn map_rows<T: Send>(
    queries: &Matrix,
    candidates: &Matrix,
    work: impl Fn(usize, &[f32]) -> T + Sync + Send,
) -> Result<Vec<T>> {
    let (width, found) = (queries.cols(), candidates.cols());
    if width != found {
        return Err(Error::failed(format!(
            "candidates have {found} values, expected {width} as the queries have"
        )));
    }

    let panels = pack(candidates);
    let count = candidates.rows();
    let blocks = par::map(queries.rows().div_ceil(BLOCK), |block| {
        let first = block * BLOCK;
        let last = (first + BLOCK).min(queries.rows());

        // The scores of a few queries at a time fit the cache; all of them would not.
        let mut scores = vec![0.0; ROWS * count];
        let mut out = Vec::with_capacity(last - first);
        for start in (first..last).step_by(ROWS) {
            let rows = ROWS.min(last - start);
            score(&pack_queries(queries, start, rows), &panels, count, &mut scores);
            for row in 0..rows {
                out.push(work(start + row, &scores[row * count..(row + 1) * count]));
            }
        }
        out
    });
    Ok(blocks.into_iter().flatten().collect())
}

/// Rows of `matrix` scaled to unit length (norms in f64), refusing zero and non-finite rows;
/// `what` names the matrix in the error.
pub fn unit_rows(matrix: &Matrix, what: &str) -> Result<Matrix> {
    let mut out = matrix.clone();
    for (index, row) in matrix.iter_rows().enumerate() {
        // A zero or a NaN would become a row of NaN, which every comparison passes over.
        let norm = norm(row);
        if !norm.is_finite() || norm <= 0.0 {
            return Err(Error::failed(format!(
                "row {index} of {what} has norm {norm}, expected a positive number"
            )));
        }
        for (to, &from) in out.row_mut(index).iter_mut().zip(row) {
            *to = crate::num::round_f32(f64::from(from) / norm);
        }
    }
    Ok(out)
}

/// Euclidean length in f64.
pub(super) fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// Lays candidates out in panels [P, LANES], the last one padded with zeros.
fn pack(candidates: &Matrix) -> Vec<f32> {
    let (count, width) = (candidates.rows(), candidates.cols());

    let mut panels = vec![0.0; count.div_ceil(LANES) * width * LANES];

    for (index, row) in candidates.iter_rows().enumerate() {
        let panel = (index / LANES) * width * LANES;
        for (k, &value) in row.iter().enumerate() {
            panels[panel + k * LANES + index % LANES] = value;
        }
    }
    panels
}

/// Transposes up to [`ROWS`] queries to [P, ROWS], missing ones zero.
fn pack_queries(queries: &Matrix, start: usize, rows: usize) -> Vec<f32> {
    let mut block = vec![0.0; queries.cols() * ROWS];

    for row in 0..rows {
        for (k, &value) in queries.row(start + row).iter().enumerate() {
            block[k * ROWS + row] = value;
        }
    }
    block
}

/// Fills `scores` [ROWS, count].
fn score(block: &[f32], panels: &[f32], count: usize, scores: &mut [f32]) {
    let panel_len = (block.len() / ROWS * LANES).max(1);
    for (index, panel) in panels.chunks_exact(panel_len).enumerate() {
        let sums = tile(block, panel);

        // The last panel is padded: its surplus sums belong to no candidate.
        let (from, to) = (index * LANES, ((index + 1) * LANES).min(count));
        for (row, sum) in sums.iter().enumerate() {
            scores[row * count + from..row * count + to]
                .copy_from_slice(&sum[..to - from]);
        }
    }
}

/// [`ROWS`] × [`LANES`] dot products, each summed over P in order.
fn tile(block: &[f32], panel: &[f32]) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0.0; LANES]; ROWS];
    for (queries, lanes) in block.chunks_exact(ROWS).zip(panel.chunks_exact(LANES)) {
        for (sum, &query) in sums.iter_mut().zip(queries) {
            for (total, &lane) in sum.iter_mut().zip(lanes) {
                *total += query * lane;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn random(rows: usize, cols: usize, name: &str) -> Matrix {
        let mut matrix = Matrix::zeros(rows, cols);
        rng::fill_normal(&mut rng::stream(3, name), 1.0, matrix.data_mut());
        matrix
    }

    #[test]
    fn equals_the_dot_product_summed_in_order_bit_for_bit() {
        for (n, count, width) in [(1, 1, 1), (5, 9, 3), (67, 33, 17), (3, 100, 64)] {
            let (queries, candidates) =
                (random(n, width, "q"), random(count, width, "c"));
            let fast = map_rows(&queries, &candidates, |_, s| s.to_vec()).unwrap();
            for (i, scores) in fast.iter().enumerate() {
                for (c, &fast) in scores.iter().enumerate() {
                    let pairs = queries.row(i).iter().zip(candidates.row(c));
                    let slow = pairs.fold(0.0_f32, |sum, (a, b)| sum + a * b);
                    assert_eq!(fast.to_bits(), slow.to_bits(), "{n} {count} {i} {c}");
                }
            }
        }
    }

    #[test]
    fn no_candidates_and_no_queries_are_empty_not_a_panic() {
        let (some, none) = (random(3, 4, "a"), Matrix::zeros(0, 4));
        assert_eq!(map_rows(&none, &some, |_, s| s.len()).unwrap(), Vec::<usize>::new());
        assert_eq!(map_rows(&some, &none, |_, s| s.len()).unwrap(), vec![0; 3]);
        assert!(map_rows(&some, &random(3, 5, "b"), |_, _| ()).is_err());
    }

    #[test]
    fn unit_rows_refuse_what_has_no_direction() {
        let mut matrix = random(3, 4, "u");
        let unit = unit_rows(&matrix, "x").unwrap();
        assert!(unit.iter_rows().all(|row| (norm(row) - 1.0).abs() < 1e-6));
        matrix.row_mut(1).fill(0.0);
        let message = format!("{:?}", unit_rows(&matrix, "the captions").unwrap_err());
        assert!(message.contains("row 1 of the captions"), "{message}");
        matrix.row_mut(1)[0] = f32::NAN;
        assert!(unit_rows(&matrix, "x").is_err());
    }
}
