//! Multinomial logistic regression by linfa-logistic (L-BFGS).
//!
//! linfa minimizes `Σ loss + (α/2)‖W‖²`, with a sum where our objective has a mean: α = λ n.
//! The weights λ are fitted in descending order, each from the solution of the last one: the
//! path is smooth, so that a warm start needs only a fraction of the iterations.

use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_logistic::MultiLogisticRegression;
use ndarray::{Array1, Array2, Axis, concatenate};

use super::{Linear, Probe, Standardized, check_labels};
use crate::error::{Context, Result};

/// Gradient length of the mean loss at which a fit is done. On 89 classes × 10 shots × 64
/// features no accuracy differs from that at 1e-6 by more than 0.2 points; at 1e-3 the
/// strongest weight is 2 points off, for half the time.
const GRADIENT: f64 = 1e-4;

/// Most L-BFGS iterations of a fit: a guard, and not what usually ends it.
const ITERATIONS: u64 = 300;

/// The logistic probe.
#[derive(Debug, Clone, Copy)]
pub struct Logistic {
    gradient: f64,
    iterations: u64,
}

impl Default for Logistic {
    fn default() -> Self {
        Self { gradient: GRADIENT, iterations: ITERATIONS }
    }
}

impl Logistic {
    /// A probe whose fits stop at this gradient length of the mean loss or after so many
    /// iterations.
    pub fn new(gradient: f64, iterations: u64) -> Self {
        Self { gradient, iterations }
    }
}

impl Probe for Logistic {
    fn name(&self) -> &'static str {
        "logistic"
    }

    fn fit(
        &self,
        features: &Standardized,
        class: &[usize],
        classes: usize,
        l2: &[f64],
    ) -> Result<Vec<Linear>> {
        check_labels(features, class, classes)?;
        let n = features.len();
        let shape = (n, features.width());
        let x = Array2::from_shape_vec(shape, features.values().to_vec())
            .context(|| "laying out few-shot features".to_owned())?;
        let data = DatasetBase::new(x, Array1::from_vec(class.to_vec()));

        // From strong to weak weights, so that each fit starts at a solution nearby.
        let mut order: Vec<usize> = (0..l2.len()).collect();
        order.sort_by(|&a, &b| l2[b].total_cmp(&l2[a]));
        let mut path: Vec<Option<Linear>> = vec![None; l2.len()];
        let mut start = Array2::zeros((features.width() + 1, classes));
        for index in order {
            let lambda = l2[index];

            let fitted = MultiLogisticRegression::<f64>::default()
                .alpha(lambda * n as f64)
                .gradient_tolerance(self.gradient * n as f64)
                .max_iterations(self.iterations)
                .initial_params(start)
                .fit(&data)
                .context(|| format!("fitting the logistic probe at ℓ2 {lambda}"))?;

            let bias = fitted.intercept().clone().insert_axis(Axis(0));
            start = concatenate(Axis(0), &[fitted.params().view(), bias.view()])
                .context(|| "stacking the logistic probe's parameters".to_owned())?;
            path[index] = Some(Linear {
                weights: fitted.params().iter().copied().collect(),
                bias: fitted.intercept().to_vec(),
            });
        }
        Ok(path.into_iter().flatten().collect())
    }
}
