//! Control: the cluster-aware method with subspaces of shuffled labels.
//!
//! The subspaces come from groups of the same sizes whose tokens have nothing in common, by
//! the same code. The router stays the centroids of the *real* clusters: the control
//! isolates what the cluster-derived subspaces add, so nothing else may change.

use super::cluster_aware::projected_experts;
use super::router::centroid_router;
use super::{DenseFfn, Evidence, Experts, Method, Needs, Parameter, Settings, Streams};
use crate::config::Labels;
use crate::error::Result;

/// Method `random-clusters`: subspaces of shuffled labels, centroid router.
#[derive(Debug)]
pub struct RandomClusters;

impl Method for RandomClusters {
    fn name(&self) -> &'static str {
        "random-clusters"
    }

    fn reference(&self) -> &'static str {
        "control of this project for Chu et al., CVPR 2026, https://arxiv.org/abs/2604.13508"
    }

    fn describe(&self) -> &'static str {
        "as cluster-aware, but the subspaces come from shuffled labels; centroid router"
    }

    fn needs(&self) -> Needs {
        Needs { centroids: true, subspaces: Some(Labels::Shuffled) }
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

#[cfg(test)]
mod tests {
    use super::super::ClusterAware;
    use super::super::samples::{Parts, run};
    use super::*;

    #[test]
    fn given_equal_evidence_it_is_the_cluster_aware_method() {
        let parts = Parts::new(5, 9, 3, 2);
        let (control, method) =
            (run(&RandomClusters, &parts, 3, 1), run(&ClusterAware, &parts, 3, 1));
        assert_eq!(control, method);
    }
}
