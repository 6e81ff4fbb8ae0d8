//! The tables of stage `dataset`.

use super::{Field, Row};

/// A sample without its picture: what stays in memory of an opened split.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SampleRow {
    /// Number of the sample, unique over all splits.
    pub sample: u32,
    /// Length of the encoded picture in bytes.
    pub bytes: u32,
    /// Captions to train on.
    pub captions: Vec<String>,
    /// Captions of the retrieval task.
    pub names: Vec<String>,
    /// Number of the concept.
    pub concept: u32,
    /// Drawing style; for your own pictures, their source.
    pub style: String,
    /// Number of the concept's group.
    pub group: u32,
    /// Number of the concept's subgroup.
    pub subgroup: u32,
}

impl SampleRow {
    /// Name of the file of a split.
    pub fn file(split: &str) -> String {
        Self::FILE.replace("<split>", split)
    }

    /// The columns of a sample that is part of a row of type `R`.
    fn columns_of<R: 'static>(of: fn(&mut R) -> &mut Self) -> Vec<Field<R>> {
        vec![
            Field::of_part("sample", of, |own| &mut own.sample),
            Field::of_part("bytes", of, |own| &mut own.bytes),
            Field::of_part("captions", of, |own| &mut own.captions),
            Field::of_part("names", of, |own| &mut own.names),
            Field::of_part("concept", of, |own| &mut own.concept),
            Field::of_part("style", of, |own| &mut own.style),
            Field::of_part("group", of, |own| &mut own.group),
            Field::of_part("subgroup", of, |own| &mut own.subgroup),
        ]
    }
}

/// A view of the file that leaves the column [`PictureRow::IMAGE`] unread.
impl Row for SampleRow {
    const FILE: &'static str = "samples-<split>.parquet";

    fn columns() -> Vec<Field<Self>> {
        Self::columns_of(|row| row)
    }
}

/// A sample with its picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PictureRow {
    /// The sample.
    pub sample: SampleRow,
    /// Its picture: PNG, RGB, square.
    pub image: Vec<u8>,
}

impl PictureRow {
    /// The column of the pictures, for readers that pass over it or look for places in it.
    pub const IMAGE: &'static str = "image";
}

impl Row for PictureRow {
    const FILE: &'static str = SampleRow::FILE;

    fn columns() -> Vec<Field<Self>> {
        let mut columns = SampleRow::columns_of(|row: &mut Self| &mut row.sample);
        // In the file the picture follows the number of its sample.
        columns.insert(1, Field::new(Self::IMAGE, |row| &mut row.image));
        columns
    }
}

/// A concept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConceptRow {
    /// Number of the concept, which is also the index of its row.
    pub concept: u32,
    /// Code points of the emoji, or another stable name.
    pub key: String,
    /// What it is called.
    pub label: String,
    /// Further words for it.
    pub tags: Vec<String>,
    /// Number of its group.
    pub group: u32,
    /// Number of its subgroup.
    pub subgroup: u32,
    /// Whether no training picture shows it.
    pub held_out: bool,
}

impl Row for ConceptRow {
    const FILE: &'static str = "concepts.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("concept", |row| &mut row.concept),
            Field::new("key", |row| &mut row.key),
            Field::new("label", |row| &mut row.label),
            Field::new("tags", |row| &mut row.tags),
            Field::new("group", |row| &mut row.group),
            Field::new("subgroup", |row| &mut row.subgroup),
            Field::new("held_out", |row| &mut row.held_out),
        ]
    }
}

/// The name of a group or a subgroup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelRow {
    /// [`LabelRow::GROUP`] or [`LabelRow::SUBGROUP`].
    pub kind: String,
    /// Its number among those of its kind.
    pub index: u32,
    /// Its name.
    pub name: String,
}

impl LabelRow {
    /// The kind of a group.
    pub const GROUP: &'static str = "group";
    /// The kind of a subgroup.
    pub const SUBGROUP: &'static str = "subgroup";
}

impl Row for LabelRow {
    const FILE: &'static str = "labels.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("kind", |row| &mut row.kind),
            Field::new("index", |row| &mut row.index),
            Field::new("name", |row| &mut row.name),
        ]
    }
}
