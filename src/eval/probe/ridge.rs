//! Ridge regression to ±1 one-hot targets, in closed form (vmoe, `evaluate/fewshot.py`).

use nalgebra::DMatrix;

use super::{Linear, Probe, Standardized, check_labels};
use crate::error::{Error, Result};

/// The closed-form probe: `(XᵀX + λ n I) W = Xᵀ Y` by Cholesky, with the squared loss halved.
/// X is centered, so the free intercept is the mean of Y.
#[derive(Debug, Clone, Copy)]
pub struct Ridge;

impl Probe for Ridge {
    fn name(&self) -> &'static str {
        "ridge"
    }

    fn fit(
        &self,
        features: &Standardized,
        class: &[usize],
        classes: usize,
        l2: &[f64],
    ) -> Result<Vec<Linear>> {
        check_labels(features, class, classes)?;
        let (n, width) = (features.len(), features.width());

        let x = DMatrix::from_row_slice(n, width, features.values());
        let mut y = DMatrix::from_element(n, classes, -1.0);
        for (row, &c) in class.iter().enumerate() {
            y[(row, c)] = 1.0;
        }

        // One Gram matrix serves all weights and classes: only its diagonal changes
        // with λ.
        let (gram, moment) = (x.tr_mul(&x), x.tr_mul(&y));
        let bias: Vec<f64> = y.row_mean().iter().copied().collect();
        l2.iter()
            .map(|&lambda| {
                let mut ridged = gram.clone();
                for k in 0..width {
                    ridged[(k, k)] += lambda * n as f64;
                }

                // A solve and not an inverse: XᵀX of a few pictures is singular without
                // λ n.
                let solver = ridged.cholesky().ok_or_else(|| {
                    Error::failed(format!(
                        "the ridge probe has a singular system at ℓ2 {lambda}, expected a \
                         larger weight in evaluate.probe_l2"
                    ))
                })?;
                // The transpose of a column-major [P, C] lies in memory as [P, C] by rows.
                let weights = solver.solve(&moment).transpose().as_slice().to_vec();
                Ok(Linear { weights, bias: bias.clone() })
            })
            .collect()
    }
}
