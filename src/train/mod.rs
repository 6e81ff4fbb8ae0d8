//! Training: the step, the loop, and what it records.
//!
//! One loop serves dense pretraining and MoE training after upcycling: the same data order,
//! the same budget, and evaluation through a hook.

mod record;
mod resume;
mod run;
#[cfg(test)]
mod run_tests;
mod schedule;
mod step;
#[cfg(test)]
mod step_tests;

pub use record::Record;
pub use run::{Plan, TeacherPlan, Trained, Watcher, averaging, train};
pub use step::{Distiller, Losses, Objective, Stepper};
