//! What the clustering and subspace stages found out about one layer, and its checks.
//!
//! Evidence arrives from files, so nothing of it is believed: counts, shapes, finiteness,
//! and the two promises the methods compute with, unit centroids and orthonormal bases.

use super::check::{check_matrix, check_vector, wrong};
use super::{Method, Needs};
use crate::error::{Error, Result};
use crate::ffn::FfnTensors;
use crate::linalg::Matrix;

/// How far a centroid's norm, or an entry of `UᵀU`, may be from its exact value. Rounding to
/// f32 leaves about 1e-6; 1e-3 is far above that and far below any real mistake.
const TOLERANCE: f64 = 1e-3;

/// What a method may read of one layer besides the dense FFN.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// Unit centroids `[E, d]`.
    pub centroids: Option<&'a Matrix>,
    /// The subspaces that the experts keep, one entry per expert.
    pub subspaces: Option<&'a [ExpertSpaces]>,
}

/// The subspaces that one expert keeps.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExpertSpaces {
    /// Of the outputs of W1 `[h]`.
    pub fc1: KeptSpace,
    /// Of the outputs of W2 `[d]`.
    pub fc2: KeptSpace,
}

/// The subspace that an expert keeps of one matrix's outputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeptSpace {
    /// U `[out, r]`, orthonormal columns; `None` where the rank is full and W stays as
    /// it is.
    pub basis: Option<Matrix>,
    /// The cluster's mean output without bias, W μ `[out]`; present for `centre: mean`.
    pub mean: Option<Vec<f32>>,
}

impl<'a> Evidence<'a> {
    /// The centroids, or an error that says which method needs them.
    pub(super) fn centroids(
        &self,
        method: &dyn Method,
        place: &str,
    ) -> Result<&'a Matrix> {
        self.centroids.ok_or_else(|| missing(place, method, "the clusters' centroids"))
    }

    /// The subspaces, or an error that says which method needs them.
    pub(super) fn subspaces(
        &self,
        method: &dyn Method,
        place: &str,
    ) -> Result<&'a [ExpertSpaces]> {
        self.subspaces.ok_or_else(|| missing(place, method, "the experts' subspaces"))
    }

    /// Checks what the method needs and ignores what it does not need.
    pub(super) fn check(
        &self,
        method: &dyn Method,
        dense: FfnTensors<'_>,
        n_experts: usize,
        place: &str,
    ) -> Result<()> {
        let Needs { centroids, subspaces } = method.needs();

        if centroids {
            let centroids = self.centroids(method, place)?;
            check_centroids(centroids, [n_experts, dense.width()], place)?;
        }

        if subspaces.is_some() {
            let subspaces = self.subspaces(method, place)?;
            if subspaces.len() != n_experts {
                let expected = format!("{n_experts} (one per expert)");
                return Err(wrong(place, "subspaces", &subspaces.len(), &expected));
            }

            for (index, spaces) in subspaces.iter().enumerate() {
                let here = format!("{place}, expert {index}");
                spaces.fc1.check(dense.hidden(), "fc1", &here)?;
                spaces.fc2.check(dense.width(), "fc2", &here)?;
            }
        }
        Ok(())
    }
}

impl KeptSpace {
    /// Rank kept of `outputs` dimensions.
    pub(super) fn rank(&self, outputs: usize) -> usize {
        self.basis.as_ref().map_or(outputs, Matrix::cols)
    }

    fn check(&self, outputs: usize, matrix: &str, place: &str) -> Result<()> {
        if let Some(mean) = &self.mean {
            check_vector(mean, outputs, &format!("mean output of {matrix}"), place)?;
        }
        let Some(basis) = &self.basis else { return Ok(()) };

        let tensor = format!("basis of {matrix}");
        let rank = basis.cols();
        if !(1..=outputs).contains(&rank) {
            let (found, expected) = (format!("rank {rank}"), format!("1 to {outputs}"));
            return Err(wrong(place, &tensor, &found, &expected));
        }
        check_matrix(basis, [outputs, rank], &tensor, place)?;

        // A basis that is not orthonormal would scale what it should only select.
        let worst = distance_from_orthonormal(basis);
        if worst > TOLERANCE {
            let found = format!("columns {worst:.1e} from orthonormal");
            let expected = format!("at most {TOLERANCE:.0e}");
            return Err(wrong(place, &tensor, &found, &expected));
        }
        Ok(())
    }
}

fn check_centroids(centroids: &Matrix, shape: [usize; 2], place: &str) -> Result<()> {
    check_matrix(centroids, shape, "centroids", place)?;

    // The router's logit is a cosine times |x| only for centroids of unit length
    // (METHOD §2.4).
    for (index, row) in centroids.iter_rows().enumerate() {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if (norm - 1.0).abs() > TOLERANCE {
            let found = format!("norm {norm} in row {index}");
            return Err(wrong(place, "centroids", &found, "unit rows"));
        }
    }
    Ok(())
}

/// Largest entry of `|UᵀU - I|`.
fn distance_from_orthonormal(basis: &Matrix) -> f64 {
    let u = crate::linalg::wide::widened(basis);
    let gram = u.transpose() * &u;
    let rank = basis.cols();

    let entries = (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j)));
    entries
        .map(|(i, j)| (gram[(i, j)] - if i == j { 1.0 } else { 0.0 }).abs())
        .fold(0.0, f64::max)
}

fn missing(place: &str, method: &dyn Method, what: &str) -> Error {
    let name = method.name();
    Error::failed(format!("{place}: method {name} needs {what}, but found none"))
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::super::samples::{Parts, settings, upcycle};
    use super::*;

    fn refusal(spoil: impl Fn(&mut Parts)) -> String {
        let mut parts = Parts::new(4, 6, 3, 2);
        spoil(&mut parts);
        let method = find("cluster-aware").unwrap();
        let made = upcycle(method, &parts, &settings(method, 3), 1, "vision.3");
        made.unwrap_err().message().to_owned()
    }

    #[test]
    fn wrong_evidence_is_refused_by_tensor_found_and_expected() {
        assert_eq!(
            refusal(|p| p.centroids = Matrix::zeros(2, 4)),
            "vision.3: centroids: found [2,4], expected [3,4]"
        );
        let long = refusal(|p| p.centroids.data_mut().iter_mut().for_each(|v| *v *= 2.0));
        assert!(long.ends_with("in row 0, expected unit rows"), "{long}");
        assert_eq!(
            refusal(|p| {
                p.subspaces.pop();
            }),
            "vision.3: subspaces: found 2, expected 3 (one per expert)"
        );
        assert_eq!(
            refusal(|p| p.subspaces[1].fc2.basis = Some(Matrix::zeros(5, 2))),
            "vision.3, expert 1: basis of fc2: found [5,2], expected [4,2]"
        );
        assert_eq!(
            refusal(|p| p.subspaces[2].fc1.basis = Some(Matrix::zeros(6, 0))),
            "vision.3, expert 2: basis of fc1: found rank 0, expected 1 to 6"
        );
        assert_eq!(
            refusal(|p| p.subspaces[0].fc1.basis = Some(Matrix::zeros(6, 2))),
            "vision.3, expert 0: basis of fc1: found columns 1.0e0 from orthonormal, \
             expected at most 1e-3"
        );
        assert_eq!(
            refusal(|p| p.subspaces[0].fc2.mean = Some(vec![f32::INFINITY; 4])),
            "vision.3, expert 0: mean output of fc2: found inf at index 0, expected finite \
             values"
        );
    }
}
