//! Which centroid is nearest: fast in f32, decided in f64 wherever f32 cannot tell.
//!
//! The f32 dot products come with a proved error bound. A centroid whose score lies further
//! than the bound below the best is out; if more than one is left, f64 decides, ties to the
//! lower index. So assignments are those of exact arithmetic (up to f64 rounding), at f32
//! speed, and the instruction set of the machine cannot reach a result.

use std::marker::PhantomData;

use super::form::Form;
use super::{dots, kernel};

/// Rows whose scores are held at a time; they stay in the first-level cache.
pub(super) const GROUP: usize = 4;

/// Absolute floor of the error bound: products of f32 values below it lose precision.
const UNDERFLOW: f64 = 1e-36;

/// Unit centroids of all restarts that run side by side, restart after restart.
#[derive(Debug, Clone)]
pub(super) struct Centroids<F: Form> {
    cols: usize,
    per_restart: usize,
    exact: Vec<f64>,
    fast: Vec<f32>,
    form: PhantomData<F>,
}

impl<F: Form> Centroids<F> {
    /// Unit rows of `cols` values, `per_restart` to each restart.
    pub(super) fn new(cols: usize, per_restart: usize, exact: Vec<f64>) -> Self {
        // The f32 copy lies in the order in which the rows' form is read.
        let mut fast = Vec::new();
        exact.chunks_exact(cols).for_each(|centroid| F::planes(centroid, &mut fast));
        Self { cols, per_restart, exact, fast, form: PhantomData }
    }

    /// Centroids of all restarts.
    pub(super) fn count(&self) -> usize {
        self.exact.len() / self.cols
    }

    /// Centroid `index`, counted over all restarts.
    pub(super) fn row(&self, index: usize) -> &[f64] {
        &self.exact[index * self.cols..(index + 1) * self.cols]
    }

    /// Calls `found(row_index, restart, centroid)` for each row and restart, where
    /// `centroid` counts over all restarts. `norms` are the lengths of the rows.
    pub(super) fn nearest(
        &self,
        rows: &[F::Unit],
        norms: &[f64],
        mut found: impl FnMut(usize, usize, usize),
    ) {
        let (cols, units, count) = (self.cols, F::units(self.cols), self.count());
        let mut scores = vec![0.0_f32; GROUP * count];
        // Two scores are compared, so two errors count.
        let bound = 2.0 * dots::error_bound(cols);

        for (group, rows) in rows.chunks(GROUP * units).enumerate() {
            let in_group = rows.len() / units;
            dots::dots::<F>(cols, rows, &self.fast, &mut scores[..in_group * count]);

            for (i, row) in rows.chunks_exact(units).enumerate() {
                let row_index = group * GROUP + i;
                let norm = norms[row_index];
                // Longer rows may overflow f32: f64 decides all of them.
                let trusted = norm < 1e30;
                let slack =
                    if trusted { bound * norm + UNDERFLOW } else { f64::INFINITY };

                let scores = &scores[i * count..(i + 1) * count];
                for (restart, scores) in scores.chunks_exact(self.per_restart).enumerate()
                {
                    let first = restart * self.per_restart;
                    found(row_index, restart, self.decide(first, row, scores, slack));
                }
            }
        }
    }

    /// The index of the largest exact score of one restart, ties to the lower index.
    fn decide(&self, first: usize, row: &[F::Unit], scores: &[f32], slack: f64) -> usize {
        // One pass finds the best score and the second.
        let (mut best, mut second) = (0, f32::NEG_INFINITY);
        for (index, &score) in scores.iter().enumerate().skip(1) {
            if score > scores[best] {
                second = scores[best];
                best = index;
            } else {
                second = second.max(score);
            }
        }

        // The common case: f32 can tell the winner from all others.
        let top = f64::from(scores[best]);
        if top - f64::from(second) > slack {
            return first + best;
        }

        let close = |index: &usize| {
            slack.is_infinite() || top - f64::from(scores[*index]) <= slack
        };
        let mut scratch = Vec::new();
        let row = F::row(row, self.cols, &mut scratch);
        let mut winner = (first + best, f64::NEG_INFINITY);
        // Strictly greater, in order: a tie goes to the lower index.
        for index in (0..scores.len()).filter(close) {
            let exact = kernel::dot_exact(row, self.row(first + index));
            if exact > winner.1 {
                winner = (first + index, exact);
            }
        }
        winner.0
    }
}

/// `row / |row|`, or zeros if the row has no direction.
pub(super) fn unit(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    if largest == 0.0 {
        return row.to_vec();
    }
    // Scaled first: the squares of huge or tiny values would leave the range of f64.
    let norm = row.iter().map(|v| (v / largest).powi(2)).sum::<f64>().sqrt() * largest;
    row.iter().map(|v| v / norm).collect()
}
