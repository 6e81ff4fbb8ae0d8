//! The tables of stage `subspaces`.

use super::{Field, Layer, Row};

/// The figures of one subspace, whether of an expert or of a cluster that `fit` was
/// given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SubspaceFigures {
    /// Tokens of the cluster.
    pub tokens: u32,
    /// Kept rank.
    pub rank: u32,
    /// Rank of the matrix's output space.
    pub full_rank: u32,
    /// Fraction of the output energy that is kept.
    pub retained: f64,
    /// Relative squared output error on the cluster itself.
    pub error_inside: f64,
    /// The same on the other clusters.
    pub error_outside: f64,
    /// Shrinkage α that was applied to the moments.
    pub shrinkage: f64,
}

impl SubspaceFigures {
    /// The columns of the figures that are part of a row of type `R`.
    pub(super) fn columns_of<R: 'static>(of: fn(&mut R) -> &mut Self) -> Vec<Field<R>> {
        vec![
            Field::of_part("tokens", of, |own| &mut own.tokens),
            Field::of_part("rank", of, |own| &mut own.rank),
            Field::of_part("full_rank", of, |own| &mut own.full_rank),
            Field::of_part("retained", of, |own| &mut own.retained),
            Field::of_part("error_inside", of, |own| &mut own.error_inside),
            Field::of_part("error_outside", of, |own| &mut own.error_outside),
            Field::of_part("shrinkage", of, |own| &mut own.shrinkage),
        ]
    }
}

/// The subspace of one matrix of one expert.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SubspaceRow {
    /// Layer of the expert.
    pub layer: Layer,
    /// Number of the expert.
    pub expert: u32,
    /// `fc1` or `fc2`.
    pub matrix: String,
    /// What was found.
    pub figures: SubspaceFigures,
    /// The paper's cross term of this cluster's tokens, relative; a diagnostic.
    pub cross: f64,
}

impl Row for SubspaceRow {
    const FILE: &'static str = "subspaces.parquet";

    fn columns() -> Vec<Field<Self>> {
        let mut columns = vec![
            Field::new("tower", |row: &mut Self| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("expert", |row| &mut row.expert),
            Field::new("matrix", |row| &mut row.matrix),
        ];
        columns.extend(SubspaceFigures::columns_of(|row: &mut Self| &mut row.figures));
        columns.push(Field::new("cross", |row| &mut row.cross));
        columns
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
