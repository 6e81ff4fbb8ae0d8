//! Control: exact copies behind the centroid router, the cluster-aware method at τ = 1.

use super::router::centroid_router;
use super::{DenseFfn, Evidence, Experts, Method, Needs, Parameter, Settings, Streams};
use crate::error::Result;

/// Method `router-only`: E exact copies behind the centroid router.
#[derive(Debug)]
pub struct RouterOnly;

impl Method for RouterOnly {
    fn name(&self) -> &'static str {
        "router-only"
    }

    fn reference(&self) -> &'static str {
        "control of this project for Chu et al., CVPR 2026, https://arxiv.org/abs/2604.13508"
    }

    fn describe(&self) -> &'static str {
        "every expert is an exact copy of the dense FFN; centroid router"
    }

    fn needs(&self) -> Needs {
        Needs { centroids: true, subspaces: None }
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
        let centroids = evidence.centroids(self, streams.place())?;
        Ok(Experts {
            experts: vec![dense.clone(); settings.experts()],
            router: centroid_router(settings, centroids),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, run};
    use super::*;

    #[test]
    fn experts_are_exact_copies_and_the_router_is_the_centroids() {
        let parts = Parts::new(5, 9, 4, 2);
        let made = run(&RouterOnly, &parts, 4, 1);
        assert!(made.experts.iter().all(|expert| *expert == parts.dense));
        assert_eq!(made.router, parts.centroids);
    }
}
