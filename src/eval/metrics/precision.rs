//! Mean average precision of a multi-label classifier.
//!
//! For each class, images are sorted by score (of equal scores the lower index first) and the
//! precision at each positive image is averaged; the result is the mean over classes. Classes
//! without a positive image have no average precision and are left out (`clip_benchmark`
//! counts them as 0).

use crate::error::{Error, Result};
use crate::linalg::Matrix;

/// Mean average precision of `scores` [n, C] for 0/1 `targets` [n, C], row by row.
pub fn mean_average_precision(scores: &Matrix, targets: &[bool]) -> Result<f64> {
    let (n, classes) = (scores.rows(), scores.cols());
    if targets.len() != n * classes {
        let found = targets.len();
        let expected = n * classes;
        return Err(Error::failed(format!(
            "found {found} targets for {n}×{classes} scores, expected {expected}"
        )));
    }

    if scores.data().iter().any(|v| !v.is_finite()) {
        return Err(Error::failed("one of the scores is not finite"));
    }

    let precisions: Vec<f64> = (0..classes)
        .filter_map(|class| average_precision(scores, targets, class))
        .collect();
    if precisions.is_empty() {
        return Err(Error::failed("no class has a positive image"));
    }
    Ok(crate::num::mean(&precisions))
}

fn average_precision(scores: &Matrix, targets: &[bool], class: usize) -> Option<f64> {
    let classes = scores.cols();
    let score = |image: usize| scores.data()[image * classes + class];

    // A stable sort: of equal scores the lower index stays first.
    let mut order: Vec<usize> = (0..scores.rows()).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));

    let (mut found, mut sum) = (0_u32, 0.0);
    for (place, &image) in order.iter().enumerate() {
        if targets[image * classes + class] {
            found += 1;
            sum += f64::from(found) / (place + 1) as f64;
        }
    }
    (found > 0).then(|| sum / f64::from(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positives_first_is_one_and_a_class_without_positives_is_left_out() {
        let scores = Matrix::new(3, 2, vec![0.9, 0.1, 0.8, 0.2, 0.1, 0.3]).unwrap();
        let targets = [true, false, true, false, false, false];
        let found = mean_average_precision(&scores, &targets).unwrap();
        assert!((found - 1.0).abs() < 1e-12);
        // Worst order: precisions 1/2 and 2/3.
        let targets = [false, false, true, false, true, false];
        let found = mean_average_precision(&scores, &targets).unwrap();
        assert!((found - f64::midpoint(0.5, 2.0 / 3.0)).abs() < 1e-12);
        assert!(mean_average_precision(&scores, &[false; 6]).is_err());
        assert!(mean_average_precision(&scores, &[true; 5]).is_err());
    }
}
