//! The report: what the runs show, in words, tables and figures, as one HTML file, its
//! Markdown twin and `comparison.parquet`.
//!
//! [`load()`] reads the tables of all stages into [`ReportInputs`]. [`render()`] is a pure
//! function of these: it knows no clock, host, path or network. It claims a difference only
//! where the 95 % interval of the paired difference over seeds, bases and test pictures
//! excludes zero.

mod chart;
mod comparison;
mod document;
mod evidence;
mod find;
mod gallery;
mod headline;
mod inputs;
mod load;
#[cfg(test)]
mod load_tests;
mod outcomes;
mod picture;
mod render;
#[cfg(test)]
mod sample;
mod section;
mod sets;
pub mod stats;
mod study;
mod sweep;
#[cfg(test)]
mod tests;
mod words;

pub use find::Find;
pub use gallery::{Gallery, GallerySample};
pub use inputs::{
    Clustering, Cost, DatasetMeta, Facts, OutcomeKey, Outcomes, ReportInputs, RunInputs,
    SetInputs, Subspaces, SweepInputs, Swept,
};
pub use load::load;
pub use render::{Rendered, render};

/// The file beside the report that makes it again.
pub const CONFIGURATION: &str = "pipeline.yaml";
