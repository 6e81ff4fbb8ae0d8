//! Moments of one FFN's inputs and outputs by cluster, in one streaming pass.
//!
//! All that the subspaces need of the tokens: counts, sums and second moments of x and of
//! y = W2 act(W1 x + b1), d × d each. Hidden activations are recomputed block by block and
//! never kept; memory does not depend on the number of tokens.

use std::fmt;

use faer::{Mat, MatRef};

use crate::error::{Error, Result};
use crate::ffn::FfnTensors;
use crate::linalg::gemm::{self, Write};
use crate::linalg::wide;
use crate::{num, par};

/// Rows that are gathered before they are added; fixes the bits of the sums, whatever the
/// size of the chunks handed in.
const BLOCK: usize = 4096;

/// Columns that are widened at a time: enough for the product to run at full speed, few enough
/// to stay in the second-level cache.
const COLUMNS: usize = 256;

/// Rows of one FFN evaluation; its hidden activations are all that exist on a thread.
const CHUNK: usize = 256;

/// The FFN whose subspaces are sought: `W2 act(W1 x + b1)`; the outer bias plays no part.
#[derive(Clone, Copy)]
pub struct FfnFunction<'a> {
    /// The weights.
    pub weights: FfnTensors<'a>,
    /// The activation, applied in place to any number of values.
    pub activation: &'a (dyn Fn(&mut [f32]) + Sync),
}

impl fmt::Debug for FfnFunction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (h, d) = (self.weights.hidden(), self.weights.width());
        write!(f, "FfnFunction {{ d: {d}, h: {h} }}")
    }
}

impl FfnFunction<'_> {
    /// `W2 act(W1 x + b1)` of each row.
    fn outputs(&self, x: &[f32]) -> Vec<f32> {
        let FfnTensors { fc1, fc1_bias, fc2, .. } = self.weights;
        let (h, d) = (self.weights.hidden(), self.weights.width());
        let rows = x.len() / d;

        let mut hidden = vec![0.0; rows * h];
        let (inputs, first) = (gemm::Rows::new(x, d), gemm::Rows::new(fc1, d));
        gemm::a_bt(&mut hidden, inputs, first, Write::Replace);

        for row in hidden.chunks_exact_mut(h) {
            row.iter_mut().zip(fc1_bias).for_each(|(value, bias)| *value += bias);
        }
        (self.activation)(&mut hidden);

        // Without b2: the subspace is that of W2 a, and the bias is kept (METHOD §2.3).
        let mut out = vec![0.0; rows * d];
        let (hidden, second) = (gemm::Rows::new(&hidden, h), gemm::Rows::new(fc2, h));
        gemm::a_bt(&mut out, hidden, second, Write::Replace);
        out
    }
}

/// Count, sum and second moment of vectors.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    pub(super) count: usize,
    pub(super) sum: Vec<f64>,
    /// `Σ v vᵀ`, symmetric once [`LayerMoments`] exists.
    pub(super) second: Mat<f64>,
}

impl Moment {
    pub(super) fn zeros(width: usize) -> Self {
        Self { count: 0, sum: vec![0.0; width], second: Mat::zeros(width, width) }
    }

    /// Adds vectors, one per column, to the lower triangle.
    pub(super) fn add(&mut self, columns: MatRef<'_, f64>) {
        self.count += columns.ncols();

        // f64, because second moments of hundreds of thousands of tokens are added up.
        for column in columns.col_iter() {
            self.sum.iter_mut().zip(column.iter()).for_each(|(sum, v)| *sum += v);
        }
        wide::add_gram(self.second.as_mut(), columns);
    }

    /// The moments of both sets of vectors.
    pub(super) fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.second += &other.second;
    }

    /// The mean; zeros without vectors.
    pub(super) fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count.max(1) as f64).collect()
    }
}

/// Gathers the moments; made by [`LayerMoments::builder`].
#[derive(Debug)]
pub struct MomentsBuilder<'a> {
    ffn: FfnFunction<'a>,
    waiting: Waiting,
    inputs: Vec<Moment>,
    outputs: Vec<Moment>,
}

/// The moments of one FFN: everything its subspaces are made of, for any variant.
#[derive(Debug, Clone)]
pub struct LayerMoments {
    pub(super) fc1: Mat<f64>,
    pub(super) hidden: usize,
    pub(super) inputs: Vec<Moment>,
    pub(super) outputs: Vec<Moment>,
}

impl LayerMoments {
    /// Starts without tokens. Refuses an FFN whose tensors contradict each other.
    pub fn builder(ffn: FfnFunction<'_>, experts: usize) -> Result<MomentsBuilder<'_>> {
        let FfnTensors { fc1, fc2, .. } = ffn.weights;
        let (h, d) = (ffn.weights.hidden(), ffn.weights.width());
        let fits = fc1.len() == h * d && fc2.len() == d * h;
        if !fits || d == 0 || h == 0 || experts == 0 {
            let (first, second) = (fc1.len(), fc2.len());
            return Err(Error::failed(format!(
                "subspaces of {experts} experts: found an FFN with {first} values of fc1, \
                 {h} of its bias, {second} of fc2 and {d} of its bias; expected at least one \
                 expert, and {h} × {d} values in both matrices"
            )));
        }

        let moments = || vec![Moment::zeros(d); experts];
        Ok(MomentsBuilder {
            ffn,
            waiting: Waiting::new(d, experts),
            inputs: moments(),
            outputs: moments(),
        })
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.inputs.len()
    }

    /// Tokens of each expert's cluster.
    pub fn tokens(&self) -> Vec<usize> {
        self.inputs.iter().map(|moment| moment.count).collect()
    }
}

impl MomentsBuilder<'_> {
    /// Adds row-major FFN inputs and their clusters. The cut into calls changes no bit.
    pub fn push(&mut self, rows: &[f32], labels: &[u32]) -> Result<()> {
        let Self { ffn, waiting, inputs, outputs } = self;
        waiting.push(rows, labels, |block| add_block(*ffn, block, inputs, outputs))
    }

