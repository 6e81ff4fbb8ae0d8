//! Cluster-aware upcycling: every expert keeps what its cluster of tokens needs, and the
//! router sends it that cluster.

use super::evidence::MatrixBasis;
use super::projection::{Subspace, project_ffn};
use super::router::centroid_router;
use super::{
    DenseFfn, Evidence, ExpertBases, Experts, Method, Needs, Parameter, Settings, Streams,
};
use crate::config::Labels;
use crate::error::Result;
use crate::linalg::wide::widened;
use crate::par;

/// Method `cluster-aware`: experts projected on their cluster's subspace, centroid router.
#[derive(Debug)]
pub struct ClusterAware;

impl Method for ClusterAware {
    fn name(&self) -> &'static str {
        "cluster-aware"
    }

    fn reference(&self) -> &'static str {
        "Chu et al., Enhancing Mixture-of-Experts Specialization via Cluster-Aware \
         Upcycling, CVPR 2026, https://arxiv.org/abs/2604.13508"
    }

    fn describe(&self) -> &'static str {
        "experts projected on the subspace of their token cluster; centroid router"
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
        let centroids = evidence.centroids(self, place)?;
        Ok(Experts {
            experts: projected_experts(dense, evidence.subspaces(self, place)?),
            router: centroid_router(settings, centroids),
        })
    }
}

/// One expert for each entry: the dense FFN projected on its bases (METHOD §2.3).
pub(super) fn projected_experts(
    dense: &DenseFfn,
    subspaces: &[ExpertBases],
) -> Vec<DenseFfn> {
    par::map(subspaces.len(), |index| {
        let bases = &subspaces[index];
        project_ffn(dense, &subspace(&bases.fc1), &subspace(&bases.fc2))
    })
}

fn subspace(found: &MatrixBasis) -> Subspace<'_> {
    Subspace { basis: found.basis.as_ref().map(widened), mean: found.mean.as_deref() }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, distance, run};
    use super::super::{RouterOnly, SvdOnly};
    use super::*;
    use crate::linalg::Matrix;

    #[test]
    fn full_rank_returns_the_dense_ffn_bit_for_bit() {
        let mut parts = Parts::new(5, 9, 3, 2);
        parts.subspaces = vec![ExpertBases::default(); 3];
        let made = run(&ClusterAware, &parts, 3, 1);
        assert!(made.experts.iter().all(|expert| *expert == parts.dense));
        assert_eq!(made, run(&RouterOnly, &parts, 3, 1));
    }

    /// The slow reference: the out × out projector written out, entry by entry.
    fn reference(w: &Matrix, basis: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(w.rows(), w.cols());
        for i in 0..w.rows() {
            for j in 0..w.cols() {
                let entry: f64 = (0..w.rows())
                    .map(|k| {
                        let p: f64 = (0..basis.cols())
                            .map(|r| {
                                f64::from(basis.row(i)[r]) * f64::from(basis.row(k)[r])
                            })
                            .sum();
                        p * f64::from(w.row(k)[j])
                    })
                    .sum();
                out.row_mut(i)[j] = crate::num::round_f32(entry);
            }
        }
        out
    }

    #[test]
    fn experts_are_the_dense_matrices_projected() {
        let parts = Parts::new(5, 9, 3, 2);
        let made = run(&ClusterAware, &parts, 3, 1);
        for (expert, bases) in made.experts.iter().zip(&parts.subspaces) {
            let fc1 = reference(&parts.dense.fc1, bases.fc1.basis.as_ref().unwrap());
            let fc2 = reference(&parts.dense.fc2, bases.fc2.basis.as_ref().unwrap());
            assert!(distance(&expert.fc1, &fc1) < 1e-6);
            assert!(distance(&expert.fc2, &fc2) < 1e-6);
        }
    }

    #[test]
    fn biases_move_only_with_a_mean() {
        let mut parts = Parts::new(5, 9, 2, 2);
        let moved = run(&ClusterAware, &parts, 2, 1);
        assert_ne!(moved.experts[0].fc1_bias, parts.dense.fc1_bias);
        assert_ne!(moved.experts[0].fc2_bias, parts.dense.fc2_bias);
        for bases in &mut parts.subspaces {
            bases.fc1.mean = None;
            bases.fc2.mean = None;
        }
        let plain = run(&ClusterAware, &parts, 2, 1);
        assert_eq!(plain.experts[0].fc1_bias, parts.dense.fc1_bias);
        assert_eq!(plain.experts[0].fc2_bias, parts.dense.fc2_bias);
        assert_eq!(plain.experts[0].fc1, moved.experts[0].fc1);
    }

    #[test]
    fn the_router_is_the_centroids_and_the_control_differs_only_there() {
        let parts = Parts::new(5, 9, 3, 2);
        let made = run(&ClusterAware, &parts, 3, 1);
        assert_eq!(made.router, parts.centroids);
        let control = run(&SvdOnly, &parts, 3, 1);
        assert_eq!(control.experts, made.experts);
        assert_ne!(control.router, made.router);
    }
}
