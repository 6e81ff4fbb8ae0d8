//! Training operators: forward and hand-written backward on row-major slices.
//!
//! The training engine calls these instead of an autograd tape: nothing is allocated inside
//! a step, every operator is one or two passes over its data, and the gradients are
//! checked against candle's autograd and finite differences. All of them run on one thread;
//! the model runs groups of samples side by side (`docs/architecture.md`). Backward
//! functions *add* to parameter gradients and say so for the others.

pub mod activation;
pub mod adamw;
pub mod attention;
#[cfg(test)]
mod check;
pub mod contrastive;
pub mod experts;
pub mod layer_norm;
pub mod linear;
pub mod router;
pub mod simd;
