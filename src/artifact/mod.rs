//! What is on disk and where it came from: results addressed by what made them.
//!
//! A result is a directory named by its [`Key`], the hash of everything that may change its
//! bytes. It is written once, complete or not at all, and never edited:
//!
//! ```text
//! artifacts/<stage>[/<run>]/<key>/              files 0444, manifest.json written last
//! artifacts/<stage>[/<run>]/current -> <key>    replaced in one step
//! artifacts/<stage>/.tmp/<key>.<pid>.<n>/       being written; <stage>/.tmp/scratch-… resumes
//! artifacts/.locks/<key>                        held while a result is made
//! artifacts/.corrupt/…                          damaged results, never deleted by us
//! artifacts/.state/{statcache,runs.jsonl}       derived; safe to delete
//! ```
//!
//! Two consequences carry the pipeline. A parameter that is changed back finds its old result
//! ([`Outcome::Reused`]). And the key of a downstream result names the *digests of the files
//! it reads*, not the keys of those who wrote them, so an upstream run that ends in the same
//! bytes stops the cascade there.
//!
//! This module knows no stage and prints nothing; it reports through [`Notice`].

mod crash;
mod describe;
mod diff;
mod digest;
mod draft;
mod files;
mod history;
mod inputs;
mod key;
mod lock;
mod machine;
mod manifest;
mod place;
mod publish;
mod statcache;
mod store;
mod sweep;

pub use crash::STEPS as CRASH_STEPS;
pub use diff::{Change, changes};
pub use digest::{Digest, canonical};
pub use draft::Draft;
pub use files::remove_tree;
pub use inputs::{Input, Inputs};
pub use key::{Expected, Key, Preimage, section};
pub use machine::{peak_memory, processor};
pub use manifest::{Brief, MANIFEST, Manifest, Output, Provenance};
pub use place::{External, Place};
pub use publish::{Notice, Outcome, Request};
pub use statcache::Stat;
pub use store::{Options, Reason, State, Store};
pub use sweep::Garbage;
