//! The report: what the runs show, in words, tables and figures, as one HTML file, its
//! Markdown twin and `comparison.parquet`.
//!
//! [`load`] reads the tables of all stages into [`ReportInputs`]; [`render`] is a pure
//! function of them: no clock, no host, no paths, no network. A claim is made only where the
//! 95 % interval of a paired difference over seeds excludes zero.

mod chart;
mod comparison;
mod document;
mod headline;
mod inputs;
mod load;
#[cfg(test)]
mod load_tests;
mod render;
#[cfg(test)]
mod sample;
mod section;
pub mod stats;
mod study;
#[cfg(test)]
mod tests;
mod words;

pub use inputs::{
    AnalysisRow, ClusterRow, Clustering, DatasetMeta, Facts, IterationRow, LogRow,
    MetricRow, ReportInputs, RetrievalRow, RoutingRow, RunInputs, SimilarityRow,
    SpectrumRow, SubspaceRow, Subspaces, ValidationRow, WHOLE_LAYER,
};
pub use load::{Find, load};
pub use render::{Rendered, render};
