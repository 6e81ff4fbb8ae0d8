//! The table of stage `multiplet`.

use super::{Field, Row};

/// The group of one training sample in one round.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupRow {
    /// Number of the fine-tuning whose batches are drawn from these groups, from 1.
    pub round: u32,
    /// Number of the sample.
    pub sample: u32,
    /// Cluster of its picture.
    pub image_cluster: u32,
    /// Cluster of its first caption.
    pub text_cluster: u32,
    /// Its group: samples share it if they share both clusters in this round and all before.
    pub group: u32,
}

impl Row for GroupRow {
    const FILE: &'static str = "groups.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("round", |row| &mut row.round),
            Field::new("sample", |row| &mut row.sample),
            Field::new("image_cluster", |row| &mut row.image_cluster),
            Field::new("text_cluster", |row| &mut row.text_cluster),
            Field::new("group", |row| &mut row.group),
        ]
    }
}
