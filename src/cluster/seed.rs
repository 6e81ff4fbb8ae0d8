//! k-means++ with cosine distance: starting centroids that are far apart.
//!
//! The next centroid is drawn with probability proportional to `1 - cos` to the nearest one
//! chosen so far, which on the sphere is half the squared Euclidean distance: the D² rule
//! of Arthur and Vassilvitskii (2007). All restarts share each pass.

use super::assign::unit;
use super::form::Form;
use super::kernel;
use super::source::{self, CHUNK, Slabs};
use crate::error::Result;
use crate::rng::{self, RngExt};

/// Draws `k` unit centroids for each of `restarts` starts, restart after restart.
/// `norms` are the lengths of the rows, of which at least one is not zero.
pub(super) fn plus_plus(
    source: &impl Slabs,
    norms: &[f64],
    k: usize,
    restarts: usize,
    seed: u64,
) -> Result<Vec<f64>> {
    let (rows, cols) = (source.count(), source.width());
    let usable: Vec<f32> =
        norms.iter().map(|&n| if n > 0.0 { 1.0 } else { 0.0 }).collect();
    // A stream per restart: more restarts change no earlier one.
    let mut streams: Vec<_> = (0..restarts)
        .map(|r| rng::stream(seed, &format!("cluster/restart.{r}")))
        .collect();
    // Above any distance on the sphere, so that the first centroid sets every weight.
    let mut weights = vec![2.0_f32; restarts * rows];
    let mut centroids = vec![0.0; restarts * k * cols];

    for step in 0..k {
        let mut drawn = Vec::with_capacity(restarts);
        for (stream, weights) in streams.iter_mut().zip(weights.chunks_exact(rows)) {
            let fraction = stream.random::<f64>();
            let weights = if step == 0 { &usable } else { weights };
            // All weights are zero once every direction is a centroid: any row will do then.
            let row = draw(weights, fraction).or_else(|| draw(&usable, fraction));
            drawn.push(row.unwrap_or(0));
        }

        let mut newest = Vec::with_capacity(restarts);
        for (restart, row) in source.single(&drawn)?.into_iter().enumerate() {
            let row = unit(&row.into_iter().map(f64::from).collect::<Vec<_>>());
            centroids[(restart * k + step) * cols..][..cols].copy_from_slice(&row);
            newest.push(row);
        }

        // Nothing is drawn after the last centroid.
        if step + 1 < k {
            lower(source, norms, &newest, &mut weights)?;
        }
    }
    Ok(centroids)
}

/// Lowers every row's weight to its distance from the newest centroid of each restart.
fn lower<X: Slabs>(
    source: &X,
    norms: &[f64],
    newest: &[Vec<f64>],
    weights: &mut [f32],
) -> Result<()> {
    let (rows, cols) = (source.count(), source.width());
    let units = X::Form::units(cols);
    let distances = |first: usize, chunk: &[<X::Form as Form>::Unit]| {
        let mut out = vec![0.0_f32; newest.len() * (chunk.len() / units)];
        let mut scratch = Vec::new();
        for (i, row) in chunk.chunks_exact(units).enumerate() {
            let row = X::Form::row(row, cols, &mut scratch);
            let norm = norms[first + i];
            for (restart, centroid) in newest.iter().enumerate().filter(|_| norm > 0.0) {
                let cosine = kernel::dot_exact(row, centroid) / norm;
                // Rounding leaves up to 1e-15 for equal directions: that is no distance.
                let distance = crate::num::round_f32(1.0 - cosine);
                out[i * newest.len() + restart] =
                    if distance < 1e-12 { 0.0 } else { distance };
            }
        }
        Ok(out)
    };

    source::scan(source, 4 * newest.len() * CHUNK, distances, |first, made| {
        for (i, distances) in made.chunks_exact(newest.len()).enumerate() {
            for (restart, &distance) in distances.iter().enumerate() {
                let weight = &mut weights[restart * rows + first + i];
                *weight = weight.min(distance);
            }
        }
    })
}

/// The index at which the running sum of the weights passes `fraction` of the total; `None`
/// if all weights are zero. Never an index of weight zero.
fn draw(weights: &[f32], fraction: f64) -> Option<usize> {
    let totals: Vec<f64> = weights.chunks(CHUNK).map(crate::num::sum).collect();
    let mut left = fraction * totals.iter().sum::<f64>();
    let mut last = None;

    // Whole chunks are skipped by their sums; only the one that holds the draw is walked.
    for (chunk, &total) in totals.iter().enumerate() {
        if left >= total && chunk + 1 < totals.len() {
            left -= total;
            continue;
        }
        for (i, &weight) in weights.iter().enumerate().skip(chunk * CHUNK).take(CHUNK) {
            if weight > 0.0 {
                last = Some(i);
                left -= f64::from(weight);
                if left < 0.0 {
                    return last;
                }
            }
        }
    }

    // Rounding may leave a rest behind the last weight.
    last.or_else(|| weights.iter().rposition(|&weight| weight > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_weights_and_skip_zeros() {
        let weights = [0.0, 1.0, 0.0, 3.0, 0.0];
        let mut counts = [0; 5];
        for step in 0..1000 {
            counts[draw(&weights, f64::from(step) / 1000.0).unwrap()] += 1;
        }
        assert_eq!(counts, [0, 250, 0, 750, 0]);
        assert_eq!(draw(&weights, 0.999_999_999_999_999_9), Some(3));
        assert_eq!(draw(&[0.0; 3], 0.5), None);
        let long: Vec<f32> = (0..5000).map(|i| if i < 100 { 1.0 } else { 0.0 }).collect();
        assert_eq!(draw(&long, 0.999_999_999_999_999_9), Some(99));
    }
}
