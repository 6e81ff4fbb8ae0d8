//! What the values of a buffer on a device are.

use crate::config::Precision;

/// What the values of a buffer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// The upper half of 32-bit floats.
    Bf16,
    /// 64-bit floats.
    F64,
    /// 32-bit signed integers.
    I32,
    /// Bytes.
    U8,
}

impl From<Precision> for Kind {
    /// What activations, and the weights that matrix products read, are held in.
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl Kind {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}
