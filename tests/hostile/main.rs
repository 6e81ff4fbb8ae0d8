//! Hostile files: whatever the bytes, every parser gives a result or an error that names the
//! file and the reason, without a panic and in bounded time and memory.
//!
//! `properties` edits good files at random, for `FUZZ_SECONDS` a parser if that is set;
//! the other modules are catalogues of known attacks. docs/reliability.md has the results.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]
#![expect(clippy::format_collect, reason = "bombs are built once, from readable parts")]
#![expect(clippy::print_stdout, reason = "how many files were tried is a result")]

mod archives;
mod checkpoints;
mod configuration;
mod pictures;
mod properties;
mod resources;
mod tables;
mod targets;
mod tensors;
mod vocabularies;

use targets::Target;

/// Reads the bytes as the file of a target; the error as text, its causes included.
fn refusal(target: &str, bytes: &[u8]) -> String {
    let target = Target::named(target);
    let folder = target.folder();
    let error = target.run(folder.path(), bytes).expect_err(target.name);
    format!("{error:?}")
}

/// Reads the bytes as the file of a target; fine or refused, but no panic.
fn survives(target: &str, bytes: &[u8]) -> bool {
    let target = Target::named(target);
    let folder = target.folder();
    target.run(folder.path(), bytes).is_ok()
}
