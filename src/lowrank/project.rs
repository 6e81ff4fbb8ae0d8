//! From a subspace to an expert's weights: `U Uᵀ W`, and the bias that goes with it.

use faer::Mat;

use super::subspace::Subspace;
use crate::error::{Error, Result};
use crate::linalg::gemm::{self, Write};
use crate::linalg::{Matrix, wide};
use crate::num;

/// `U Uᵀ W`; W itself where the subspace has no basis (full rank).
///
/// Products in f32: the basis is f32 too, so f64 would only hide that. The error is that of a
/// sum of `out` and of `r` terms, about 1e-6 of |W|. One thread.
pub fn project(w: &Matrix, subspace: &Subspace) -> Result<Matrix> {
    let Some(basis) = &subspace.basis else { return Ok(w.clone()) };
    if basis.rows() != w.rows() {
        let (found, expected) = (basis.rows(), w.rows());
        return Err(Error::failed(format!(
            "cannot project a matrix: its basis has {found} rows, expected {expected} as in \
             the matrix"
        )));
    }

    let (cols, rank) = (w.cols(), basis.cols());
    if rank == 0 {
        return Ok(Matrix::zeros(w.rows(), cols));
    }

    // Uᵀ W first: the out × out projector is never formed.
    let mut inner = Matrix::zeros(rank, cols);
    gemm::at_b(inner.data_mut(), view(basis), view(w), Write::Replace);
    let mut out = Matrix::zeros(w.rows(), cols);
    gemm::a_b(out.data_mut(), view(basis), view(&inner), Write::Replace);
    Ok(out)
}

fn view(matrix: &Matrix) -> gemm::Rows<'_> {
    gemm::Rows::new(matrix.data(), matrix.cols())
}

/// `b + (I - U Uᵀ) W μ`: makes the projected matrix exact on the cluster's mean. The bias
/// itself where the subspace keeps no mean (`centre: none`, or full rank).
pub fn affine_bias(bias: &[f32], subspace: &Subspace) -> Result<Vec<f32>> {
    let (Some(basis), Some(mean)) = (&subspace.basis, &subspace.mean) else {
        return Ok(bias.to_vec());
    };
    if basis.rows() != bias.len() || mean.len() != bias.len() {
        let (rows, means, expected) = (basis.rows(), mean.len(), bias.len());
        return Err(Error::failed(format!(
            "cannot correct a bias: its basis has {rows} rows and its mean {means} values, \
             expected {expected} of both as in the bias"
        )));
    }

    let basis = wide::widened(basis);
    let mean = Mat::from_fn(mean.len(), 1, |i, _| f64::from(mean[i]));
    let inner = wide::product(basis.transpose(), mean.as_ref());
    let inside = wide::product(basis.as_ref(), inner.as_ref());
    let corrected = |(i, &b): (usize, &f32)| {
        num::round_f32(f64::from(b) + mean[(i, 0)] - inside[(i, 0)])
    };
    Ok(bias.iter().enumerate().map(corrected).collect())
}
