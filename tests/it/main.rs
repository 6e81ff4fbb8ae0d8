//! Promises of the store and of the drive, kept over a small pipeline of made-up stages.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod cli;
mod clip_moe;
mod concurrency;
mod crash;
mod damage;
mod errors;
mod evaluation;
mod fit;
mod harness;
mod init;
mod install;
mod interop;
mod makefile;
mod pairs;
mod pipeline;
mod plan;
mod staleness;
mod tables;
