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
    &["error", "num", "par"],
    &["rng"],
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
        if path.to_string_lossy().ends_with("tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for to in uses(code) {
            if to != from && layer(&to) >= layer(&from) {
                broken.push(format!("{}: {from} uses {to}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "upward edges:\n{}", broken.join("\n"));
}

#[test]
fn binaries_are_thin_and_use_stages_only() {
    for (path, text) in sources(&["bin"]) {
        let lines = text.lines().count();
        assert!(lines <= 80, "{}: {lines} lines", path.display());
        for used in text.lines().filter_map(|line| line.strip_prefix("use upcycle::")) {
            assert!(used.starts_with("stage"), "{}: {used}", path.display());
        }
        let inline = text.contains("= upcycle::") || text.contains(" upcycle::{");
        assert!(!inline, "{}: one `use upcycle::stage` a binary", path.display());
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

/// Packages are fetched by npm in the Makefile's target `fetch`; no stage can.
#[test]
fn no_code_speaks_to_a_network() {
    for (path, text) in sources(&["src", "bin"]) {
        assert!(!text.contains("std::net"), "{}", path.display());
    }
    let lock = fs::read_to_string("Cargo.lock").expect("a lock file");
    let deny = fs::read_to_string(".ci/deny.toml").expect("the rules of cargo-deny");
    let banned: Vec<&str> = deny
        .lines()
        .filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.split('"').next())
        .collect();
    assert!(banned.len() > 5, "{banned:?}");
    for name in banned {
        assert!(!lock.contains(&format!("name = \"{name}\"\n")), "{name} is locked");
    }
}

/// A command of cargo that may change the lock file makes another program than the tests saw.
#[test]
fn every_command_of_cargo_is_locked() {
    for file in ["Makefile", ".ci/run", "tests/fuzz/run.sh"] {
        let text = fs::read_to_string(file).expect(file).replace("\\\n", " ");
        let verbs =
            ["build", "test", "run", "nextest run", "clippy", "doc", "bench", "check"];
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            for part in line.split(['&', ';', '|']) {
                let calls =
                    verbs.iter().any(|verb| part.contains(&format!("cargo {verb} ")));
                assert!(!calls || part.contains("--locked"), "{file}: {part}");
            }
        }
    }
}

/// The top-level module a file of `src` belongs to; `None` for `lib.rs`.
fn module(path: &Path) -> Option<String> {
    let first = path.strip_prefix("src").ok()?.iter().next()?.to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib").then(|| name.to_owned())
}

/// The top-level modules named after `crate::` in code, groups in braces opened, comments
/// aside.
fn uses(text: &str) -> Vec<String> {
    let code: Vec<&str> =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    code.join("\n").split("crate::").skip(1).flat_map(first_names).collect()
}

/// The first name of a path, or of each path of a group.
fn first_names(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let (mut names, mut depth, mut begins) = (Vec::new(), 0_usize, true);
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && !c.is_whitespace() => {
                names.push(word(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
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
