//! The subspaces of one matrix of any shape, from its labeled inputs alone.
//!
//! The small side decides what is gathered: second moments of the inputs of a tall matrix, of
//! the outputs of a wide one. Either way one moment is min(out, in) squared.

use super::draws::Draws;
use super::moments::{Block, Moment, Waiting, add_moments, finish};
use super::subspace::{Solutions, Space, Subspace, check};
use crate::config::SubspacesConfig;
use crate::error::{Error, Result};
use crate::linalg::gemm::{self, Write};
use crate::linalg::{Matrix, wide};
use crate::par;

/// Rows of one product.
const CHUNK: usize = 512;

/// The moments of one matrix's outputs by cluster; made by [`MatrixMoments::builder`].
#[derive(Debug, Clone)]
pub struct MatrixMoments<'a> {
    w: &'a Matrix,
    moments: Vec<Moment>,
}

/// Gathers the moments of one matrix.
#[derive(Debug)]
pub struct MatrixMomentsBuilder<'a> {
    w: &'a Matrix,
    waiting: Waiting,
    moments: Vec<Moment>,
    outputs: Vec<f32>,
}

impl<'a> MatrixMoments<'a> {
    /// Starts without rows for W [out, in]. Refuses an empty matrix and no clusters.
    pub fn builder(w: &'a Matrix, clusters: usize) -> Result<MatrixMomentsBuilder<'a>> {
        let (out, inputs) = (w.rows(), w.cols());
        if out == 0 || inputs == 0 || clusters == 0 {
            return Err(Error::failed(format!(
                "subspaces of a matrix [{out}, {inputs}] on {clusters} clusters: expected at \
                 least one row, one column and one cluster"
            )));
        }
        if w.data().iter().any(|value| !value.is_finite()) {
            return Err(Error::failed("the matrix has a value that is not finite"));
        }

        Ok(MatrixMomentsBuilder {
            w,
            waiting: Waiting::new(inputs, clusters),
            moments: vec![Moment::zeros(out.min(inputs)); clusters],
            outputs: Vec::new(),
        })
    }

    /// The eigenproblems of all clusters, in parallel; `draws` serve random directions.
    pub fn solve(self, config: &SubspacesConfig, draws: &Draws<'_>) -> Result<Solutions> {
        check(config)?;
        let Self { w, moments } = self;
        if moments.iter().all(|moment| moment.count == 0) {
            return Err(Error::failed(
                "cannot find subspaces of a matrix without a single input",
            ));
        }

        let space = if w.rows() >= w.cols() {
            Space::of_inputs(wide::widened(w), &moments)
        } else {
            Space::new(None, w.rows(), moments)
        };
        space.solved(config, draws)
    }

    /// The subspaces of all clusters: [`MatrixMoments::solve`], then [`Solutions::describe`].
    pub fn subspaces(
        self,
        config: &SubspacesConfig,
        draws: &Draws<'_>,
    ) -> Result<Vec<Subspace>> {
        Ok(self.solve(config, draws)?.describe())
    }
}

impl<'a> MatrixMomentsBuilder<'a> {
    /// Adds row-major inputs and their clusters. The cut into calls changes no bit.
    pub fn push(&mut self, rows: &[f32], labels: &[u32]) -> Result<()> {
        let Self { w, waiting, moments, outputs } = self;
        waiting.push(rows, labels, |block| add_block(w, block, moments, outputs))
    }

    /// The moments of all rows pushed.
    pub fn finish(mut self) -> Result<MatrixMoments<'a>> {
        let Self { w, waiting, moments, outputs } = &mut self;
        add_block(w, waiting.rest(), moments, outputs);
        finish(moments.iter_mut().collect())?;
        Ok(MatrixMoments { w: self.w, moments: self.moments })
    }
}

