//! The engine on NVIDIA cards: whole micro-batches on a card, kernels of our own around
//! cuBLAS's matrix products.
//!
//! [`device`] is the only file that speaks to the driver. Kernels are CUDA C++ (`kernels/`),
//! compiled at run time for the card at hand; nothing of CUDA is needed to build or start
//! the program. In CI an emulated driver executes the same kernels on the processor
//! (`tests/emulator`). The mathematics is that of [`crate::engine::cpu`], whose results this
//! engine reproduces up to rounding; `docs/gpu.md` says how far, and what ran on hardware.
//!
//! Two runs give the same bits, on one card and on several of the same kind: every sum has one
//! owner and one order.

mod attention;
mod clip;
mod contrast;
pub mod device;
mod distill;
mod engine;
mod ffn;
mod group;
mod hidden;
mod kind;
mod layout;
mod moe;
mod ops;
mod optimizer;
mod pass;
mod shape;
mod signature;
mod step;
mod store;
mod tower;
mod trainer;
mod uploaded;

pub use device::{available, require};
pub use engine::Cuda;
pub use group::check_share;
pub use shape::refusal;

use crate::config::Precision;

/// The name that enters keys.
pub fn backend(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "cuda-f32",
        Precision::Bf16 => "cuda-bf16",
    }
}
