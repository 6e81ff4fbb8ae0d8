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

/// Where one token of a validation sample went in one MoE layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoutedTokenRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// The MoE layer.
    pub layer: Layer,
    /// Sample of the token.
    pub sample: u32,
    /// Position of the token in its sample: 0 is the class token of a picture, then come the
    /// patches row by row, or the start mark of a caption.
    pub position: u32,
    /// What stands there in the caption; empty for a picture.
    pub text: String,
    /// The token's first expert.
    pub expert: u32,
    /// The router's probability of that expert.
    pub probability: f32,
    /// Cosine of the router's input and that expert's row of the router.
    pub cosine: f32,
}

impl Row for RoutedTokenRow {
    const FILE: &'static str = "tokens.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("point", |row| &mut row.point),
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("sample", |row| &mut row.sample),
            Field::new("position", |row| &mut row.position),
            Field::new("text", |row| &mut row.text),
            Field::new("expert", |row| &mut row.expert),
            Field::new("probability", |row| &mut row.probability),
            Field::new("cosine", |row| &mut row.cosine),
        ]
    }
}

/// The embedding of a validation picture or caption in two dimensions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EmbeddingRow {
    /// `init` (before training) or `final`.
    pub point: String,
    /// Tower that embedded it.
    pub tower: String,
    /// Its sample.
    pub sample: u32,
    /// Its first principal component.
    pub x: f32,
    /// Its second principal component.
    pub y: f32,
}

impl Row for EmbeddingRow {
    const FILE: &'static str = "embeddings.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("point", |row| &mut row.point),
            Field::new("tower", |row| &mut row.tower),
            Field::new("sample", |row| &mut row.sample),
            Field::new("x", |row| &mut row.x),
            Field::new("y", |row| &mut row.y),
        ]
    }
}
