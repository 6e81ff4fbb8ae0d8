//! Coordinates for the outputs of a tall matrix: W = Q R [h, d], so that moments of `R x` stand
//! for moments of `W x`, and a d × d problem for an h × h one.
//!
//! R comes from the Cholesky factorization of Wᵀ W, which runs at the speed of a product, on
//! all threads; Q is never formed, because W R⁻¹ acts as it. Its columns are orthonormal up to
//! about ε cond(W)². Where that would be seen beside the rounding of a basis to f32, a
//! Householder QR takes over, whose Q is orthonormal to rounding even without full rank.

use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Mat, MatRef, Par, Side};

use crate::linalg::{orthonormal, wide};
use crate::par;

/// Largest condition number of a matrix for Cholesky: ε cond² is then 2e-8, below f32's ε/2.
const WELL_CONDITIONED: f64 = 1e4;

/// Rows of W in one product: fixes the bits of Wᵀ W, whatever the number of threads.
const ROWS: usize = 768;

/// Iterations of the power method; the condition number need not be exact.
const ITERATIONS: usize = 12;

/// Q of a tall matrix.
#[derive(Debug)]
pub(super) enum Frame {
    /// Q = W R⁻¹.
    Quotient { w: Mat<f64>, r: Mat<f64> },
    /// Q itself.
    Columns(Mat<f64>),
}

impl Frame {
    /// Q and R of a tall matrix [h, d], h > d. R [d, d] is upper triangular.
    pub(super) fn of(w: Mat<f64>) -> (Self, Mat<f64>) {
        if let Some(r) = cholesky(w.as_ref()) {
            return (Self::Quotient { w, r: r.clone() }, r);
        }

        // Too close to singular for Wᵀ W, which has the squared condition number.
        let (q, r) = orthonormal::qr(w.as_ref());
        (Self::Columns(q), r)
    }

    /// Columns in coordinates as columns in output space, Q V.
    pub(super) fn outputs(&self, columns: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Columns(q) => wide::product(q.as_ref(), columns),
            Self::Quotient { w, r } => {
                let mut inner = columns.to_owned();
                solve_upper_triangular_in_place(r.as_ref(), inner.as_mut(), Par::Seq);
                wide::product(w.as_ref(), inner.as_ref())
            }
        }
    }
}

/// R of Wᵀ W = Rᵀ R, if W is well conditioned.
fn cholesky(w: MatRef<'_, f64>) -> Option<Mat<f64>> {
    let (h, d) = (w.nrows(), w.ncols());
    let parts = par::map(h.div_ceil(ROWS), |chunk| {
        let rows = w.subrows(chunk * ROWS, ROWS.min(h - chunk * ROWS));
        let mut part = Mat::zeros(d, d);
        wide::add_gram(part.as_mut(), rows.transpose());
        part
    });
    // Parts meet in order, so the sum does not depend on the threads.
    let mut gram = Mat::zeros(d, d);
    for part in parts {
        gram += part;
    }

    let lower = gram.llt(Side::Lower).ok()?.L().to_owned();
    is_well_conditioned(lower.as_ref()).then(|| lower.transpose().to_owned())
}

/// Whether the triangle's largest singular value is below the smallest one's multiple.
fn is_well_conditioned(lower: MatRef<'_, f64>) -> bool {
    let d = lower.nrows();
    let normalized = |vector: Mat<f64>| -> (f64, Mat<f64>) {
        let norm = vector.col(0).norm_l2();
        (norm, vector * faer::Scale(1.0 / norm))
    };
    // No eigenvector is expected to be orthogonal to this.
    let start = || normalized(Mat::from_fn(d, 1, |i, _| 1.0 + (i % 7) as f64)).1;

    let (mut large, mut small) = (1.0, 1.0);
    let (mut along, mut across) = (start(), start());
    for _ in 0..ITERATIONS {
        let image = wide::product(lower.transpose(), along.as_ref());
        (large, along) = normalized(wide::product(lower, image.as_ref()));
        // Solving is the power method of the inverse.
        solve_lower_triangular_in_place(lower, across.as_mut(), Par::Seq);
        solve_upper_triangular_in_place(lower.transpose(), across.as_mut(), Par::Seq);
        (small, across) = normalized(across);
    }

    // Squares of the largest singular value and of the inverse's.
    (large * small).sqrt() < WELL_CONDITIONED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// A matrix whose columns shrink to `last` of the first.
    fn graded(h: usize, d: usize, last: f64) -> Mat<f64> {
        let mut stream = rng::stream(h as u64, "test");
        let scale = |j: usize| last.powf(j as f64 / (d - 1) as f64);
        Mat::from_fn(h, d, |_, j| scale(j) * f64::from(rng::normal(&mut stream)))
    }

    fn check(w: &Mat<f64>, orthonormal: f64) -> Frame {
        let (frame, r) = Frame::of(w.clone());
        let q = frame.outputs(Mat::identity(w.ncols(), w.ncols()).as_ref());
        let back = wide::product(q.as_ref(), r.as_ref()) - w;
        assert!(back.norm_max() <= 1e-12 * w.norm_max(), "{}", back.norm_max());
        let gram = wide::product(q.transpose(), q.as_ref());
        let off = (gram - Mat::<f64>::identity(w.ncols(), w.ncols())).norm_max();
        assert!(off < orthonormal, "{off}");
        frame
    }

    #[test]
    fn both_ways_rebuild_the_matrix_from_orthonormal_columns() {
        let good = check(&graded(1300, 40, 0.5), 1e-13);
        assert!(matches!(good, Frame::Quotient { .. }));
        let limit = check(&graded(90, 30, 1e-3), 1e-8);
        assert!(matches!(limit, Frame::Quotient { .. }));
        for last in [1e-6, 1e-9, 1e-14] {
            assert!(matches!(check(&graded(90, 30, last), 1e-13), Frame::Columns(_)));
        }
    }

    #[test]
    fn a_matrix_without_full_rank_has_a_frame_too() {
        let mut w = graded(60, 12, 0.5);
        for i in 0..60 {
            w[(i, 7)] = w[(i, 2)] + w[(i, 3)];
        }
        assert!(matches!(check(&w, 1e-13), Frame::Columns(_)));
        assert!(matches!(check(&Mat::zeros(9, 4), 1e-13), Frame::Columns(_)));
    }
}
