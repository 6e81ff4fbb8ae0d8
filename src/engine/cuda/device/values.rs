//! What memory on a card, arguments of kernels and operands of products are.
//!
//! A buffer is like a `Cell`: any number of [`Slice`]s may name its parts, because reads and
//! writes happen in the order in which the stream was asked for them.

use std::marker::PhantomData;
use std::ops::Range;

use cudarc::driver::CudaSlice;

use super::super::kind::Kind;

/// Memory of the device.
#[derive(Debug)]
pub struct Buffer {
    pub(super) memory: CudaSlice<u8>,
    pub(super) pointer: u64,
    pub(super) kind: Kind,
    pub(super) len: usize,
}

/// A part of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    pub(super) pointer: u64,
    pub(super) kind: Kind,
    pub(super) len: usize,
    owner: PhantomData<&'a Buffer>,
}

impl Buffer {
    /// Values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn all(&self) -> Slice<'_> {
        let Self { pointer, kind, len, .. } = *self;
        Slice { pointer, kind, len, owner: PhantomData }
    }

    /// A part.
    pub fn at(&self, range: Range<usize>) -> Slice<'_> {
        self.all().at(range)
    }
}

impl Slice<'_> {
    /// A part of this part.
    ///
    /// # Panics
    /// If the range is not within it.
    #[must_use]
    pub fn at(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        let pointer = self.pointer + (range.start * self.kind.size()) as u64;
        Self { pointer, len: range.len(), ..self }
    }

    /// Values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of its values.
    pub(super) fn bytes(self) -> u64 {
        (self.len * self.kind.size()) as u64
    }

    /// What its values are.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// A pointer to values.
    Values(Slice<'a>),
    /// A null pointer, for what is optional.
    None,
    /// A count or an index.
    I32(i32),
    /// A number.
    F32(f32),
    /// A number.
    F64(f64),
}

impl Arg<'_> {
    /// Bytes of the values it points to.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Values(slice) => slice.bytes(),
            Self::None | Self::I32(_) | Self::F32(_) | Self::F64(_) => 0,
        }
    }
}

impl<'a> From<Slice<'a>> for Arg<'a> {
    fn from(slice: Slice<'a>) -> Self {
        Self::Values(slice)
    }
}

impl<'a> From<&'a Buffer> for Arg<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self::Values(buffer.all())
    }
}

impl<'a> From<Option<Slice<'a>>> for Arg<'a> {
    fn from(slice: Option<Slice<'a>>) -> Self {
        slice.map_or(Self::None, Self::Values)
    }
}

impl From<usize> for Arg<'_> {
    /// # Panics
    /// Beyond 2,147,483,647: kernels count in 32 bits, and sizes are checked before.
    fn from(count: usize) -> Self {
        Self::I32(i32::try_from(count).expect("counts of a launch are below 2^31"))
    }
}

impl From<bool> for Arg<'_> {
    fn from(flag: bool) -> Self {
        Self::I32(i32::from(flag))
    }
}

impl From<f32> for Arg<'_> {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<f64> for Arg<'_> {
    fn from(value: f64) -> Self {
        Self::F64(value)
    }
}

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: usize,
    pub(super) shared: usize,
}

impl Grid {
    /// Blocks along x, y and z, of so many threads.
    pub fn new(blocks: [usize; 3], threads: usize) -> Self {
        Self { blocks, threads, shared: 0 }
    }

    /// One warp per item, eight in a block.
    pub fn warps(items: usize) -> Self {
        Self::new([items.div_ceil(8), 1, 1], 256)
    }

    /// One thread per item, so many in a block.
    pub fn threads(items: usize, threads: usize) -> Self {
        Self::new([items.div_ceil(threads), 1, 1], threads)
    }

    /// With so many bytes of dynamic shared memory per block.
    #[must_use]
    pub fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes, ..self }
    }
}

/// A matrix as an operand of a product: rows `pitch` values apart; `turned` takes its
/// transpose.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    pub(super) values: Slice<'a>,
    pub(super) pitch: usize,
    pub(super) turned: bool,
}

impl<'a> Operand<'a> {
    /// A matrix whose rows lie `pitch` values apart.
    pub fn new(values: Slice<'a>, pitch: usize) -> Self {
        Self { values, pitch, turned: false }
    }

    /// Its transpose.
    #[must_use]
    pub fn turned(self) -> Self {
        Self { turned: !self.turned, ..self }
    }
}

/// Rows, columns and inner extent of a product.
#[derive(Debug, Clone, Copy)]
pub struct Extents {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
}
