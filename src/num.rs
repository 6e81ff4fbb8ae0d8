//! Numeric conversions by names that say what is lost, and sums in f64.
//!
//! Every lossy `as` of the crate stands here, so that a reader finds each rounding and each
//! truncation by the name of a function and not by a cast among others.

/// Rounds to the nearest f32: about 7 decimal digits stay.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what the name says")]
#[inline]
pub fn round_f32(x: f64) -> f32 {
    x as f32
}

/// A count or an index as u32.
///
/// # Panics
/// Beyond 4,294,967,295: samples, positions, layers and experts are far below.
#[inline]
pub fn index_u32(n: usize) -> u32 {
    u32::try_from(n).expect("indices in artifacts are below 2^32")
}

/// A u32 index as usize; lossless on every supported platform.
#[inline]
pub fn widen(n: u32) -> usize {
    n as usize
}

/// Truncates a non-negative float towards zero; NaN and negatives become 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "truncation is what the name says"
)]
#[inline]
pub fn truncate_usize(x: f64) -> usize {
    x as usize
}

/// Rounds to the nearest i32, half away from zero, saturating; NaN becomes 0.
#[expect(clippy::cast_possible_truncation, reason = "saturation is what the name says")]
#[inline]
pub fn round_i32(x: f64) -> i32 {
    x.round() as i32
}

/// Truncates to an i32 towards zero, saturating; NaN becomes 0.
#[expect(clippy::cast_possible_truncation, reason = "truncation is what the name says")]
#[inline]
pub fn truncate_i32(x: f32) -> i32 {
    x as i32
}

/// Rounds to the nearest level 0..=255, saturating.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturation is what the name says"
)]
#[inline]
pub fn level_u8(x: f32) -> u8 {
    x.round().clamp(0.0, 255.0) as u8
}

/// Sum in f64, in order.
pub fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum()
}

/// Mean in f64, 0 for an empty slice.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Unbiased standard deviation in f64, 0 below two values.
pub fn std_dev(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let center = mean(values);

    let squares: f64 = values.iter().map(|v| (v - center).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}
