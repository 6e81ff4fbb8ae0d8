//! The random streams of one layer: every draw comes from the run seed, the method, the
//! layer and the expert, so no expert can change another.

use crate::rng::{self, Stream};

/// Opens the streams of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Streams<'a> {
    seed: u64,
    place: &'a str,
}

impl<'a> Streams<'a> {
    /// The streams of run `seed` at `place`, as in `vision.1`.
    pub fn new(seed: u64, place: &'a str) -> Self {
        Self { seed, place }
    }

    /// The layer, as in `vision.1`; errors begin with it.
    pub fn place(&self) -> &'a str {
        self.place
    }

    /// The stream `upcycle/<method>/<place>`, for draws that belong to all experts together.
    pub fn layer(&self, method: &str) -> Stream {
        rng::stream(self.seed, &format!("upcycle/{method}/{}", self.place))
    }

    /// The stream `upcycle/<method>/<place>/expert.<index>`.
    pub fn expert(&self, method: &str, index: usize) -> Stream {
        rng::stream(self.seed, &format!("upcycle/{method}/{}/expert.{index}", self.place))
    }

    /// The stream `upcycle/router/<place>`: the same for every method, so that runs of one
    /// seed differ in the experts and not in the luck of the router.
    pub fn router(&self) -> Stream {
        rng::stream(self.seed, &format!("upcycle/router/{}", self.place))
    }
}
