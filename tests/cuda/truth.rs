//! Comparison with slow definitions in f64.

use upcycle::rng;

/// Normal values of a named stream.
pub(crate) fn random(name: &str, len: usize, scale: f32) -> Vec<f32> {
    let mut values = vec![0.0; len];
    rng::fill_normal(&mut rng::stream(1, name), scale, &mut values);
    values
}

/// The nearest bf16's bits, ties to even.
pub(crate) fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    u16::try_from((bits + 0x7fff + (bits >> 16 & 1)) >> 16).unwrap()
}

pub(crate) fn wide(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Every value within `tolerance` of the truth, relative to the largest of the truth.
#[track_caller]
pub(crate) fn close(what: &str, found: &[f32], truth: &[f64], tolerance: f64) {
    let gap = gap(found, truth);
    assert!(
        gap <= tolerance,
        "{what}: off by {gap:.2e} of the largest value, allowed {tolerance:.0e}"
    );
}

/// The largest difference, relative to the largest of the truth.
#[track_caller]
pub(crate) fn gap(found: &[f32], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let size = truth.iter().fold(1e-12_f64, |size, v| size.max(v.abs()));
    let gaps = found.iter().zip(truth).map(|(f, t)| (f64::from(*f) - t).abs());
    // A value that is no number must not pass as a small difference.
    gaps.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) }) / size
}
