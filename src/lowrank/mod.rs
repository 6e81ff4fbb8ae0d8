//! Data-aware low-rank subspaces of an FFN's two matrices, one per cluster (METHOD §2.3).
//!
//! Sees matrices and labeled rows, no model. Moments are gathered in one streaming pass
//! ([`MomentsBuilder`]) and serve every variant ([`LayerMoments::subspaces`]); weights follow
//! by [`project()`] and [`affine_bias`].

mod draws;
mod frame;
mod matrix;
mod moments;
mod project;
mod subspace;
#[cfg(test)]
mod tests;

pub use draws::Draws;
pub use matrix::{MatrixMoments, MatrixMomentsBuilder};
pub use moments::{FfnFunction, LayerMoments, MomentsBuilder};
pub use project::{affine_bias, project};
pub use subspace::{Solutions, Subspace, rank_for};

use subspace::{Space, check};

use crate::config::SubspacesConfig;
use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::par;

/// What one expert keeps of both matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertSubspaces {
    /// Of W1 [h, d], on the cluster's inputs.
    pub fc1: Subspace,
    /// Of W2 [d, h], on the dense hidden activations of the cluster's inputs.
    pub fc2: Subspace,
}

impl LayerMoments {
    /// The subspaces of every expert; `config.labels` has been decided by the labels pushed.
    /// Random directions are drawn for the layer `place`.
    ///
    /// One d × d eigenproblem per expert and matrix, in f64, independent of the number of
    /// threads. An empty cluster takes the pooled moments (shrinkage 1).
    pub fn subspaces(
        &self,
        config: &SubspacesConfig,
        seed: u64,
        place: &str,
    ) -> Result<Vec<ExpertSubspaces>> {
        check(config)?;
        if self.tokens().iter().all(|&tokens| tokens == 0) {
            return Err(Error::failed(
                "cannot find subspaces of an FFN without a single token",
            ));
        }

        // Outputs of W2 [d, h] span at most min(d, h) dimensions.
        let full = self.fc1.ncols().min(self.hidden);
        let (fc1_place, fc2_place) = (format!("{place}.fc1"), format!("{place}.fc2"));
        let (fc1, fc2) = par::join(
            || {
                let draws = Draws { seed, place: &fc1_place };
                Space::of_inputs(self.fc1.clone(), &self.inputs).solved(config, &draws)
            },
            || {
                let draws = Draws { seed, place: &fc2_place };
                Space::new(None, full, self.outputs.clone()).solved(config, &draws)
            },
        );

        let (fc1, fc2) = (fc1?.describe(), fc2?.describe());
        let pairs = fc1.into_iter().zip(fc2);
        Ok(pairs.map(|(fc1, fc2)| ExpertSubspaces { fc1, fc2 }).collect())
    }
}

/// The subspaces of one FFN from all its labeled inputs at once; for random directions the
/// seed is 0.
pub fn subspaces(
    ffn: FfnFunction<'_>,
    inputs: &Matrix,
    labels: &[u32],
    experts: usize,
    config: &SubspacesConfig,
) -> Result<Vec<ExpertSubspaces>> {
    let mut builder = LayerMoments::builder(ffn, experts)?;
    builder.push(inputs.data(), labels)?;
    builder.finish()?.subspaces(config, 0, "ffn")
}
