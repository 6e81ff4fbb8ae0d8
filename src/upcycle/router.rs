//! The two routers a layer can start with.

use super::{Settings, Streams};
use crate::linalg::Matrix;
use crate::num;
use crate::rng;

/// N(0, `router_std`²), `[E, d]`: row i does not depend on the number of experts.
pub fn random_router(settings: &Settings, streams: &Streams<'_>, width: usize) -> Matrix {
    let mut router = Matrix::zeros(settings.experts(), width);
    let mut stream = streams.router();
    for value in router.data_mut() {
        *value = num::round_f32(settings.router_std() * rng::normal_f64(&mut stream));
    }
    router
}

/// The unit centroids times `router_scale`, `[E, d]` (METHOD §2.4): the logit of a token
/// is its cosine to the centroid times its norm, the criterion it was clustered by.
pub fn centroid_router(settings: &Settings, centroids: &Matrix) -> Matrix {
    let mut router = centroids.clone();
    for value in router.data_mut() {
        *value = num::round_f32(settings.router_scale() * f64::from(*value));
    }
    router
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, settings, settings_with};
    use super::super::{RouterOnly, Sparse};
    use super::*;

    #[test]
    fn a_random_router_has_the_standard_deviation_it_was_asked_for() {
        let streams = Streams::new(5, "vision.1");
        let settings = settings_with(&Sparse, 16, |init| init.router_std = Some(0.3));
        let router = random_router(&settings, &streams, 500);
        let values: Vec<f64> = router.data().iter().map(|&v| f64::from(v)).collect();
        let n = values.len() as f64;
        assert!(num::mean(&values).abs() < 4.5 * 0.3 / n.sqrt());
        assert!((num::std_dev(&values) - 0.3).abs() < 4.5 * 0.3 / (2.0 * n).sqrt());
    }

    #[test]
    fn the_default_scale_keeps_centroids_bit_for_bit_and_others_multiply() {
        let parts = Parts::new(5, 7, 3, 2);
        let kept = centroid_router(&settings(&RouterOnly, 3), &parts.centroids);
        assert_eq!(kept, parts.centroids);
        let twice = settings_with(&RouterOnly, 3, |init| init.router_scale = Some(2.0));
        let scaled = centroid_router(&twice, &parts.centroids);
        let doubled: Vec<f32> = parts.centroids.data().iter().map(|v| 2.0 * v).collect();
        assert_eq!(scaled.data(), doubled);
    }
}
