//! Named random streams: every draw comes from the run seed and a name.
//!
//! A stream is `ChaCha8` keyed by blake3 of the seed and the name. Two streams of different
//! names are independent, a stream does not depend on who else drew, and no thread, clock or
//! arrival order can reach it.

use rand::SeedableRng;
pub use rand::{Rng, RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// The generator behind every stream.
pub type Stream = ChaCha8Rng;

/// Opens the stream `name` of run `seed`.
///
/// ```
/// use upcycle::rng::{self, RngExt};
/// let mut a = rng::stream(7, "upcycle/drop/vision.1");
/// let mut b = rng::stream(7, "upcycle/drop/vision.1");
/// assert_eq!(a.random::<u64>(), b.random::<u64>());
/// ```
pub fn stream(seed: u64, name: &str) -> Stream {
    let mut hasher = blake3::Hasher::new_derive_key("upcycle 2026-11-22 random stream");

    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    Stream::from_seed(*hasher.finalize().as_bytes())
}

/// One draw from N(0, 1), kept in f64.
pub fn normal_f64(stream: &mut Stream) -> f64 {
    StandardNormal.sample(stream)
}

/// One draw from N(0, 1), made in f64 and rounded.
pub fn normal(stream: &mut Stream) -> f32 {
    crate::num::round_f32(normal_f64(stream))
}

/// Fills a slice with N(0, std²).
pub fn fill_normal(stream: &mut Stream, std: f32, out: &mut [f32]) {
    for value in out {
        *value = std * normal(stream);
    }
}

/// Fills a slice with the uniform distribution on [-bound, bound).
pub fn fill_uniform(stream: &mut Stream, bound: f32, out: &mut [f32]) {
    for value in out {
        *value = bound * (2.0 * stream.random::<f32>() - 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_seeds_separate_streams() {
        let draw = |seed, name| stream(seed, name).random::<u64>();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }
}
