//! The tables of `upcycle-cluster fit` and `upcycle-subspaces fit`, which know no layers.

use super::{Field, Row, SubspaceFigures};

/// The cluster of one vector; rows are in the order of the vectors.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FitAssignmentRow {
    /// Its cluster.
    pub cluster: u32,
    /// Cosine to the centroid of that cluster.
    pub cosine: f32,
}

impl Row for FitAssignmentRow {
    const FILE: &'static str = "assignments.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("cluster", |row| &mut row.cluster),
            Field::new("cosine", |row| &mut row.cosine),
        ]
    }
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FitClusterRow {
    /// Number of the cluster.
    pub cluster: u32,
    /// Vectors in it.
    pub size: u32,
    /// Mean cosine of its vectors to its centroid.
    pub mean_cosine: f64,
}

impl Row for FitClusterRow {
    const FILE: &'static str = "clusters.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("cluster", |row| &mut row.cluster),
            Field::new("size", |row| &mut row.size),
            Field::new("mean_cosine", |row| &mut row.mean_cosine),
        ]
    }
}

/// One iteration of one restart of k-means.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FitIterationRow {
    /// Independent start.
    pub restart: u32,
    /// Lloyd iteration.
    pub iteration: u32,
    /// Mean cosine of vectors to their centroid.
    pub objective: f64,
    /// Empty clusters that were filled again.
    pub refilled: u32,
    /// Whether this restart won.
    pub chosen: bool,
}

impl Row for FitIterationRow {
    const FILE: &'static str = "iterations.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("restart", |row| &mut row.restart),
            Field::new("iteration", |row| &mut row.iteration),
            Field::new("objective", |row| &mut row.objective),
            Field::new("refilled", |row| &mut row.refilled),
            Field::new("chosen", |row| &mut row.chosen),
        ]
    }
}

/// The subspace of one matrix on one cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FitSubspaceRow {
    /// Name of the weight tensor.
    pub matrix: String,
    /// Number of the cluster.
    pub cluster: u32,
    /// What was found.
    pub figures: SubspaceFigures,
}

impl Row for FitSubspaceRow {
    const FILE: &'static str = "subspaces.parquet";

    fn columns() -> Vec<Field<Self>> {
        let mut columns = vec![
            Field::new("matrix", |row: &mut Self| &mut row.matrix),
            Field::new("cluster", |row| &mut row.cluster),
        ];
        columns.extend(SubspaceFigures::columns_of(|row: &mut Self| &mut row.figures));
        columns
    }
}

/// One direction of the outputs of one matrix on one cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FitSpectrumRow {
    /// Name of the weight tensor.
    pub matrix: String,
    /// Number of the cluster.
    pub cluster: u32,
    /// Position in descending order of energy.
    pub index: u32,
    /// Fraction of the total energy.
    pub energy: f64,
}

impl Row for FitSpectrumRow {
    const FILE: &'static str = "spectra.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("matrix", |row| &mut row.matrix),
            Field::new("cluster", |row| &mut row.cluster),
            Field::new("index", |row| &mut row.index),
            Field::new("energy", |row| &mut row.energy),
        ]
    }
}
