//! Which code a binary was built from, stage by stage.
//!
//! `build.rs` hashes the code each stage can reach and writes the table that is read here.
//! A result made by other code has another key; a changed comment, test or layout has none.

#[cfg(test)]
mod code;
#[cfg(test)]
mod hash;

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// Hash of the code that stage `name` can reach when `backend` computes; empty for a stage that
/// is not ours.
///
/// The code of the CUDA engine counts for its own backends only, whose names begin with `cuda-`.
pub fn of_stage(name: &str, backend: &str) -> &'static str {
    let name = match backend.split_once('-') {
        Some(("cuda", _)) => format!("{name}/cuda"),
        _ => name.to_owned(),
    };
    SOURCES.iter().find(|(stage, _)| *stage == name).map_or("", |(_, hash)| hash)
}

/// Name and versions of every package that fixes bytes of results.
pub fn formats() -> &'static [(&'static str, &'static str)] {
    FORMATS
}

/// The compiler that built this binary.
pub fn rustc() -> &'static str {
    RUSTC
}
