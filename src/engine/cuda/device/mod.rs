//! One card: its memory, its kernels, its matrix products. The only `unsafe` of the engine.
//!
//! Everything is asked for on one stream and runs later, in that order; pictures come in on a
//! stream of their own ([`Uploads`]), behind events that both sides wait for.

mod card;
mod compiler;
mod driver;
mod launch;
mod nccl;
mod product;
mod profile;
mod transfer;
mod uploads;
mod values;

pub use super::kind::Kind;
pub use card::Device;
pub use compiler::{options, source};
pub use driver::{available, require};
pub use nccl::Link;
pub use profile::Spent;
pub use transfer::Pending;
pub use uploads::{Incoming, Uploads};
pub use values::{Arg, Buffer, Extents, Grid, Operand, Slice};
