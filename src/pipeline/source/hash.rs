//! The hash of the code a stage can reach; compiled into `build.rs` and into tests.
//!
//! Reachable is the stage's own file, every helper of `src/stage` it names, and the closure
//! of top-level modules named by `crate::…`. Comments, layout and `#[cfg(test)]` modules do
//! not count. Left out are the modules that cannot change a byte of a result: `pipeline`,
//! `cli`, `artifact` and `error`; and `config`, whose values stand in the key. The code of the
//! CUDA engine counts only for results that were made on a card.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::code::{Names, strip};

/// Top-level modules whose code does not count.
const UNCOUNTED: &[&str] = &["artifact", "cli", "config", "error", "pipeline", "stage"];

/// Files of `src/stage` that are neither stages nor their helpers.
const FRAMEWORK: &[&str] = &["mod", "plan"];

/// Where the code of the CUDA engine is, and the file that stands in for it in a binary without
/// that engine. They hold nothing that runs on a processor.
const CUDA: [&str; 2] = ["engine/cuda", "engine/cuda_absent.rs"];

/// What made a result, as far as the code that counts depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// A processor: the code of the CUDA engine does not count, nor what only it names.
    Cpu,
    /// A card: all code counts, because the engines share much of it.
    Cuda,
}

/// The stages, as `src/stage/mod.rs` lists them: the list stands there and nowhere else.
pub(crate) fn stages(src: &Path) -> Vec<String> {
    let code = strip(&fs::read_to_string(src.join("stage/mod.rs")).unwrap_or_default());
    // Each entry of the list is the path of a constant, as `dataset::STAGE`.
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

/// Hashes the code that stage `name` of the tree `src` can reach when `device` computes.
pub(crate) fn of_stage(src: &Path, name: &str, device: Device) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("upcycle 2026-11-22 stage source");
    for path in reachable(src, name, device) {
        let bytes = fs::read(&path).unwrap_or_default();
        let name = path.strip_prefix(src).unwrap_or(&path).to_string_lossy().into_owned();
        let text = if path.extension().is_some_and(|extension| extension == "rs") {
            strip(&String::from_utf8_lossy(&bytes)).into_bytes()
        } else {
            // A template, a kernel or a table is taken as it is.
            bytes
        };

        // Lengths keep the end of one part from passing for the beginning of the next.
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(&text);
    }

    // 128 bits are enough: nobody gains by a collision of their own code.
    hasher.finalize().to_hex().as_str()[..32].to_owned()
}

/// The files that stage `name` can reach when `device` computes, sorted.
pub(crate) fn reachable(src: &Path, name: &str, device: Device) -> BTreeSet<PathBuf> {
    let counts = |path: &PathBuf| {
        device == Device::Cuda
            || !CUDA.iter().any(|cuda| path.starts_with(src.join(cuda)))
    };
    let mut files = BTreeSet::new();
    let mut open = vec![src.join("stage").join(name)];
    let mut seen: BTreeSet<PathBuf> = open.iter().cloned().collect();

    while let Some(module) = open.pop() {
        // A file that does not count is not followed either: what only it uses does not count.
        for path in files_of(&module).into_iter().filter(counts) {
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

/// The helper `name` of `src/stage`, unless it is part of the framework.
fn helper_of_stages(name: &str) -> Option<PathBuf> {
    (!FRAMEWORK.contains(&name)).then(|| Path::new("stage").join(name))
}

/// The files of a module: `module.rs` and everything below the folder `module` but tests.
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

/// The versions that the text of `Cargo.lock` pins for the packages in `wanted`.
pub(crate) fn versions(lock: &str, wanted: &[&str]) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(value) = line.strip_prefix("name = ") {
            name = value.trim_matches('"');
        } else if let Some(value) = line.strip_prefix("version = ")
            && wanted.contains(&name)
        {
            // One package may be there in several versions; which one is used is not known here.
            let all = found.entry(name.to_owned()).or_default();
            if !all.is_empty() {
                all.push(' ');
            }
            all.push_str(value.trim_matches('"'));
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

        let names: Vec<String> = reachable(src, "train", Device::Cpu)
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

        let before = of_stage(src, "train", Device::Cpu);
        put("eval.rs", "fn f() {}");
        put("model.rs", "// A comment.");
        assert_eq!(of_stage(src, "train", Device::Cpu), before);
        put("train/page.html", "y");
        assert_ne!(of_stage(src, "train", Device::Cpu), before);

        // What the CUDA engine is made of, and a module that only it uses, count on a card.
        put("engine/mod.rs", "mod cuda;");
        put("engine/cuda/mod.rs", "use crate::card;");
        put("engine/cuda/kernels/add.cu", "+");
        put("engine/cuda_absent.rs", "");
        put("card.rs", "");
        put("train/mod.rs", "use crate::engine;");
        for file in ["cuda/mod.rs", "cuda/kernels/add.cu", "cuda_absent.rs", "../card.rs"]
        {
            let both = [Device::Cpu, Device::Cuda];
            let [cpu, cuda] = both.map(|device| of_stage(src, "train", device));
            put(&format!("engine/{file}"), "use crate::card; fn changed() {}");
            assert_eq!(of_stage(src, "train", Device::Cpu), cpu, "{file}");
            assert_ne!(of_stage(src, "train", Device::Cuda), cuda, "{file}");
        }
        let cpu = of_stage(src, "train", Device::Cpu);
        put("engine/mod.rs", "mod cuda; fn changed() {}");
        assert_ne!(of_stage(src, "train", Device::Cpu), cpu);
    }

    /// An edit of a kernel, or of the check of a card, must not cost anybody a night of
    /// training on processors.
    #[test]
    fn no_result_of_a_processor_depends_on_the_code_for_cards() {
        let src = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let card: Vec<PathBuf> = CUDA.iter().map(|path| src.join(path)).collect();
        assert!(card.iter().all(|path| path.exists()), "{card:?}");
        let of_card = |files: &BTreeSet<PathBuf>| {
            let is_card =
                |file: &&PathBuf| card.iter().any(|path| file.starts_with(path));
            files.iter().filter(is_card).count()
        };

        for stage in stages(src) {
            let files = reachable(src, &stage, Device::Cpu);
            assert_eq!(of_card(&files), 0, "{stage}");
            assert!(
                !files.iter().any(|file| file.starts_with(src.join("cli"))),
                "{stage}"
            );
        }
        let files = reachable(src, "train", Device::Cuda);
        assert!(of_card(&files) > 10, "{files:?}");
        assert!(files.is_superset(&reachable(src, "train", Device::Cpu)));
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
