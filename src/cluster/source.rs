//! Where rows come from: a matrix in memory, or a file that is read once per pass.
//!
//! K-means needs one read of the rows per iteration, and a few single rows to start from. What
//! the rows mean, and where they lie, the source alone knows.

use super::form::{Form, Full, Half, pack};
use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::par;

/// Rows handled by one thread at a time; results are summed per chunk, in order, so the
/// chunk size fixes the bits of every result.
pub const CHUNK: usize = 1024;

/// Rows of equal width that can be read from first to last, again and again.
pub trait RowSource: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Values in a row.
    fn cols(&self) -> usize;

    /// Hands every row to `visit`, in order, as row-major slabs. Each slab but the last
    /// holds a multiple of [`CHUNK`] rows; larger slabs keep more threads busy.
    fn pass(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>;

    /// Copies single rows, in the order of `indices`. By one pass, unless the source knows a
    /// shorter way.
    fn fetch(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        let cols = self.cols();
        let mut found = vec![Vec::new(); indices.len()];
        let mut seen = 0;
        self.pass(&mut |slab| {
            let count = slab.len() / cols;
            for (&index, row) in indices.iter().zip(&mut found) {
                // The same row may be asked for twice.
                if (seen..seen + count).contains(&index) {
                    *row =
                        slab[(index - seen) * cols..(index - seen + 1) * cols].to_vec();
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
                    "row index {index} is out of range ({seen} rows)"
                )))
            }
        }
    }
}

/// Row-major values borrowed from anywhere.
#[derive(Debug, Clone, Copy)]
pub struct RowSlice<'a> {
    cols: usize,
    data: &'a [f32],
}

impl<'a> RowSlice<'a> {
    /// Rows of `cols` values; refuses a rest and rows without values.
    pub fn new(cols: usize, data: &'a [f32]) -> Result<Self> {
        if cols == 0 || !data.len().is_multiple_of(cols) {
            let found = data.len();
            return Err(Error::failed(format!(
                "{found} values do not fill rows of {cols} values"
            )));
        }
        Ok(Self { cols, data })
    }
}

impl RowSource for RowSlice<'_> {
    fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn pass(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        visit(self.data)
    }

    fn fetch(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        let rows = self.rows();
        let row = |&index: &usize| {
            let values = self.data.get(index * self.cols..(index + 1) * self.cols);
            values.map(<[f32]>::to_vec).ok_or_else(|| {
                Error::failed(format!("row index {index} is out of range ({rows} rows)"))
            })
        };
        indices.iter().map(row).collect()
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

    fn fetch(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        RowSlice { cols: self.cols(), data: self.data() }.fetch(indices)
    }
}

/// What is called with every slab.
pub(super) type Visit<'a, F> = dyn FnMut(&[<F as Form>::Unit]) -> Result<()> + 'a;

/// Rows in one of the forms that k-means reads: what a [`RowSource`] is, and what its bf16
/// copy is.
pub(super) trait Slabs: Sync {
    /// How the rows are held.
    type Form: Form;

    /// Number of rows.
    fn count(&self) -> usize;

    /// Columns of a row.
    fn width(&self) -> usize;

    /// As [`RowSource::pass`].
    fn slabs(&self, visit: &mut Visit<'_, Self::Form>) -> Result<()>;

    /// As [`RowSource::fetch`].
    fn single(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>>;
}

impl<T: RowSource> Slabs for T {
    type Form = Full;

    fn count(&self) -> usize {
        self.rows()
    }

    fn width(&self) -> usize {
        self.cols()
    }

    fn slabs(&self, visit: &mut Visit<'_, Full>) -> Result<()> {
        self.pass(visit)
    }

    fn single(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.fetch(indices)
    }
}

/// The bf16 copy of a source.
#[derive(Debug)]
pub(super) struct Halved {
    rows: usize,
    cols: usize,
    units: Vec<u32>,
}

impl Halved {
    /// Copies a source, in one pass.
    pub(super) fn copy(source: &impl RowSource) -> Result<Self> {
        let (rows, cols) = (source.rows(), source.cols());
        let width = Half::units(cols);
        let mut units = vec![0; rows * width];

        let mut seen = 0;
        source.pass(&mut |slab| {
            // A source that gives more rows than it said would write past the end.
            let until = seen + slab.len() / cols;
            let out = units.get_mut(seen * width..until * width).ok_or_else(|| {
                Error::failed(format!(
                    "a source of {rows} rows gave {until} rows in one pass"
                ))
            })?;

            par::for_each_chunk(out, CHUNK * width, |index, out| {
                let from = index * CHUNK * cols;
                pack(&slab[from..from + out.len() / width * cols], cols, out);
            });
            seen = until;
            Ok(())
        })?;
        Ok(Self { rows, cols, units })
    }
}

impl Slabs for Halved {
    type Form = Half;

    fn count(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.cols
    }

    fn slabs(&self, visit: &mut Visit<'_, Half>) -> Result<()> {
        visit(&self.units)
    }

    fn single(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        let width = Half::units(self.cols);
        let row = |&index: &usize| {
            let units = &self.units[index * width..(index + 1) * width];
            let mut scratch = Vec::new();
            Half::row(units, self.cols, &mut scratch).to_vec()
        };
        Ok(indices.iter().map(row).collect())
    }
}

/// Bytes of results that may wait to be merged.
const WAITING: usize = 64 << 20;

/// Computes `work(first_row, rows)` for every chunk in parallel and hands the results to
/// `merge` in the order of the rows, whatever the number of threads.
///
/// A result has about `size` bytes; the number of results that exist at a time follows from it.
pub(super) fn scan<X: Slabs, T: Send>(
    source: &X,
    size: usize,
    work: impl Fn(usize, &[<X::Form as Form>::Unit]) -> Result<T> + Sync + Send,
    mut merge: impl FnMut(usize, T),
) -> Result<()> {
    let (rows, cols) = (source.count(), X::Form::units(source.width()));
    let threads = rayon::current_num_threads();
    // Enough results at a time to keep the threads busy, few enough to fit into memory.
    let wave = (WAITING / size.max(1)).clamp(4 * threads, 64 * threads);

    let mut seen = 0;
    source.slabs(&mut |slab| {
        let first = seen;
        seen += slab.len() / cols;

        let whole = slab.len().is_multiple_of(cols) && seen <= rows;
        if !whole || (seen < rows && !slab.len().is_multiple_of(CHUNK * cols)) {
            let found = slab.len();
            return Err(Error::failed(format!(
                "found a slab of {found} values from row {first} on, expected a multiple of \
                 {CHUNK} rows of {cols}, or the rest of {rows} rows"
            )));
        }

        // One wave is computed in parallel and merged in order before the next one starts.
        let chunks: Vec<_> = slab.chunks(CHUNK * cols).collect();
        for (turn, group) in chunks.chunks(wave).enumerate() {
            let start = |index| first + (turn * wave + index) * CHUNK;
            let made = par::try_map(group.len(), |i| work(start(i), group[i]))?;
            made.into_iter().enumerate().for_each(|(i, made)| merge(start(i), made));
        }
        Ok(())
    })?;

    if seen == rows {
        Ok(())
    } else {
        Err(Error::failed(format!(
            "a source of {rows} rows gave {seen} rows in one pass"
        )))
    }
}
