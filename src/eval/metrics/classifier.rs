//! A zero-shot classifier from prompts: one unit vector per class.
//!
//! The embedding of each prompt is normalized, the prompts of a class are averaged, and the
//! mean is normalized again (`open_clip`, `zero_shot_classifier.py`). A class is a list of
//! rows of prompts, so that a group of concepts is the class of all its members' prompts.

use super::super::similarity::norm;
use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::num;

/// Builds the classifier [C, P] (unit rows) of `classes`, each a list of rows of `prompts`
/// [n, P]. Sums in f64.
pub fn build(prompts: &Matrix, classes: &[Vec<usize>]) -> Result<Matrix> {
    let width = prompts.cols();
    let mut data = Vec::with_capacity(classes.len() * width);
    for (class, rows) in classes.iter().enumerate() {
        let mut sum = vec![0.0; width];
        for &row in rows {
            add_unit(prompts, row, &mut sum)
                .map_err(|e| Error::failed(format!("class {class}: {}", e.message())))?;
        }

        // Prompts that cancel leave rounding noise, which must not be scaled to length 1.
        let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
        if rows.is_empty() || length <= f64::EPSILON {
            let found = rows.len();
            return Err(Error::failed(format!(
                "class {class}: the mean of its {found} prompts has no direction"
            )));
        }

        // The division by the number of prompts is left out: normalizing undoes it.
        data.extend(sum.iter().map(|v| num::round_f32(v / length)));
    }
    Matrix::new(classes.len(), width, data)
}

/// Adds a prompt, scaled to unit length.
fn add_unit(prompts: &Matrix, row: usize, sum: &mut [f64]) -> Result<()> {
    let count = prompts.rows();
    if row >= count {
        return Err(Error::failed(format!(
            "found prompt {row}, expected a number below {count}"
        )));
    }

    let values = prompts.row(row);
    let length = norm(values);
    if !length.is_finite() || length <= 0.0 {
        return Err(Error::failed(format!(
            "prompt {row} has norm {length}, expected a positive number"
        )));
    }

    for (total, &value) in sum.iter_mut().zip(values) {
        *total += f64::from(value) / length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_prompts_do_not_matter_and_bad_prompts_are_refused() {
        let prompts = Matrix::new(3, 2, vec![3.0, 0.0, 0.0, 0.1, 0.0, 0.0]).unwrap();
        let built = build(&prompts, &[vec![0, 1]]).unwrap();
        let half = 0.5_f32.sqrt();
        assert!(built.data().iter().all(|v| (v - half).abs() < 1e-6));
        for (classes, says) in [
            (vec![vec![0], vec![]], "class 1: the mean of its 0 prompts"),
            (vec![vec![2]], "class 0: prompt 2 has norm 0"),
            (vec![vec![7]], "class 0: found prompt 7, expected a number below 3"),
        ] {
            let message = format!("{:?}", build(&prompts, &classes).unwrap_err());
            assert!(message.contains(says), "{message}");
        }
    }
}