/// Adds inputs of a tall matrix, outputs of a wide one.
fn add_block(
    w: &Matrix,
    block: Block<'_>,
    moments: &mut [Moment],
    outputs: &mut Vec<f32>,
) {
    let (out, inputs) = (w.rows(), w.cols());
    // The products of a chunk of rows run on one thread.
    if out < inputs {
        outputs.resize(block.labels.len() * out, 0.0);
        par::for_each_chunk(outputs, CHUNK * out, |index, chunk| {
            let rows = chunk.len() / out * inputs;
            let rows = &block.rows[index * CHUNK * inputs..][..rows];
            let w = gemm::Rows::new(w.data(), inputs);
            gemm::a_bt(chunk, gemm::Rows::new(rows, inputs), w, Write::Replace);
        });
    }

    let values = if out < inputs { &outputs[..] } else { block.rows };
    let moments = moments.iter_mut().enumerate().map(|(i, m)| (i, m, values));
    add_moments(moments.collect(), block.labels);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Center, Directions, Labels};
    use crate::rng;

    const DRAWS: Draws<'_> = Draws { seed: 1, place: "matrix" };

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut x = Matrix::zeros(rows, cols);
        rng::fill_normal(&mut rng::stream(seed, "test"), 1.0, x.data_mut());
        x
    }

    /// `Σ |W x - U Uᵀ W x|² / Σ |W x|²` over the rows of a cluster, by plain loops.
    fn error(
        w: &Matrix,
        basis: &Matrix,
        x: &Matrix,
        labels: &[u32],
        cluster: u32,
    ) -> f64 {
        let (mut lost, mut all) = (0.0, 0.0);
        for (row, _) in x.iter_rows().zip(labels).filter(|(_, l)| **l == cluster) {
            let y: Vec<f64> = w
                .iter_rows()
                .map(|w| {
                    w.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                })
                .collect();
            let mut rest = y.clone();
            for k in 0..basis.cols() {
                let along: f64 =
                    (0..y.len()).map(|i| f64::from(basis.row(i)[k]) * y[i]).sum();
                for (i, value) in rest.iter_mut().enumerate() {
                    *value -= along * f64::from(basis.row(i)[k]);
                }
            }
            lost += rest.iter().map(|v| v * v).sum::<f64>();
            all += y.iter().map(|v| v * v).sum::<f64>();
        }
        lost / all
    }

    #[test]
    fn tall_wide_and_square_matrices_lose_what_their_spectrum_says() {
        for (out, inputs) in [(13, 6), (6, 13), (8, 8)] {
            let (w, x) = (random(out, inputs, 1), random(9000, inputs, 2));
            let labels: Vec<u32> = (0..9000).map(|i| i % 3).collect();
            let fixed = |rank| SubspacesConfig {
                labels: Labels::Clusters,
                directions: Directions::Top,
                center: Center::None,
                tau: f64::MIN_POSITIVE,
                min_rank: rank,
                min_tokens: 0,
                shrinkage: 0.0,
            };
            let gathered = |cut: usize| {
                let mut builder = MatrixMoments::builder(&w, 3).unwrap();
                for (rows, labels) in
                    x.data().chunks(cut * inputs).zip(labels.chunks(cut))
                {
                    builder.push(rows, labels).unwrap();
                }
                builder.finish().unwrap()
            };
            let moments = gathered(9000);
            for rank in [1, 4] {
                let found = moments.clone().subspaces(&fixed(rank), &DRAWS).unwrap();
                assert_eq!(found, gathered(777).subspaces(&fixed(rank), &DRAWS).unwrap());
                for (cluster, s) in (0..3).zip(&found) {
                    let basis = s.basis.as_ref().unwrap();
                    assert_eq!((s.rank, basis.rows(), basis.cols()), (rank, out, rank));
                    let slow = error(&w, basis, &x, &labels, cluster);
                    assert!((slow - s.error_inside).abs() < 1e-6, "{slow}");
                    let tail: f64 = s.spectrum[rank..].iter().sum();
                    assert!((tail - s.error_inside).abs() < 1e-9);
                }
            }
            assert!(moments.subspaces(&fixed(99), &DRAWS).unwrap()[0].basis.is_none());
            assert!(MatrixMoments::builder(&w, 0).is_err());
        }
    }
}
