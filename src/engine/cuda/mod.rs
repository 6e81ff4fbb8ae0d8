//! The engine on NVIDIA cards: whole micro-batches on one card, kernels of our own around
//! cuBLAS's matrix products.
//!
//! [`device`] is the only file that speaks to the driver. Kernels are CUDA C++ (`kernels/`),
//! compiled at run time for the card at hand; nothing of CUDA is needed to build or start
//! the program. In CI an emulated driver executes the same kernels on the processor
//! (`tests/emulator`). The mathematics is that of [`crate::engine::cpu`], whose results this
//! engine reproduces up to rounding; `docs/gpu.md` says how far, and what ran on hardware.
//!
//! Two runs on one card give the same bits: every sum has one owner and one order.

mod attention;
mod clip;
pub mod device;
mod ffn;
mod layout;
mod ops;
mod signature;
mod step;
mod tower;

pub use device::available;
pub use step::Cuda;

use device::Kind;

/// The type of activations and of the weights that matrix products read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats everywhere.
    F32,
    /// bf16, with f32 sums, residual stream and master weights.
    Bf16,
}

impl Precision {
    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::F32,
            Self::Bf16 => Kind::Bf16,
        }
    }
}
