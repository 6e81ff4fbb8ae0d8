//! Multi-head attention over packed q, k, v rows of samples with lengths of their own.
//!
//! Samples lie one after the other; sample s owns the rows `starts[s]..starts[s + 1]`, so a
//! caption costs what it holds and not what its padding holds. The probabilities are kept
//! for the backward: [heads, T, T] a sample.

use super::simd;
use crate::linalg::gemm::{self, Rows, Write};

/// How many heads, and whether a token sees only itself and earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of heads; divides the width d.
    pub count: usize,
    /// Causal mask.
    pub causal: bool,
}

/// Buffers of the two passes, reused from step to step.
#[derive(Debug, Default, Clone)]
pub struct Workspace {
    probabilities: Vec<f32>,
    score_gradient: Vec<f32>,
    probability_gradient: Vec<f32>,
}

/// `out` [N, d] from `qkv` [N, 3d] (rows q, k, v; heads of d / count values each).
pub fn forward(
    out: &mut [f32],
    qkv: &[f32],
    starts: &[usize],
    heads: Heads,
    workspace: &mut Workspace,
) {
    let d = width(out.len(), starts);
    let size = d / heads.count;

    // Scores are divided by √size, which keeps their variance at that of q and k.
    let scale = 1.0 / (size as f32).sqrt();

    let squares = starts.windows(2).map(|s| (s[1] - s[0]).pow(2)).sum::<usize>();
    workspace.probabilities.resize(heads.count * squares, 0.0);

    // Every head of every sample has a square of its own.
    let mut probabilities = workspace.probabilities.as_mut_slice();
    for pair in starts.windows(2) {
        let t = pair[1] - pair[0];
        for head in 0..heads.count {
            let (p, rest) = probabilities.split_at_mut(t * t);
            probabilities = rest;

            let part = Part { qkv, row: pair[0], t, d, column: head * size, size };
            gemm::a_bt(p, part.q(), part.k(), Write::Replace);
            simd::dispatch(
                #[inline(always)]
                || softmax_rows(p, t, scale, heads.causal),
            );
            let o = &mut out[pair[0] * d + head * size..];
            gemm::a_b_strided(o, d, Rows::new(p, t), part.v());
        }
    }
}

/// `dqkv` [N, 3d] from `dout` [N, d]; `out` is what [`forward`] wrote.
pub fn backward(
    dqkv: &mut [f32],
    dout: &[f32],
    qkv: &[f32],
    starts: &[usize],
    (heads, workspace): (Heads, &mut Workspace),
) {
    let d = width(dout.len(), starts);
    let size = d / heads.count;
    let scale = 1.0 / (size as f32).sqrt();

    // Gradients need one square at a time, and the longest sample's holds every other.
    let longest = starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0);
    workspace.probability_gradient.resize(longest * longest, 0.0);
    workspace.score_gradient.resize(longest * longest, 0.0);

    let mut probabilities = workspace.probabilities.as_slice();
    for pair in starts.windows(2) {
        let t = pair[1] - pair[0];
        let dp = &mut workspace.probability_gradient[..t * t];
        let ds = &mut workspace.score_gradient[..t * t];
        for head in 0..heads.count {
            let (p, rest) = probabilities.split_at(t * t);
            probabilities = rest;

            let part = Part { qkv, row: pair[0], t, d, column: head * size, size };
            let dout = Rows::strided(&dout[pair[0] * d + head * size..], t, size, d);
            gemm::a_bt(dp, dout, part.v(), Write::Replace);
            simd::dispatch(
                #[inline(always)]
                || score_gradient(ds, dp, p, t, scale),
            );

            // The gradients of q, k and v lie side by side, as the rows they belong to.
            let base = pair[0] * 3 * d + head * size;
            let ds = Rows::new(ds, t);
            gemm::a_b_strided(&mut dqkv[base..], 3 * d, ds, part.k());
            gemm::at_b_strided(&mut dqkv[base + d..], 3 * d, ds, part.q());
            gemm::at_b_strided(&mut dqkv[base + 2 * d..], 3 * d, Rows::new(p, t), dout);
        }
    }
}

/// One head of one sample within the packed rows.
struct Part<'a> {
    qkv: &'a [f32],
    row: usize,
    t: usize,
    d: usize,
    column: usize,
    size: usize,
}

