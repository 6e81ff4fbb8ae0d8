//! The table of stage `activations`.
//!
//! It has a row per token, and the vectors of these rows are all that most readers want. So
//! the vectors stand beside the rows, in one buffer: a vector per row would cost an
//! allocation and a copy per token.

use super::{Field, Layer, Row, from_table, to_table};
use crate::error::Result;
use crate::io::table::{Column, Table};

/// Name of the column of vectors.
const INPUTS: &str = "x";

/// A token of a layer, without its vector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenRow {
    /// Layer whose FFN read the token.
    pub layer: Layer,
    /// Sample of the token.
    pub sample: u32,
    /// Position of the token in its sample.
    pub position: u32,
}

impl TokenRow {
    /// The columns of a token that is part of a row of type `R`.
    pub(super) fn columns_of<R: 'static>(of: fn(&mut R) -> &mut Self) -> Vec<Field<R>> {
        vec![
            Field::of_part("tower", of, |own| &mut own.layer.tower),
            Field::of_part("layer", of, |own| &mut own.layer.block),
            Field::of_part("sample", of, |own| &mut own.sample),
            Field::of_part("position", of, |own| &mut own.position),
        ]
    }
}

/// A view of the file that leaves the vectors out.
impl Row for TokenRow {
    const FILE: &'static str = "<tower>-<layer>.parquet";

    fn columns() -> Vec<Field<Self>> {
        Self::columns_of(|row| row)
    }
}

/// Recorded tokens of one layer: the whole file, or a part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Activations {
    /// The tokens.
    pub tokens: Vec<TokenRow>,
    /// Width d of the vectors.
    pub width: usize,
    /// Inputs of the layer's FFN [tokens, d].
    pub inputs: Vec<f32>,
}

impl Activations {
    /// Name of the file of a layer.
    pub fn file(tower: &str, block: usize) -> String {
        let file = TokenRow::FILE.replace("<tower>", tower);
        file.replace("<layer>", &block.to_string())
    }

    /// The columns of the file. Texts and vectors are moved, not copied.
    pub fn into_table(self) -> Result<Table> {
        let Self { tokens, width, inputs } = self;
        Ok(to_table(tokens)?.with(INPUTS, Column::Vectors { width, data: inputs }))
    }

    /// The tokens of a file, or of a part that was read from it.
    pub fn from_table(mut table: Table) -> Result<Self> {
        let (width, inputs) = table.take_vectors(INPUTS)?;
        Ok(Self { tokens: from_table(table)?, width, inputs })
    }
}
