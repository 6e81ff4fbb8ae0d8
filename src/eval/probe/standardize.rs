//! Features of mean 0 and variance 1, by the mean and spread of the few-shot set itself.

use crate::error::{Error, Result};
use crate::linalg::Matrix;

/// Spread, relative to the widest feature, below which a feature counts as constant: it is
/// centered but not scaled, so that rounding noise does not become a feature.
const CONSTANT: f64 = 1e-6;

/// Standardized features of a few-shot set, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardized {
    values: Vec<f64>,
    mean: Vec<f64>,
    scale: Vec<f64>,
    n: usize,
}

impl Standardized {
    /// Standardizes the `rows` of `embeddings` (variance by 1/n); at least one row.
    pub fn new(embeddings: &Matrix, rows: &[usize]) -> Result<Self> {
        let (n, width) = (rows.len(), embeddings.cols());
        if n == 0 || width == 0 {
            return Err(Error::failed(format!(
                "found {n} few-shot pictures with {width} features, expected at least one \
                 of each"
            )));
        }

        let mut mean = vec![0.0; width];
        for &row in rows {
            for (sum, &value) in mean.iter_mut().zip(embeddings.row(row)) {
                *sum += f64::from(value);
            }
        }
        for sum in &mut mean {
            *sum /= n as f64;
        }

        // A second pass over centered values: Σ x² - n mean² would lose the small
        // spreads.
        let mut scale = vec![0.0; width];
        for &row in rows {
            for ((sum, &value), mean) in
                scale.iter_mut().zip(embeddings.row(row)).zip(&mean)
            {
                *sum += (f64::from(value) - mean).powi(2);
            }
        }
        for sum in &mut scale {
            *sum = (*sum / n as f64).sqrt();
        }

        // A feature that does not vary would be divided by rounding noise.
        let widest = scale.iter().copied().fold(0.0, f64::max);
        for spread in &mut scale {
            if *spread <= CONSTANT * widest {
                *spread = 1.0;
            }
        }

        let mut values = Vec::with_capacity(n * width);
        for &row in rows {
            let centered = embeddings.row(row).iter().zip(&mean).zip(&scale);
            values.extend(
                centered.map(|((&v, mean), scale)| (f64::from(v) - mean) / scale),
            );
        }
        Ok(Self { values, mean, scale, n })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Never true: an empty set is refused.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Number of features P.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// All values [n, P], row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Mean of feature `k` before standardization.
    pub fn mean(&self, k: usize) -> f64 {
        self.mean[k]
    }

    /// What feature `k` was divided by.
    pub fn scale(&self, k: usize) -> f64 {
        self.scale[k]
    }
}
