//! One row struct per Parquet table, shared by the stage that writes it and by all readers.
//!
//! A table's file name and columns stand once, in its implementation of [`Row`]. From there
//! come the columns that a writer fills, those that a reader asks for, and the lists in
//! `docs/artifacts.md`, which a test compares with them.
//!
//! # Why this is home-made
//!
//! The schema of a file decides its bytes, and bytes are what a manifest vouches for, so
//! every column's type is written out where it can be seen.
//!
//! * `parquet_derive` 60.1 has no list columns, of which `routing.parquet` needs one, and
//!   writes through another writer than [`io::table`](crate::io::table), with other bytes.
//! * `serde_arrow` 0.15 has both, but traces its schema from types (large strings, nullable
//!   lists, no fixed width) and has to be overruled for each text and each vector column:
//!   the column list would stand a second time, in overrides.
//! * [`Field::new`] takes one accessor, `|row| &mut row.value`, that serves writing and
//!   reading alike. The whole mechanism is this file and `field.rs`.
//!
//! Where two tables have columns in common, these are a struct of their own, such as
//! [`Measurement`], that is a part of both rows. Readers of large tables convert part by
//! part
//! ([`from_table`]) and leave out what they do not need: [`SampleRow`] is a row without
//! its
//! picture, and [`Activations`] keeps the vectors of all tokens in one buffer.

mod activations;
mod analyze;
mod cluster;
mod dataset;
mod evaluate;
mod field;
mod fit;
mod multiplet;
mod report;
mod subspaces;
#[cfg(test)]
mod tests;
mod train;

pub use activations::{Activations, TokenRow};
pub use analyze::{
    AnalysisRow, EmbeddingRow, RoutedTokenRow, SimilarityRow, WHOLE_LAYER,
};
pub use cluster::{AssignmentRow, ClusterRow, IterationRow};
pub use dataset::{ConceptRow, LabelRow, PictureRow, SampleRow};
pub use evaluate::{
    MILLISECONDS_PER_PICTURE, Measurement, MetricRow, OutcomeRow, PixelRow, ResampleRow,
    RetrievalRow, SetMetricRow, SetResampleRow, SetRow,
};
pub use field::{Field, Value};
pub use fit::{
    FitAssignmentRow, FitClusterRow, FitIterationRow, FitSpectrumRow, FitSubspaceRow,
};
pub use multiplet::GroupRow;
pub use report::{ComparisonRow, SetComparisonRow, SweepRow};
pub use subspaces::{SpectrumRow, SubspaceFigures, SubspaceRow};
pub use train::{ExpertSimilarityRow, LogRow, RoutingRow, ValidationRow};

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::io::table::Table;
use crate::num::index_u32;

/// A row of one kind of table.
pub trait Row: Default + 'static {
    /// Name of the file that holds such rows.
    const FILE: &'static str;

    /// The columns, in the order of the file.
    fn columns() -> Vec<Field<Self>>;
}

/// A layer: its tower (`vision` or `text`) and the index of its block there.
///
/// Layers are ordered as the report shows them, the image tower first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layer {
    /// Column `tower`.
    pub tower: String,
    /// Column `layer`.
    pub block: u32,
}

impl Layer {
    /// Block `block` of a tower.
    pub fn new(tower: &str, block: usize) -> Self {
        Self { tower: tower.to_owned(), block: index_u32(block) }
    }
}

impl Ord for Layer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        fn key(layer: &Layer) -> (bool, &str, u32) {
            (layer.tower != "vision", &layer.tower, layer.block)
        }
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Layer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The rows as columns. The rows' texts and vectors are moved, not copied.
pub fn to_table<R: Row>(mut rows: Vec<R>) -> Result<Table> {
    let mut table = Table::new();
    for field in R::columns() {
        table = table.with(field.name, field.take(&mut rows)?);
    }
    Ok(table)
}

/// The columns as rows. Columns that the rows do not have are passed over.
pub fn from_table<R: Row>(mut table: Table) -> Result<Vec<R>> {
    let mut rows: Vec<R> =
        std::iter::repeat_with(R::default).take(table.rows()).collect();
    let fields = R::columns();

    // Before any column is taken, so that the error about a missing one lists all there are.
    for field in &fields {
        table.column(field.name)?;
    }
    for field in &fields {
        field.put(table.take(field.name)?, &mut rows)?;
    }
    Ok(rows)
}

/// Writes rows to a Parquet file.
pub fn write<R: Row>(path: &Path, rows: Vec<R>) -> Result<()> {
    let table = to_table(rows).context(|| format!("writing {}", path.display()))?;
    table.write(path)
}

/// Reads all rows of [`Row::FILE`] in `folder`.
pub fn read<R: Row>(folder: &Path) -> Result<Vec<R>> {
    let path = folder.join(R::FILE);
    from_table(Table::read(&path)?).context(|| format!("reading {}", path.display()))
}
