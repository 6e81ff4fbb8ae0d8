//! Where random directions come from.

use crate::rng::{self, Stream};

/// The random streams of one matrix, for subspaces whose directions are drawn.
///
/// Every cluster has a stream of its own, so the directions of one do not depend on how many
/// there are.
#[derive(Debug, Clone, Copy)]
pub struct Draws<'a> {
    /// Seed of the run.
    pub seed: u64,
    /// The matrix, as in `vision.1.fc1`.
    pub place: &'a str,
}

impl Draws<'_> {
    /// The stream `subspaces/random/<place>/<cluster>`.
    pub(super) fn stream(&self, cluster: usize) -> Stream {
        rng::stream(self.seed, &format!("subspaces/random/{}/{cluster}", self.place))
    }
}
