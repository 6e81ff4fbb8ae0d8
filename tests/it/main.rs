//! Promises of the store and of the drive, kept over a small pipeline of made-up stages.

mod cli;
mod concurrency;
mod crash;
mod damage;
mod harness;
mod makefile;
mod plan;
mod staleness;
