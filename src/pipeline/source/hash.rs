//! The hash of the code a stage can reach; compiled into `build.rs` and into tests.
//!
//! Reachable is the stage's own file, every helper of `src/stage` it names, and the closure
//! of top-level modules named by `crate::…`. Comments, layout and `#[cfg(test)]` modules do
//! not count. Left out are the modules that cannot change a byte of a result: `pipeline`,
//! `cli`, `artifact` and `error`; and `config`, whose values stand in the key.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::code::{Names, strip};

/// Top-level modules whose code does not count.
const UNCOUNTED: &[&str] = &["artifact", "cli", "config", "error", "pipeline", "stage"];

/// Files of `src/stage` that are neither stages nor their helpers.
const FRAMEWORK: &[&str] = &["mod", "plan"];

/// The stages, as `src/stage/mod.rs` lists them: the list stands there and nowhere else.
pub(crate) fn stages(src: &Path) -> Vec<String> {
    let code = strip(&fs::read_to_string(src.join("stage/mod.rs")).unwrap_or_default());
    let all = code.split("pub const ALL").nth(1).and_then(|rest| rest.split(';').next());
    let entries = all.unwrap_or_default().split("::STAGE");
    entries
        .filter_map(|entry| {
            entry.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next()
        })
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Hashes the code stage `name` of the tree `src` can reach.
pub(crate) fn of_stage(src: &Path, name: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("upcycle 2026-11-22 stage source");
    for path in reachable(src, name) {
        let bytes = fs::read(&path).unwrap_or_default();
        let name = path.strip_prefix(src).unwrap_or(&path).to_string_lossy().into_owned();
        let text = if path.extension().is_some_and(|extension| extension == "rs") {
            strip(&String::from_utf8_lossy(&bytes)).into_bytes()
        } else {
            bytes
        };
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(&text);
    }
    hasher.finalize().to_hex().as_str()[..32].to_owned()
}

/// The files stage `name` can reach, sorted.
pub(crate) fn reachable(src: &Path, name: &str) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut open = vec![src.join("stage").join(name)];
    let mut seen: BTreeSet<PathBuf> = open.iter().cloned().collect();

    while let Some(module) = open.pop() {
        for path in files_of(&module) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let inside_stage = path.starts_with(src.join("stage"));
            for next in named(src, &text, inside_stage) {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }

            files.insert(path);
        }
    }
    files
}

/// The modules that code names, as paths without extension.
fn named(src: &Path, text: &str, inside_stage: bool) -> Vec<PathBuf> {
    let names = Names::of(text);
    let named = names.paths().filter_map(|path| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path[..] {
            ["crate", "stage", helper, ..] => helper_of_stages(helper),
            ["super", helper, ..] if inside_stage => helper_of_stages(helper),
            ["crate", room, ..] if !UNCOUNTED.contains(&room) => Some(room.into()),
            _ => None,
        }
    });

    // A name that has no file is a type, or a function.
    named.map(|module| src.join(module)).filter(|m| !files_of(m).is_empty()).collect()
}

fn helper_of_stages(name: &str) -> Option<PathBuf> {
    (!FRAMEWORK.contains(&name)).then(|| Path::new("stage").join(name))
}

/// The files of a module: `module.rs` and everything below the folder `module`.
fn files_of(module: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let file = module.with_extension("rs");
    if file.is_file() {
        files.push(file);
    }

    let mut folders = vec![module.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.to_string_lossy().ends_with("tests.rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The versions `Cargo.lock` pins for some packages.
pub(crate) fn versions(lock: &str, wanted: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(value) = line.strip_prefix("name = ") {
            name = value.trim_matches('"');
        } else if let Some(value) = line.strip_prefix("version = ")
            && wanted.contains(&name)
        {
            // One package may be there in several versions.
            let version = value.trim_matches('"');
            found
                .entry(name.to_owned())
                .and_modify(|all: &mut String| {
                    all.push(' ');
                    all.push_str(version);
                })
                .or_insert_with(|| version.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_stages_is_read_from_where_it_stands() {
        let src = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let expected: Vec<String> = crate::stage::names().map(str::to_owned).collect();
        assert_eq!(stages(src), expected);
    }

    #[test]
    fn the_closure_reaches_through_modules_and_stops_at_the_uncounted() {
        let folder = tempfile::tempdir().unwrap();
        let src = folder.path();
        let put = |name: &str, text: &str| {
            let path = src.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "stage/train.rs",
            "use super::{Job, samples}; use crate::train; use crate::error::R;",
        );
        put("stage/samples.rs", "use crate::io;");
        put("stage/evaluate.rs", "use crate::eval;");
        put("train/mod.rs", "use crate::model;");
        put("train/page.html", "x");
        for name in ["model.rs", "io.rs", "eval.rs", "error.rs"] {
            put(name, "");
        }

        let names: Vec<String> = reachable(src, "train")
            .iter()
            .map(|p| p.strip_prefix(src).unwrap().display().to_string())
            .collect();
        let expected = [
            "io.rs",
            "model.rs",
            "stage/samples.rs",
            "stage/train.rs",
            "train/mod.rs",
            "train/page.html",
        ];
        assert_eq!(names, expected);

        let before = of_stage(src, "train");
        put("eval.rs", "fn f() {}");
        put("model.rs", "// A comment.");
        assert_eq!(of_stage(src, "train"), before);
        put("train/page.html", "y");
        assert_ne!(of_stage(src, "train"), before);
    }

    #[test]
    fn versions_are_read_from_the_lock_file() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0\"\n\n[[package]]\nname = \"b\"\n\
                    version = \"2.0\"\n[[package]]\nname = \"a\"\nversion = \"3.0\"\n";
        assert_eq!(
            versions(lock, &["a"]),
            BTreeMap::from([("a".to_owned(), "1.0 3.0".to_owned())])
        );
    }
}
