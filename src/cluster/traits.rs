//! K-means among linfa's traits: `Fit` on ndarray data sets, `Predict` of labels.

use linfa::dataset::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use ndarray::{Array1, ArrayBase, CowArray, Data, Ix2};

use super::kmeans::SphericalKMeansModel;
use super::params::SphericalKMeans;
use super::source::RowSlice;
use crate::error::{Error, Result};

impl From<linfa::Error> for Error {
    fn from(cause: linfa::Error) -> Self {
        Self::failed("linfa refused the data set").caused_by(cause)
    }
}

impl<D: Data<Elem = f32>, T> Fit<ArrayBase<D, Ix2>, T, Error> for SphericalKMeans {
    type Object = SphericalKMeansModel;

    fn fit(&self, dataset: &DatasetBase<ArrayBase<D, Ix2>, T>) -> Result<Self::Object> {
        let records = dataset.records().as_standard_layout();
        self.fit_rows(&rows(&records)?)
    }
}

impl<D: Data<Elem = f32>> PredictInplace<ArrayBase<D, Ix2>, Array1<u32>>
    for SphericalKMeansModel
{
    /// Nearest centroids, ties to the lower index.
    ///
    /// # Panics
    /// If the width of the rows is not that of the centroids, or a value is not finite:
    /// linfa's trait has no room for an error; [`SphericalKMeansModel::assign`] has.
    fn predict_inplace(&self, x: &ArrayBase<D, Ix2>, y: &mut Array1<u32>) {
        let records = x.as_standard_layout();
        let (labels, _) = rows(&records)
            .and_then(|rows| self.assign(&rows))
            .expect("rows of the centroids' width with finite values");
        *y = Array1::from_vec(labels);
    }

    fn default_target(&self, x: &ArrayBase<D, Ix2>) -> Array1<u32> {
        Array1::zeros(x.nrows())
    }
}

fn rows<'a>(records: &'a CowArray<'_, f32, Ix2>) -> Result<RowSlice<'a>> {
    let values = records.as_slice();
    RowSlice::new(
        records.ncols(),
        values.ok_or_else(|| Error::failed("the records do not lie row by row"))?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use linfa::traits::Predict;
    use ndarray::array;

    #[test]
    fn linfa_fits_and_predicts() {
        let records = array![[1.0_f32, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]];
        let dataset = DatasetBase::from(records.clone());
        let model = SphericalKMeans::params(2).seed(3).fit(&dataset).unwrap();
        let labels = model.predict(&records);
        assert_eq!(labels.to_vec(), model.assignments);
        assert!(
            labels[0] == labels[1] && labels[2] == labels[3] && labels[0] != labels[2]
        );
        let transposed = records.t();
        let other = SphericalKMeans::params(2).fit(&DatasetBase::from(transposed));
        assert_eq!(other.unwrap().assignments.len(), 2);
        assert!(SphericalKMeans::params(0).fit(&dataset).is_err());
    }
}
