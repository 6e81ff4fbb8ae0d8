//! The FFN a method starts from and the experts it makes: plain tensors and their checks.

use crate::error::{Error, Result};
use crate::linalg::Matrix;

/// The FFN of one block, `fc2 act(fc1 x + fc1_bias) + fc2_bias`: the dense one or an expert.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseFfn {
    /// W1 `[h, d]`.
    pub fc1: Matrix,
    /// b1 `[h]`.
    pub fc1_bias: Vec<f32>,
    /// W2 `[d, h]`.
    pub fc2: Matrix,
    /// b2 `[d]`.
    pub fc2_bias: Vec<f32>,
}

/// The experts of one layer and their router.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// E experts, each of the dense FFN's shape.
    pub experts: Vec<DenseFfn>,
    /// Wr `[E, d]`, without bias.
    pub router: Matrix,
}

impl DenseFfn {
    /// Width d.
    pub fn width(&self) -> usize {
        self.fc1.cols()
    }

    /// Hidden width h.
    pub fn hidden(&self) -> usize {
        self.fc1.rows()
    }

    /// Refuses tensors whose shapes disagree, empty ones, and non-finite values.
    pub(super) fn check(&self, place: &str) -> Result<()> {
        let (h, d) = (self.hidden(), self.width());
        if h == 0 || d == 0 {
            return Err(wrong(place, "fc1", &format!("[{h},{d}]"), "at least [1,1]"));
        }
        self.check_like(h, d, place)
    }

    /// Refuses anything but finite tensors of hidden width `h` and width `d`.
    fn check_like(&self, h: usize, d: usize, place: &str) -> Result<()> {
        check_matrix(&self.fc1, [h, d], "fc1", place)?;
        check_vector(&self.fc1_bias, h, "fc1 bias", place)?;
        check_matrix(&self.fc2, [d, h], "fc2", place)?;
        check_vector(&self.fc2_bias, d, "fc2 bias", place)
    }
}

impl Experts {
    /// Refuses results that no training could use: another shape than the dense FFN's and
    /// non-finite values.
    pub(super) fn check(
        &self,
        dense: &DenseFfn,
        n_experts: usize,
        place: &str,
    ) -> Result<()> {
        let (h, d) = (dense.hidden(), dense.width());
        let found = self.experts.len();
        if found != n_experts {
            return Err(wrong(place, "experts", &found, &n_experts.to_string()));
        }
        check_matrix(&self.router, [n_experts, d], "router", place)?;
        for (index, expert) in self.experts.iter().enumerate() {
            expert.check_like(h, d, &format!("{place}, expert {index}"))?;
        }
        Ok(())
    }

    /// Two experts of equal weights and equal router rows get equal gradients at every
    /// step: the symmetry never breaks.
    pub(super) fn check_symmetry(&self, place: &str) -> Result<()> {
        for (i, left) in self.experts.iter().enumerate() {
            for (j, right) in self.experts.iter().enumerate().skip(i + 1) {
                if self.router.row(i) == self.router.row(j) && left == right {
                    return Err(Error::failed(format!(
                        "{place}: experts {i} and {j} have the same weights and the same \
                         router row, so training cannot tell them apart; expected a \
                         router_std above 0 or distinct centroids, or allow_identical: true"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Refuses a matrix of another shape or with a non-finite value.
pub(super) fn check_matrix(
    matrix: &Matrix,
    [rows, cols]: [usize; 2],
    tensor: &str,
    place: &str,
) -> Result<()> {
    let found = [matrix.rows(), matrix.cols()];
    if found != [rows, cols] {
        let found = format!("[{},{}]", found[0], found[1]);
        return Err(wrong(place, tensor, &found, &format!("[{rows},{cols}]")));
    }
    check_finite(matrix.data(), tensor, place)
}

/// Refuses a vector of another length or with a non-finite value.
pub(super) fn check_vector(
    values: &[f32],
    len: usize,
    tensor: &str,
    place: &str,
) -> Result<()> {
    if values.len() != len {
        return Err(wrong(
            place,
            tensor,
            &format!("[{}]", values.len()),
            &format!("[{len}]"),
        ));
    }
    check_finite(values, tensor, place)
}

fn check_finite(values: &[f32], tensor: &str, place: &str) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let found = format!("{} at index {index}", values[index]);
            Err(wrong(place, tensor, &found, "finite values"))
        }
    }
}

/// The one sentence of every refusal: place, tensor, found, expected.
pub(super) fn wrong(
    place: &str,
    tensor: &str,
    found: &dyn std::fmt::Display,
    expected: &str,
) -> Error {
    Error::failed(format!("{place}: {tensor}: found {found}, expected {expected}"))
}
