//! Hashes the code of every stage, so that a changed algorithm makes its results stale.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

#[path = "src/pipeline/source/code.rs"]
mod code;
#[path = "src/pipeline/source/hash.rs"]
mod hash;

use hash::Device;

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

    // A stage with the hash of its code on a processor, and as `<stage>/cuda` on a card.
    let src = Path::new("src");
    let mut table = String::from("const SOURCES: &[(&str, &str)] = &[\n");
    for stage in hash::stages(src) {
        for (name, device) in
            [(stage.clone(), Device::Cpu), (format!("{stage}/cuda"), Device::Cuda)]
        {
            let hash = hash::of_stage(src, &stage, device);
            writeln!(table, "    ({name:?}, {hash:?}),")
                .expect("a string takes all text");
        }
    }

    table.push_str("];\nconst FORMATS: &[(&str, &str)] = &[\n");
    let lock = fs::read_to_string("Cargo.lock").unwrap_or_default();
    for (name, version) in hash::versions(&lock, PACKAGES) {
        writeln!(table, "    ({name:?}, {version:?}),").expect("a string takes all text");
    }

    // The compiler enters no key: it must not change a result, and records say which it was.
    let rustc = rustc_version().unwrap_or_default();
    writeln!(table, "];\nconst RUSTC: &str = {rustc:?};")
        .expect("a string takes all text");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("sources.rs"), table).expect("OUT_DIR can be written");
}

/// The first line of `rustc --version`, kept with each result; `None` if it cannot be asked.
fn rustc_version() -> Option<String> {
    let output = std::process::Command::new(env::var_os("RUSTC")?)
        .arg("--version")
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