impl<'a> Part<'a> {
    fn rows(&self, which: usize) -> Rows<'a> {
        let start = self.row * 3 * self.d + which * self.d + self.column;
        Rows::strided(&self.qkv[start..], self.t, self.size, 3 * self.d)
    }
    fn q(&self) -> Rows<'a> {
        self.rows(0)
    }
    fn k(&self) -> Rows<'a> {
        self.rows(1)
    }
    fn v(&self) -> Rows<'a> {
        self.rows(2)
    }
}

fn width(values: usize, starts: &[usize]) -> usize {
    values / starts.last().copied().unwrap_or(0).max(1)
}

#[inline(always)]
fn softmax_rows(p: &mut [f32], t: usize, scale: f32, causal: bool) {
    for (i, row) in p.chunks_exact_mut(t).enumerate() {
        let visible = if causal { i + 1 } else { t };

        let (seen, hidden) = row.split_at_mut(visible);
        for v in seen.iter_mut() {
            *v *= scale;
        }

        // A masked entry is an exact zero, and not the exponential of a large negative
        // score.
        simd::softmax(seen);
        hidden.fill(0.0);
    }
}

/// dS = scale * P ⊙ (dP - Σ dP P); a hidden entry has P = 0 and so no gradient.
#[inline(always)]
fn score_gradient(ds: &mut [f32], dp: &[f32], p: &[f32], t: usize, scale: f32) {
    let rows = ds.chunks_exact_mut(t).zip(dp.chunks_exact(t)).zip(p.chunks_exact(t));
    for ((ds, dp), p) in rows {
        let along = simd::dot(dp, p);
        for ((ds, dp), p) in ds.iter_mut().zip(dp).zip(p) {
            *ds = scale * p * (dp - along);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::cpu::ops::check::{assert_close, differences, random, wide};

    /// The definition, one output value after the other.
    fn slow(qkv: &[f64], d: usize, starts: &[usize], heads: Heads) -> Vec<f64> {
        let size = d / heads.count;
        let at = |row: usize, which: usize, column: usize| {
            qkv[row * 3 * d + which * d + column]
        };
        let mut out = vec![0.0; qkv.len() / 3];
        for pair in starts.windows(2) {
            for head in 0..heads.count {
                let columns = head * size..(head + 1) * size;
                for i in pair[0]..pair[1] {
                    let end = if heads.causal { i + 1 } else { pair[1] };
                    let score = |j: usize| -> f64 {
                        let dot: f64 =
                            columns.clone().map(|c| at(i, 0, c) * at(j, 1, c)).sum();
                        (dot / (size as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (pair[0]..end).map(score).collect();
                    let total: f64 = scores.iter().sum();
                    for (j, score) in (pair[0]..end).zip(&scores) {
                        for c in columns.clone() {
                            out[i * d + c] += score / total * at(j, 2, c);
                        }
                    }
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn both_passes_equal_the_definition(
            lengths in prop::collection::vec(1_usize..8, 1..4),
            count in 1_usize..4,
            size in 1_usize..7,
            causal: bool,
            seed in 0..99_u64,
        ) {
            let heads = Heads { count, causal };
            let d = count * size;
            let mut starts = vec![0];
            for length in lengths {
                starts.push(starts[starts.len() - 1] + length);
            }
            let n = starts[starts.len() - 1];
            let (qkv, dout) = (random("qkv", n * 3 * d, seed), random("dout", n * d, seed));
            let mut workspace = Workspace::default();
            // Buffers that are larger than this pass needs must not reach its results.
            let longer = [0, n + 3];
            let other = random("other", (n + 3) * 3 * d, seed);
            forward(&mut vec![0.0; (n + 3) * d], &other, &longer, heads, &mut workspace);
            let mut out = vec![9.0; n * d];
            forward(&mut out, &qkv, &starts, heads, &mut workspace);
            let truth = |qkv: &[f64]| slow(qkv, d, &starts, heads);
            assert_close("out", &out, &truth(&wide(&qkv)), 1e-5);
            let mut dqkv = vec![9.0; n * 3 * d];
            backward(&mut dqkv, &dout, &qkv, &starts, (heads, &mut workspace));
            assert_close("dqkv", &dqkv, &differences(&qkv, &dout, truth), 2e-5);
        }
    }
}
