//! Spherical k-means: rows by direction, the criterion of a router's logit (METHOD §2.2).
//!
//! Usable alone: it sees rows and returns clusters, and knows no layer, token or expert.
//!
//! ```
//! use linfa::ParamGuard;
//! use upcycle::cluster::SphericalKMeans;
//! use upcycle::linalg::Matrix;
//!
//! let rows = Matrix::new(4, 2, vec![1.0, 0.0, 3.0, 0.1, 0.0, 1.0, 0.2, 5.0])?;
//! let model = SphericalKMeans::params(2).restarts(3).seed(7).check()?.fit_rows(&rows)?;
//! assert_eq!(model.assignments[0], model.assignments[1]);
//! assert_ne!(model.assignments[0], model.assignments[2]);
//! # Ok::<(), upcycle::error::Error>(())
//! ```
//!
//! # References
//! Dhillon and Modha, *Concept decompositions for large sparse text data using clustering*,
//! Machine Learning 42 (2001); Arthur and Vassilvitskii, *k-means++* (2007).

mod assign;
mod dots;
mod form;
mod kernel;
mod kmeans;
mod params;
mod seed;
mod source;
#[cfg(test)]
mod tests;
mod traits;

pub use kmeans::{Done, IterationStats, SphericalKMeansModel};
pub use params::{Precision, SphericalKMeans, SphericalKMeansParams};
pub use source::{CHUNK, RowSlice, RowSource};
