//! Training: the step, the loop, and what it records.
//!
//! One loop serves dense pretraining and MoE training after upcycling: the same data order,
//! the same budget, and evaluation through a hook.

mod step;
#[cfg(test)]
mod step_tests;

pub use step::{Distiller, Losses, Objective, Stepper};
