//! The parts of the report, one file each: from the indexed inputs to a section.

pub(super) mod ablation;
pub(super) mod cards;
pub(super) mod choices;
pub(super) mod claims;
pub(super) mod clusters;
pub(super) mod comparison;
pub(super) mod cost;
pub(super) mod experts;
pub(super) mod paper;
pub(super) mod pictures;
pub(super) mod pixels;
pub(super) mod retrieval;
pub(super) mod sets;
pub(super) mod sweep;
pub(super) mod training;
pub(super) mod verdict;
