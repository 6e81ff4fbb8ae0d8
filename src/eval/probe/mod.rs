//! Few-shot linear probes on frozen embeddings, one solver per file.
//!
//! A probe sees embeddings and class numbers. It returns one [`Linear`] for every ℓ2 weight
//! that it is given. Choosing among them is left to the task (`tasks/few_shot.rs`), because
//! only the task knows which pictures may be used for it.
//!
//! Both solvers minimize `(1/n) Σ loss(x_i W + b, y_i) + (λ/2)‖W‖²` with a free intercept, on
//! features that are standardized by the few-shot set itself. The division by n gives λ one
//! meaning for all numbers of shots. Standardizing gives it one meaning for all models, whose
//! 64 unit-length directions differ in spread by orders of magnitude (vmoe's `fewshot.py` does
//! the same).

mod draw;
mod logistic;
mod ridge;
mod standardize;

pub use draw::{FewShot, Size};
pub use logistic::Logistic;
pub use ridge::Ridge;
pub use standardize::Standardized;

use std::fmt;

use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::num;

/// A way to fit a linear classifier.
pub trait Probe: fmt::Debug + Sync {
    /// Name in the metrics: `<name>-<shots>`.
    fn name(&self) -> &'static str;

    /// Fits `class` (values below `classes`, each occurring) on `features` once for every
    /// weight of `l2`, in its order.
    fn fit(
        &self,
        features: &Standardized,
        class: &[usize],
        classes: usize,
        l2: &[f64],
    ) -> Result<Vec<Linear>>;
}

/// A linear classifier on standardized features.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Weights [P, C], row by row.
    pub weights: Vec<f64>,
    /// Intercepts `[C]`.
    pub bias: Vec<f64>,
}

/// Embeddings with a constant 1 appended: what [`Linear::on_embeddings`] multiplies.
pub fn with_constant(embeddings: &Matrix, rows: &[usize]) -> Result<Matrix> {
    let width = embeddings.cols() + 1;
    let mut data = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        data.extend_from_slice(embeddings.row(row));
        data.push(1.0);
    }
    Matrix::new(rows.len(), width, data)
}

impl Linear {
    /// The same classifier on raw embeddings: [C, P + 1], the last column the intercept.
    /// The standardization is folded into it, so that one matrix of test pictures serves every
    /// probe.
    pub fn on_embeddings(&self, features: &Standardized) -> Result<Matrix> {
        let (classes, width) = (self.bias.len(), features.width());
        let mut out = Matrix::zeros(classes, width + 1);

        // w·(x - m)/s + b = (w/s)·x + (b - (w/s)·m).
        for class in 0..classes {
            let mut bias = self.bias[class];
            for k in 0..width {
                let weight = self.weights[k * classes + class] / features.scale(k);
                bias -= weight * features.mean(k);
                out.row_mut(class)[k] = num::round_f32(weight);
            }
            out.row_mut(class)[width] = num::round_f32(bias);
        }

        if out.data().iter().all(|v| v.is_finite()) {
            Ok(out)
        } else {
            Err(Error::failed("a probe's weights are not finite"))
        }
    }
}

/// Refuses labels that do not fit the features.
fn check_labels(features: &Standardized, class: &[usize], classes: usize) -> Result<()> {
    let mut seen = vec![false; classes];
    for &c in class {
        let Some(entry) = seen.get_mut(c) else {
            return Err(Error::failed(format!(
                "found few-shot class {c}, expected a number below {classes}"
            )));
        };
        *entry = true;
    }

    if class.len() != features.len() {
        let (n, found) = (features.len(), class.len());
        return Err(Error::failed(format!(
            "found {found} labels for {n} few-shot pictures, expected one per picture"
        )));
    }
    if classes < 2 || seen.contains(&false) {
        let found = seen.iter().filter(|s| **s).count();
        return Err(Error::failed(format!(
            "{found} of {classes} few-shot classes have pictures, expected all of at least 2"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
