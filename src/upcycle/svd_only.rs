//! Control: the experts of the cluster-aware method behind a random router.

use super::cluster_aware::projected_experts;
use super::router::random_router;
use super::{DenseFfn, Evidence, Experts, Method, Needs, Parameter, Settings, Streams};
use crate::config::Labels;
use crate::error::Result;

/// Method `svd-only`: experts projected on their cluster's subspace, random router.
#[derive(Debug)]
pub struct SvdOnly;

impl Method for SvdOnly {
    fn name(&self) -> &'static str {
        "svd-only"
    }

    fn reference(&self) -> &'static str {
        "control of this project for Chu et al., CVPR 2026, https://arxiv.org/abs/2604.13508"
    }

    fn describe(&self) -> &'static str {
        "the experts of cluster-aware; random router"
    }

    fn needs(&self) -> Needs {
        Needs { centroids: false, subspaces: Some(Labels::Clusters) }
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter::RouterStd]
    }

    fn experts(
        &self,
        dense: &DenseFfn,
        evidence: &Evidence<'_>,
        settings: &Settings,
        streams: &Streams<'_>,
    ) -> Result<Experts> {
        let subspaces = evidence.subspaces(self, streams.place())?;
        Ok(Experts {
            experts: projected_experts(dense, subspaces),
            router: random_router(settings, streams, dense.width()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sparse;
    use super::super::samples::{Parts, run};
    use super::*;

    /// Runs of one seed share the router, so they differ in the experts alone.
    #[test]
    fn the_router_is_that_of_sparse_upcycling() {
        let parts = Parts::new(5, 9, 3, 2);
        let (control, sparse) = (run(&SvdOnly, &parts, 3, 1), run(&Sparse, &parts, 3, 1));
        assert_eq!(control.router, sparse.router);
        assert_ne!(control.experts, sparse.experts);
    }
}
