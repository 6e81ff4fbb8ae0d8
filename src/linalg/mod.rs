//! Arrays to arrays: matrices, products, symmetric eigenproblems.
//!
//! Sits below everything that knows a model; knows no layer, token or expert.

pub mod cholesky;
pub mod eigen;
pub mod gemm;
mod matrix;
pub mod orthonormal;
pub mod svd;
pub mod wide;

pub use matrix::Matrix;
