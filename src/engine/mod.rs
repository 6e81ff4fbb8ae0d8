//! Engines: what runs a model forward and backward.
//!
//! [`cpu`] is the product's engine on processors; [`candle`] is the slow, obvious reference
//! beside it.

pub mod candle;
pub mod cpu;
