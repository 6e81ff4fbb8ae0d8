//! Where rows come from: a matrix in memory, or a file that is read once a pass.
//!
//! K-means needs one read of the rows per iteration and nothing else, so a source is only
//! asked for passes. What the rows mean, and where they lie, it alone knows.

use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::par;

/// Rows handled by one thread at a time; results are summed per piece, in order, so the
/// piece size fixes the bits of every result.
pub const PIECE: usize = 1024;

/// Rows of equal width that can be read from first to last, again and again.
pub trait RowSource: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Values in a row.
    fn cols(&self) -> usize;

    /// Hands every row to `visit`, in order, as row-major slabs. Each slab but the last
    /// holds a multiple of [`PIECE`] rows; larger slabs keep more threads busy.
    fn pass(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>;
}

/// Row-major values borrowed from anywhere.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    cols: usize,
    data: &'a [f32],
}

impl<'a> Rows<'a> {
    /// Rows of `cols` values; refuses a rest and rows without values.
    pub fn new(cols: usize, data: &'a [f32]) -> Result<Self> {
        if cols == 0 || !data.len().is_multiple_of(cols) {
            let found = data.len();
            return Err(Error::failed(format!(
                "{found} values do not fill rows of {cols}"
            )));
        }
        Ok(Self { cols, data })
    }
}

impl RowSource for Rows<'_> {
    fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn pass(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        visit(self.data)
    }
}

impl RowSource for Matrix {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn cols(&self) -> usize {
        self.cols()
    }

    fn pass(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        visit(self.data())
    }
}

/// Computes `work(first_row, rows)` for every piece in parallel and hands the results to
/// `merge` in the order of the rows, whatever the number of threads.
///
/// At most a few pieces' results a thread exist at a time.
pub(super) fn scan<T: Send>(
    source: &impl RowSource,
    work: impl Fn(usize, &[f32]) -> Result<T> + Sync + Send,
    mut merge: impl FnMut(usize, T),
) -> Result<()> {
    let (rows, cols) = (source.rows(), source.cols());
    let wave = 4 * rayon::current_num_threads();
    let mut seen = 0;
    source.pass(&mut |slab| {
        let first = seen;
        seen += slab.len() / cols;
        let whole = slab.len().is_multiple_of(cols) && seen <= rows;
        if !whole || (seen < rows && !slab.len().is_multiple_of(PIECE * cols)) {
            let found = slab.len();
            return Err(Error::failed(format!(
                "rows {first}.. came as a slab of {found} values: expected a multiple of \
                 {PIECE} rows of {cols}, or the rest of {rows} rows"
            )));
        }
        let pieces: Vec<&[f32]> = slab.chunks(PIECE * cols).collect();
        for (turn, group) in pieces.chunks(wave).enumerate() {
            let start = |index| first + (turn * wave + index) * PIECE;
            let made = par::try_map(group.len(), |i| work(start(i), group[i]))?;
            made.into_iter().enumerate().for_each(|(i, made)| merge(start(i), made));
        }
        Ok(())
    })?;
    if seen == rows {
        Ok(())
    } else {
        Err(Error::failed(format!("a source of {rows} rows gave {seen} in one pass")))
    }
}

/// Copies single rows, by one pass.
pub(super) fn fetch(source: &impl RowSource, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
    let cols = source.cols();
    let mut found = vec![Vec::new(); indices.len()];
    let mut seen = 0;
    source.pass(&mut |slab| {
        let count = slab.len() / cols;
        for (&index, row) in indices.iter().zip(&mut found) {
            if (seen..seen + count).contains(&index) {
                *row = slab[(index - seen) * cols..(index - seen + 1) * cols].to_vec();
            }
        }
        seen += count;
        Ok(())
    })?;
    match found.iter().position(Vec::is_empty) {
        None => Ok(found),
        Some(missing) => {
            let index = indices[missing];
            Err(Error::failed(format!(
                "row {index} is absent from a source of {seen} rows"
            )))
        }
    }
}
