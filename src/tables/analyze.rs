//! The tables of stage `analyze`.

use super::{Field, Layer, Row};

/// Stands for the whole layer in the column `expert` of `analysis.parquet`.
pub const WHOLE_LAYER: u32 = u32::MAX;

/// One figure of one MoE layer, or of one of its experts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AnalysisRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// The MoE layer.
    pub layer: Layer,
    /// Metric.
    pub metric: String,
    /// Number of the expert, or [`WHOLE_LAYER`].
    pub expert: u32,
    /// Value of the metric.
    pub value: f64,
}

impl Row for AnalysisRow {
    const FILE: &'static str = "analysis.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("point", |row| &mut row.point),
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("metric", |row| &mut row.metric),
            Field::new("expert", |row| &mut row.expert),
            Field::new("value", |row| &mut row.value),
        ]
    }
}

/// Similarity of two experts of a layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SimilarityRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// The MoE layer.
    pub layer: Layer,
    /// One expert: a row of the matrix.
    pub expert: u32,
    /// The other one: a column of the matrix.
    pub other: u32,
    /// Cosine of their flattened weights.
    pub cosine: f64,
}

impl Row for SimilarityRow {
    const FILE: &'static str = "similarity_matrix.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("point", |row| &mut row.point),
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("expert", |row| &mut row.expert),
            Field::new("other", |row| &mut row.other),
            Field::new("cosine", |row| &mut row.cosine),
        ]
    }
}
