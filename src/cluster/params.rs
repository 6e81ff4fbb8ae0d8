//! The parameters of k-means: what may be asked for, checked once.
//!
//! Only [`SphericalKMeans`], which has been checked, can run (linfa's `ParamGuard`).

use linfa::ParamGuard;

use crate::error::{Error, Result};

/// Checked parameters of spherical k-means; made by [`SphericalKMeans::params`].
#[derive(Debug, Clone, PartialEq)]
pub struct SphericalKMeans {
    pub(super) clusters: usize,
    pub(super) iterations: usize,
    pub(super) restarts: usize,
    pub(super) tolerance: f64,
    pub(super) seed: u64,
    pub(super) precision: Precision,
}

/// What the iterations read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The rows.
    #[default]
    F32,
    /// A bf16 copy of them, held in memory: half the bytes, and nearly half the time where
    /// memory is the limit. Assignments and objective of the result are those of the rows.
    Bf16,
}

/// Parameters that have not been checked yet.
#[derive(Debug, Clone, PartialEq)]
pub struct SphericalKMeansParams(SphericalKMeans);

impl SphericalKMeans {
    /// Parameters for `k` clusters: 50 iterations, 5 restarts, tolerance 1e-7, seed 0.
    pub fn params(k: usize) -> SphericalKMeansParams {
        SphericalKMeansParams(Self {
            clusters: k,
            iterations: 50,
            restarts: 5,
            tolerance: 1e-7,
            seed: 0,
            precision: Precision::F32,
        })
    }
}

impl SphericalKMeansParams {
    /// Most assignments of all rows in one restart.
    #[must_use]
    pub fn iterations(mut self, iterations: usize) -> Self {
        self.0.iterations = iterations;
        self
    }

    /// Independent starts that share every pass over the rows; the best objective wins.
    #[must_use]
    pub fn restarts(mut self, restarts: usize) -> Self {
        self.0.restarts = restarts;
        self
    }

    /// A restart ends when its mean cosine gains no more than this in an iteration.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.0.tolerance = tolerance;
        self
    }

    /// Seed of the starting centroids.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.0.seed = seed;
        self
    }

    /// What the iterations read.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.0.precision = precision;
        self
    }
}

impl ParamGuard for SphericalKMeansParams {
    type Checked = SphericalKMeans;
    type Error = Error;

    fn check_ref(&self) -> Result<&SphericalKMeans> {
        let SphericalKMeans { clusters, iterations, restarts, tolerance, .. } = &self.0;
        for (name, &count) in
            [("clusters", clusters), ("iterations", iterations), ("restarts", restarts)]
        {
            if count == 0 {
                return Err(Error::usage(format!(
                    "k-means: {name}: found 0, expected at least 1"
                )));
            }
        }

        // Negated, so that NaN is refused too.
        if !(tolerance.is_finite() && *tolerance >= 0.0) {
            return Err(Error::usage(format!(
                "k-means: tolerance: found {tolerance}, expected a number of at least 0"
            )));
        }
        Ok(&self.0)
    }

    fn check(self) -> Result<SphericalKMeans> {
        self.check_ref()?;
        Ok(self.0)
    }
}
