//! Hashes the code of every stage, so that a changed algorithm makes its results stale.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

#[path = "src/pipeline/source/code.rs"]
mod code;
#[path = "src/pipeline/source/hash.rs"]
mod hash;

/// Packages whose versions fix bytes: containers, generators, arithmetic, drawing.
const PACKAGES: &[&str] = &[
    "candle-core",
    "faer",
    "gemm",
    "image",
    "parquet",
    "rand",
    "rand_chacha",
    "rand_distr",
    "resvg",
    "safetensors",
    "tokenizers",
    "zstd-sys",
];

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.lock");

    let mut table = String::from("const SOURCES: &[(&str, &str)] = &[\n");
    for stage in hash::stages(Path::new("src")) {
        let hash = hash::of_stage(Path::new("src"), &stage);
        writeln!(table, "    ({stage:?}, {hash:?}),").expect("a string takes all text");
    }

    table.push_str("];\nconst FORMATS: &[(&str, &str)] = &[\n");
    let lock = fs::read_to_string("Cargo.lock").unwrap_or_default();
    for (name, version) in hash::versions(&lock, PACKAGES) {
        writeln!(table, "    ({name:?}, {version:?}),").expect("a string takes all text");
    }

    let rustc = rustc_version().unwrap_or_default();
    writeln!(table, "];\nconst RUSTC: &str = {rustc:?};")
        .expect("a string takes all text");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("sources.rs"), table).expect("OUT_DIR can be written");
}

fn rustc_version() -> Option<String> {
    let output = std::process::Command::new(env::var_os("RUSTC")?)
        .arg("--version")
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
