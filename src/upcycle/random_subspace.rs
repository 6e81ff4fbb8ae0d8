//! Control: random subspaces of the ranks that the clusters' subspaces have.
//!
//! Answers whether the *directions* of the subspaces matter or only how much is cut away.
//! Ranks, means (for `centre: mean`) and the centroid router are those of the cluster-aware
//! method; matrices of full rank stay whole, as there.

use super::evidence::MatrixBasis;
use super::projection::{Subspace, project_ffn};
use super::router::centroid_router;
use super::{DenseFfn, Evidence, Experts, Method, Needs, Parameter, Settings, Streams};
use crate::config::Labels;
use crate::error::Result;
use crate::linalg::orthonormal;
use crate::par;
use crate::rng::Stream;

/// Method `random-subspace`: random orthonormal bases of equal rank, centroid router.
#[derive(Debug)]
pub struct RandomSubspace;

impl Method for RandomSubspace {
    fn name(&self) -> &'static str {
        "random-subspace"
    }

    fn reference(&self) -> &'static str {
        "control of this project for Chu et al., CVPR 2026, https://arxiv.org/abs/2604.13508"
    }

    fn describe(&self) -> &'static str {
        "as cluster-aware, but the subspaces are random, of the same ranks; centroid router"
    }

    fn needs(&self) -> Needs {
        Needs { centroids: true, subspaces: Some(Labels::Clusters) }
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter::RouterScale]
    }

    fn experts(
        &self,
        dense: &DenseFfn,
        evidence: &Evidence<'_>,
        settings: &Settings,
        streams: &Streams<'_>,
    ) -> Result<Experts> {
        let place = streams.place();
        let subspaces = evidence.subspaces(self, place)?;
        let centroids = evidence.centroids(self, place)?;
        let experts = par::map(subspaces.len(), |index| {
            let mut stream = streams.expert(self.name(), index);
            let fc1 = random_like(&subspaces[index].fc1, dense.hidden(), &mut stream);
            let fc2 = random_like(&subspaces[index].fc2, dense.width(), &mut stream);
            project_ffn(dense, &fc1, &fc2)
        });
        Ok(Experts { experts, router: centroid_router(settings, centroids) })
    }
}

/// A random subspace of the same rank, with the same mean.
fn random_like<'a>(
    found: &'a MatrixBasis,
    outputs: usize,
    stream: &mut Stream,
) -> Subspace<'a> {
    let rank = found.rank(outputs);
    let basis = (rank < outputs).then(|| orthonormal::random(outputs, rank, stream));
    Subspace { basis, mean: found.mean.as_deref() }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, run};
    use super::super::{ClusterAware, ExpertBases};
    use super::*;
    use crate::linalg::Matrix;

    fn rank(matrix: &Matrix) -> usize {
        let values = crate::linalg::wide::widened(matrix).singular_values().unwrap();
        values.iter().filter(|&&v| v > 1e-5 * values[0]).count()
    }

    #[test]
    fn ranks_are_kept_and_directions_are_not() {
        let mut parts = Parts::new(6, 9, 3, 2);
        parts.subspaces[1].fc2 = MatrixBasis::default();
        let control = run(&RandomSubspace, &parts, 3, 1);
        let method = run(&ClusterAware, &parts, 3, 1);
        for (ours, theirs) in control.experts.iter().zip(&method.experts) {
            assert_eq!(rank(&ours.fc1), rank(&theirs.fc1));
            assert_eq!(rank(&ours.fc2), rank(&theirs.fc2));
            assert_ne!(ours.fc1, theirs.fc1);
        }
        assert_eq!(control.experts[1].fc2, parts.dense.fc2);
        assert_ne!(control.experts[0].fc1, control.experts[2].fc1);
        assert_eq!(control.router, method.router);
    }

    #[test]
    fn full_rank_leaves_nothing_to_draw() {
        let mut parts = Parts::new(6, 9, 2, 2);
        parts.subspaces = vec![ExpertBases::default(); 2];
        let made = run(&RandomSubspace, &parts, 2, 1);
        assert!(made.experts.iter().all(|expert| *expert == parts.dense));
    }
}
