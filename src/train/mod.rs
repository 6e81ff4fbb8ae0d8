//! Training: the loop and what it records.
//!
//! One loop serves dense pretraining and MoE training after upcycling: the same data order,
//! the same budget, and evaluation through a hook. What a step computes is the engine's
//! business.

mod ratio;
mod record;
mod resume;
mod run;
#[cfg(test)]
mod run_tests;
mod schedule;
mod similarity;

pub use record::Record;
pub use run::{Plan, Trained, Watcher, train};
pub use schedule::Schedule;
