//! The two routers a layer can start with.

use super::{LayerInput, Method};
use crate::error::Result;
use crate::linalg::Matrix;
use crate::num;
use crate::rng;

/// Where the rows of the router Wr `[E, d]` come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// N(0, `router_std`²): row i does not depend on the number of experts.
    Random,
    /// The unit centroids of the layer's clusters times `router_scale` (METHOD §2.4): the
    /// logit of a token is its cosine to the centroid times its norm, the criterion it was
    /// clustered by.
    Centroids,
}

impl Router {
    /// The router of one layer.
    pub(super) fn of(
        self,
        method: &dyn Method,
        layer: &LayerInput<'_>,
    ) -> Result<Matrix> {
        match self {
            Self::Random => Ok(random(layer)),
            Self::Centroids => {
                let place = layer.streams.place();
                let centroids = layer.evidence.centroids(method, place)?;
                Ok(scaled(centroids, layer.settings.router_scale()))
            }
        }
    }
}

fn random(layer: &LayerInput<'_>) -> Matrix {
    let mut router = Matrix::zeros(layer.settings.experts(), layer.dense.width());
    let std = layer.settings.router_std();

    let mut stream = layer.streams.router();
    for value in router.data_mut() {
        *value = num::round_f32(std * rng::normal_f64(&mut stream));
    }
    router
}

fn scaled(centroids: &Matrix, scale: f64) -> Matrix {
    let mut router = centroids.clone();
    for value in router.data_mut() {
        *value = num::round_f32(scale * f64::from(*value));
    }
    router
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, ffn, settings, settings_with};
    use super::super::{Evidence, Sparse, Streams, find};
    use super::*;

    #[test]
    fn a_random_router_has_the_standard_deviation_it_was_asked_for() {
        let settings = settings_with(&Sparse, 16, |init| init.router_std = Some(0.3));
        let dense = ffn(500, 3, 1);
        let router = random(&LayerInput {
            dense: dense.tensors(),
            evidence: Evidence::default(),
            settings: &settings,
            streams: Streams::new(5, "vision.1"),
        });
        let values: Vec<f64> = router.data().iter().map(|&v| f64::from(v)).collect();
        let n = values.len() as f64;
        assert_eq!((router.rows(), router.cols()), (16, 500));
        assert!(num::mean(&values).abs() < 4.5 * 0.3 / n.sqrt());
        assert!((num::std_dev(&values) - 0.3).abs() < 4.5 * 0.3 / (2.0 * n).sqrt());
    }

    #[test]
    fn the_default_scale_keeps_centroids_bit_for_bit_and_others_multiply() {
        let parts = Parts::new(5, 7, 3, 2);
        let method = find("router-only").unwrap();
        assert_eq!(
            scaled(&parts.centroids, settings(method, 3).router_scale()),
            parts.centroids
        );
        let twice = settings_with(method, 3, |init| init.router_scale = Some(2.0));
        let doubled: Vec<f32> = parts.centroids.data().iter().map(|v| 2.0 * v).collect();
        assert_eq!(scaled(&parts.centroids, twice.router_scale()).data(), doubled);
    }
}
