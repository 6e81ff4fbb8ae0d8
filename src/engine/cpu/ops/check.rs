//! The slow truth of the operators' tests: definitions in f64 and their central differences.
//!
//! A test writes an operator's definition as plain loops over f64, compares the forward with
//! it, and the hand-written backward with the differences of Σ upstream · y.

use crate::rng;

/// Step of the differences: f64 leaves errors of about 1e-9.
const STEP: f64 = 1e-5;

/// Normal values of a named stream.
pub(super) fn random(name: &str, len: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    rng::fill_normal(&mut rng::stream(seed, name), 1.0, &mut values);
    values
}

/// The same values in f64.
pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// d (Σ upstream · f(x)) / dx by central differences.
pub(super) fn differences(
    x: &[f32],
    upstream: &[f32],
    f: impl Fn(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let mut x = wide(x);
    let weighted = |x: &[f64]| -> f64 {
        f(x).iter().zip(upstream).map(|(y, p)| y * f64::from(*p)).sum()
    };

    let mut found = Vec::with_capacity(x.len());
    for i in 0..x.len() {
        let middle = x[i];
        x[i] = middle + STEP;
        let up = weighted(&x);
        x[i] = middle - STEP;
        found.push((up - weighted(&x)) / (2.0 * STEP));
        x[i] = middle;
    }
    found
}

/// Every value within `tolerance` of the truth, relative to the largest of the truth (at
/// least 1).
#[track_caller]
pub(super) fn assert_close(what: &str, found: &[f32], truth: &[f64], tolerance: f64) {
    assert_eq!(found.len(), truth.len(), "{what}");
    let size = truth.iter().fold(1.0_f64, |size, v| size.max(v.abs()));
    for (i, (found, truth)) in found.iter().zip(truth).enumerate() {
        let gap = (f64::from(*found) - truth).abs();
        assert!(gap <= tolerance * size, "{what} [{i}]: {found}, expected {truth}");
    }
}
