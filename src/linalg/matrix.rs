//! A dense row-major f32 matrix: what algorithms on matrices take and return.

use crate::error::{Error, Result};

/// A row-major matrix of f32.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// Wraps `data` [rows × cols], refusing another length.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self> {
        if rows.checked_mul(cols) == Some(data.len()) {
            Ok(Self { rows, cols, data })
        } else {
            let found = data.len();
            Err(Error::failed(format!(
                "a {rows}×{cols} matrix cannot be made of {found} values"
            )))
        }
    }

    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, row by row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, row by row, mutable.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Gives up the values.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.cols..(index + 1) * self.cols]
    }

    /// Row `index`, mutable.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.data[index * self.cols..(index + 1) * self.cols]
    }

    /// The rows in order.
    pub fn iter_rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.cols.max(1))
    }

    /// The rows at these positions, in that order.
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        let data = rows.iter().flat_map(|&row| self.row(row).iter().copied());
        Self::new(rows.len(), self.cols, data.collect())
    }

    /// The transpose, copied.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        for (i, row) in self.iter_rows().enumerate() {
            for (j, &value) in row.iter().enumerate() {
                out.data[j * self.rows + i] = value;
            }
        }
        out
    }
}
