//! Arrays to arrays: matrices, products, symmetric eigenproblems.
//!
//! Sits below everything that knows a model; knows no layer, token or expert.

pub mod gemm;
mod matrix;

pub use matrix::Matrix;
