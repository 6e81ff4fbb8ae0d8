//! The tables of stage `cluster`.

use super::{Field, Layer, Row, TokenRow};

/// The cluster of one recorded token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AssignmentRow {
    /// The token.
    pub token: TokenRow,
    /// Its cluster.
    pub cluster: u32,
    /// Cosine to the centroid of that cluster.
    pub cosine: f32,
}

impl Row for AssignmentRow {
    const FILE: &'static str = "assignments.parquet";

    fn columns() -> Vec<Field<Self>> {
        let mut columns = TokenRow::columns_of(|row: &mut Self| &mut row.token);
        columns.push(Field::new("cluster", |row| &mut row.cluster));
        columns.push(Field::new("cosine", |row| &mut row.cosine));
        columns
    }
}

/// One cluster of a layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClusterRow {
    /// Its layer.
    pub layer: Layer,
    /// Number of the cluster.
    pub cluster: u32,
    /// Tokens in it.
    pub size: u32,
    /// Mean cosine of its tokens to its centroid.
    pub mean_cosine: f64,
}

impl Row for ClusterRow {
    const FILE: &'static str = "clusters.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("cluster", |row| &mut row.cluster),
            Field::new("size", |row| &mut row.size),
            Field::new("mean_cosine", |row| &mut row.mean_cosine),
        ]
    }
}

/// One iteration of one restart of k-means.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IterationRow {
    /// The clustered layer.
    pub layer: Layer,
    /// Independent start.
    pub restart: u32,
    /// Lloyd iteration.
    pub iteration: u32,
    /// Mean cosine of tokens to their centroid.
    pub objective: f64,
    /// Empty clusters that were filled again.
    pub refilled: u32,
    /// Whether this restart won.
    pub chosen: bool,
}

impl Row for IterationRow {
    const FILE: &'static str = "iterations.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("restart", |row| &mut row.restart),
            Field::new("iteration", |row| &mut row.iteration),
            Field::new("objective", |row| &mut row.objective),
            Field::new("refilled", |row| &mut row.refilled),
            Field::new("chosen", |row| &mut row.chosen),
        ]
    }
}