    /// The moments of all rows pushed.
    pub fn finish(mut self) -> Result<LayerMoments> {
        let rest = self.waiting.rest();
        add_block(self.ffn, rest, &mut self.inputs, &mut self.outputs);
        finish(self.inputs.iter_mut().chain(&mut self.outputs).collect())?;
        Ok(LayerMoments {
            fc1: wide::widened_rows(self.ffn.weights.fc1, self.ffn.weights.width()),
            hidden: self.ffn.weights.hidden(),
            inputs: self.inputs,
            outputs: self.outputs,
        })
    }
}

/// Adds gathered rows: outputs chunk by chunk, then every moment on its own thread.
fn add_block(
    ffn: FfnFunction<'_>,
    block: Block<'_>,
    inputs: &mut [Moment],
    outputs: &mut [Moment],
) {
    let d = ffn.weights.width();
    // Outputs have the width of the inputs: one buffer of the same length holds them.
    let mut values = vec![0.0; block.rows.len()];
    par::for_each_chunk(&mut values, CHUNK * d, |index, out| {
        out.copy_from_slice(&ffn.outputs(&block.rows[index * CHUNK * d..][..out.len()]));
    });

    let inputs = inputs.iter_mut().enumerate().map(|(i, m)| (i, m, block.rows));
    let outputs = outputs.iter_mut().enumerate().map(|(i, m)| (i, m, &values[..]));
    add_moments(inputs.chain(outputs).collect(), block.labels);
}

/// Labeled rows on their way into moments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) rows: &'a [f32],
    pub(super) labels: &'a [u32],
}

/// Gathers rows into blocks of a fixed length, so that the cut into calls changes no bit.
#[derive(Debug)]
pub(super) struct Waiting {
    width: usize,
    experts: usize,
    rows: Vec<f32>,
    labels: Vec<u32>,
}

impl Waiting {
    pub(super) fn new(width: usize, experts: usize) -> Self {
        Self { width, experts, rows: Vec::new(), labels: Vec::new() }
    }

    /// Takes rows and hands on every block that is full.
    pub(super) fn push(
        &mut self,
        rows: &[f32],
        labels: &[u32],
        mut full: impl FnMut(Block<'_>),
    ) -> Result<()> {
        let (d, experts) = (self.width, self.experts);
        if rows.len() != labels.len() * d {
            let (found, n) = (rows.len(), labels.len());
            return Err(Error::failed(format!(
                "found {found} values for {n} labeled rows, expected {d} per row"
            )));
        }
        if let Some(bad) = labels.iter().find(|&&label| num::widen(label) >= experts) {
            return Err(Error::failed(format!(
                "found cluster {bad} among the labels, expected clusters below {experts}"
            )));
        }

        let (mut rows, mut labels) = (rows, labels);
        while !labels.is_empty() {
            let take = (BLOCK - self.labels.len()).min(labels.len());
            let part = Block { rows: &rows[..take * d], labels: &labels[..take] };
            (rows, labels) = (&rows[take * d..], &labels[take..]);

            if take == BLOCK {
                // Nothing waits: no reason to copy.
                full(part);
                continue;
            }

            self.rows.extend_from_slice(part.rows);
            self.labels.extend_from_slice(part.labels);
            if self.labels.len() == BLOCK {
                full(self.rest());
                self.rows.clear();
                self.labels.clear();
            }
        }
        Ok(())
    }

    /// What waits.
    pub(super) fn rest(&self) -> Block<'_> {
        Block { rows: &self.rows, labels: &self.labels }
    }
}

/// Makes the moments whole once all rows are added. A value that was not finite is seen here
/// and not when it came: it spoils a moment for good, and looking at every value costs time.
pub(super) fn finish(mut moments: Vec<&mut Moment>) -> Result<()> {
    par::try_for_each_chunk(&mut moments, 1, |_, moments| {
        for moment in moments {
            // The triangle above is zero until the last line.
            if !moment.second.is_all_finite() {
                return Err(Error::failed("an input or its output is not finite"));
            }
            wide::mirror(moment.second.as_mut());
        }
        Ok(())
    })
}

/// Adds to the moment of each cluster its rows of the values that come with it, in parallel.
pub(super) fn add_moments(
    mut moments: Vec<(usize, &mut Moment, &[f32])>,
    labels: &[u32],
) {
    par::for_each_chunk(&mut moments, 1, |_, job| {
        // One buffer serves all chunks of columns of a moment.
        let mut columns: Vec<f64> = Vec::new();

        for (cluster, moment, values) in job {
            let cluster = num::index_u32(*cluster);
            let own: Vec<usize> =
                (0..labels.len()).filter(|&i| labels[i] == cluster).collect();

            let d = moment.sum.len();
            for own in own.chunks(COLUMNS) {
                columns.resize(d * own.len(), 0.0);
                for (column, &i) in columns.chunks_exact_mut(d).zip(own) {
                    let row = &values[i * d..(i + 1) * d];
                    column.iter_mut().zip(row).for_each(|(wide, &v)| *wide = v.into());
                }
                moment.add(MatRef::from_column_major_slice(&columns, d, own.len()));
            }
        }
    });
}
