//! Refusals: tensors of the wrong shape, values that are not finite, experts that training
//! could never tell apart.

use super::{Experts, LowRankExperts};
use crate::error::{Error, Result};
use crate::ffn::FfnTensors;
use crate::linalg::Matrix;

/// Refuses dense tensors whose lengths disagree, empty ones, and non-finite values.
pub(super) fn check_dense(dense: FfnTensors<'_>, place: &str) -> Result<()> {
    let (h, d) = (dense.hidden(), dense.width());
    if h == 0 || d == 0 {
        return Err(wrong(place, "FFN", &format!("[{h},{d}]"), "at least [1,1]"));
    }
    check_ffn(dense, [h, d], place)
}

/// Refuses anything but finite tensors of hidden width h and width d.
fn check_ffn(ffn: FfnTensors<'_>, [h, d]: [usize; 2], place: &str) -> Result<()> {
    check_vector(ffn.fc1, h * d, "fc1", place)?;
    check_vector(ffn.fc1_bias, h, "fc1 bias", place)?;
    check_vector(ffn.fc2, d * h, "fc2", place)?;
    check_vector(ffn.fc2_bias, d, "fc2 bias", place)
}

impl Experts {
    /// Refuses results that no training could use: another shape than the dense FFN's and
    /// non-finite values.
    pub(super) fn check(
        &self,
        dense: FfnTensors<'_>,
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
            let here = format!("{place}, expert {index}");
            check_ffn(expert.tensors(), [h, d], &here)?;
        }
        Ok(())
    }

    /// Two experts of equal weights and equal router rows get equal gradients at every
    /// step: the symmetry never breaks.
    pub(super) fn check_symmetry(&self, place: &str) -> Result<()> {
        refuse_twins(&self.router, |i, j| self.experts[i] == self.experts[j], place)
    }
}

impl LowRankExperts {
    /// As [`Experts::check`], for products of rank `rank`.
    pub(super) fn check(
        &self,
        dense: FfnTensors<'_>,
        [n_experts, rank]: [usize; 2],
        place: &str,
    ) -> Result<()> {
        let (h, d) = (dense.hidden(), dense.width());
        check_matrix(&self.router, [n_experts, d], "router", place)?;
        check_vector(&self.deltas.fc1_down, n_experts * rank * d, "fc1 down", place)?;
        check_vector(&self.deltas.fc2_down, n_experts * rank * h, "fc2 down", place)
    }

    /// As [`Experts::check_symmetry`]: the B are zero, so all experts are the shared FFN.
    pub(super) fn check_symmetry(&self, place: &str) -> Result<()> {
        refuse_twins(&self.router, |_, _| true, place)
    }
}

/// Refuses two experts of equal router rows that `equal` finds equal.
fn refuse_twins(
    router: &Matrix,
    equal: impl Fn(usize, usize) -> bool,
    place: &str,
) -> Result<()> {
    // Only exact equality is refused: any difference gives different gradients.
    for i in 0..router.rows() {
        for j in i + 1..router.rows() {
            if router.row(i) == router.row(j) && equal(i, j) {
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

/// Refuses a tensor of another length or with a non-finite value.
pub(super) fn check_vector(
    values: &[f32],
    len: usize,
    tensor: &str,
    place: &str,
) -> Result<()> {
    if values.len() != len {
        let (found, expected) = (format!("[{}]", values.len()), format!("[{len}]"));
        return Err(wrong(place, tensor, &found, &expected));
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
