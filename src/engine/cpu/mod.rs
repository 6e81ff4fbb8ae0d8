//! The engine on processors: hand-written passes over flat buffers.

pub mod clip;
pub mod ops;
pub mod optim;
pub mod tower;
pub mod trace;
