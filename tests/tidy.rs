//! House rules that the compiler cannot check.
//!
//! * Every file opens with module documentation.
//! * Modules depend downwards only: see [`LAYERS`]; binaries use `stage` only.
//! * Every example in the documentation compiles, and no test is skipped.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the crate, lowest layer first. A module may use the modules of lower
/// layers and itself, never a sibling and never a higher layer.
const LAYERS: &[&[&str]] = &[
    &["error", "num", "rng", "par"],
    &["config", "artifact"],
    &["io", "linalg"],
    &["ops", "text", "image", "cluster", "lowrank"],
    &["data", "model", "loss", "optim"],
    &["activations", "upcycle", "train", "eval", "analysis", "report"],
    &["stage"],
];

#[test]
fn every_file_opens_with_documentation() {
    for (path, text) in sources(&["src", "bin", "tests"]) {
        assert!(text.starts_with("//!"), "{}: no module docs", path.display());
    }
}

#[test]
fn modules_depend_downwards() {
    let mut broken = Vec::new();
    for (path, text) in sources(&["src"]) {
        let Some(from) = module(&path) else { continue };
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for to in uses(code) {
            assert!(!to.is_empty(), "{}: one `use crate::module` a line", path.display());
            if to != from && layer(&to) >= layer(&from) {
                broken.push(format!("{}: {from} uses {to}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "upward edges:\n{}", broken.join("\n"));
}

#[test]
fn binaries_use_stages_only() {
    let name = format!("{}::", env!("CARGO_PKG_NAME").replace('-', "_"));
    for (path, text) in sources(&["bin"]) {
        for rest in text.split(&name).skip(1) {
            assert!(rest.starts_with("stage"), "{}: {name}{rest:.20}", path.display());
        }
    }
}

#[test]
fn nothing_is_ignored() {
    for (path, text) in sources(&["src", "bin"]) {
        let ignored = ["```ignore", "```rust,ignore", "#[ignore"];
        let found = ignored.iter().find(|mark| text.contains(*mark));
        assert!(found.is_none(), "{}: {}", path.display(), found.unwrap_or(&""));
    }
}

/// The top-level module a file of `src` belongs to; `None` for `lib.rs`.
fn module(path: &Path) -> Option<String> {
    let first = path.strip_prefix("src").ok()?.iter().next()?.to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib").then(|| name.to_owned())
}

/// The top-level modules named after `crate::` in code, comments aside.
fn uses(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| {
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        })
        .collect()
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|names| names.contains(&module))
        .unwrap_or_else(|| panic!("{module} is in no layer: add it to LAYERS"))
}

/// Every `.rs` file below the given folders, in order, with its text.
fn sources(roots: &[&str]) -> Vec<(PathBuf, String)> {
    let mut folders: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder") {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                files.push((path, text));
            }
        }
    }
    files.sort();
    files
}
