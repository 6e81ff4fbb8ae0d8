//! The tables of stage `subspaces`.

use super::{Field, Layer, Row};

/// The subspace of one matrix of one expert.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SubspaceRow {
    /// Layer of the expert.
    pub layer: Layer,
    /// Number of the expert.
    pub expert: u32,
    /// `fc1` or `fc2`.
    pub matrix: String,
    /// Tokens of the expert's cluster.
    pub tokens: u32,
    /// Kept rank.
    pub rank: u32,
    /// Rank of the matrix's output space.
    pub full_rank: u32,
    /// Fraction of the output energy that is kept.
    pub retained: f64,
    /// Relative squared output error on the expert's own cluster.
    pub error_inside: f64,
    /// The same on the other clusters.
    pub error_outside: f64,
    /// Shrinkage α that was applied to the moments.
    pub shrinkage: f64,
    /// The paper's cross term of this cluster's tokens, relative; a diagnostic.
    pub cross: f64,
}

impl Row for SubspaceRow {
    const FILE: &'static str = "subspaces.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("expert", |row| &mut row.expert),
            Field::new("matrix", |row| &mut row.matrix),
            Field::new("tokens", |row| &mut row.tokens),
            Field::new("rank", |row| &mut row.rank),
            Field::new("full_rank", |row| &mut row.full_rank),
            Field::new("retained", |row| &mut row.retained),
            Field::new("error_inside", |row| &mut row.error_inside),
            Field::new("error_outside", |row| &mut row.error_outside),
            Field::new("shrinkage", |row| &mut row.shrinkage),
            Field::new("cross", |row| &mut row.cross),
        ]
    }
}

/// One direction of the outputs of one matrix on one expert's cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SpectrumRow {
    /// Layer of the expert.
    pub layer: Layer,
    /// Number of the expert.
    pub expert: u32,
    /// `fc1` or `fc2`.
    pub matrix: String,
    /// Position in descending order of energy.
    pub index: u32,
    /// Fraction of the total energy.
    pub energy: f64,
}

impl Row for SpectrumRow {
    const FILE: &'static str = "spectra.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("expert", |row| &mut row.expert),
            Field::new("matrix", |row| &mut row.matrix),
            Field::new("index", |row| &mut row.index),
            Field::new("energy", |row| &mut row.energy),
        ]
    }
}
