//! The CUDA engine against definitions in f64 and against the CPU engine.
//!
//! The tests run on the emulated driver of `tests/emulator`, which executes the kernels on
//! the processor, in several orders of threads and as late as a device may. With
//! `UPCYCLE_CUDA_TESTS=card` the same tests run on the card of this machine. Without a C++
//! compiler they are skipped with one line each; `UPCYCLE_REQUIRE_EMULATOR=1` turns skips
//! into failures.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panics, and say in one line why they are skipped"
)]

mod emulator;
mod engine;
mod models;
mod operators;
mod pipeline;
mod ranks;
mod registers;
mod truth;
