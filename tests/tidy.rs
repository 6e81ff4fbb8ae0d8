//! House rules that the compiler cannot check.
//!
//! * Every file opens with module documentation.
//! * The rooms of `src` depend downwards only: see [`LAYERS`].
//! * No two files import each other, directly or through others: see [`Tree::circle`].
//! * Binaries are thin, and use `cli` and `stage` only.
//! * Every example in the documentation compiles, and no test is skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../src/pipeline/source/code.rs"]
mod code;

use code::Names;

/// The rooms of the crate, lowest floor first. A room may use the rooms of lower floors and
/// itself, never a sibling and never a higher floor.
const LAYERS: &[&[&str]] = &[
    &["error", "loss", "num", "par"],
    &["artifact", "config", "ffn", "io", "ranks", "rng", "text"],
    &["image", "linalg", "pipeline", "tables"],
    &["analysis", "cluster", "data", "eval", "lowrank", "model", "upcycle"],
    &["checkpoint", "engine", "report"],
    &["activations", "train"],
    &["stage"],
    &["cli"],
];

#[test]
fn every_file_opens_with_documentation() {
    for (path, text) in sources(&["src", "bin", "tests"]) {
        assert!(text.starts_with("//!"), "{}: no module docs", path.display());
    }
}

/// `src/lib.rs` and docs/architecture.md draw the floors for people.
#[test]
fn the_drawings_of_the_floors_are_up_to_date() {
    for file in ["src/lib.rs", "docs/architecture.md"] {
        let text = fs::read_to_string(file).expect(file);
        for (floor, rooms) in LAYERS.iter().enumerate() {
            let drawn = format!("{floor}  {}", rooms.join(" "));
            assert!(text.contains(&drawn), "{file} does not have the floor `{drawn}`");
        }
    }
}

#[test]
fn rooms_depend_downwards() {
    let upward = Tree::of(&sources(&["src"])).upward(LAYERS);
    assert!(upward.is_empty(), "not downwards:\n{}", upward.join("\n"));
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let circle = Tree::of(&sources(&["src"])).circle();
    assert!(circle.is_empty(), "a circle of imports:\n{}", circle.join("\n"));
}

#[test]
fn the_checks_of_imports_fire() {
    let tree = |files: &[(&str, &str)]| {
        let file =
            |(path, text): &(&str, &str)| (PathBuf::from(path), (*text).to_owned());
        Tree::of(&files.iter().map(file).collect::<Vec<_>>())
    };
    let layers: &[&[&str]] = &[&["low"], &["left", "right"]];

    let upward = tree(&[
        ("src/left.rs", "use crate::low::f; use crate::right::g;"),
        ("src/low.rs", "fn f() { crate::left::h() } // crate::right"),
        ("src/right/mod.rs", "pub fn g() { let _ = \"crate::left::h\"; }"),
    ]);
    let expected = [
        "src/left.rs uses right (src/right/mod.rs)",
        "src/low.rs uses left (src/left.rs)",
    ];
    assert_eq!(upward.upward(layers), expected);

    // What a room hands on belongs to the file it comes from.
    let handed = |c: &str| {
        tree(&[
            (
                "src/low/mod.rs",
                "mod a; mod b; mod c; pub use a::A; pub use {b::B, c::C};",
            ),
            ("src/low/a.rs", "use super::B; pub struct A;"),
            ("src/low/b.rs", "use crate::low::c; pub struct B; fn f(_: c::C) {}"),
            ("src/low/c.rs", c),
        ])
    };
    let circle = handed("pub struct C; fn f(_: super::A) {}").circle();
    assert_eq!(circle, ["src/low/a.rs", "src/low/b.rs", "src/low/c.rs", "src/low/a.rs"]);
    let circle = handed("pub struct C; #[cfg(test)] mod tests { use super::super::A; }");
    assert!(circle.circle().is_empty());
}

#[test]
fn binaries_are_thin_and_use_the_command_line_and_stages_only() {
    for (path, text) in sources(&["bin"]) {
        let lines = text.lines().count();
        assert!(lines <= 80, "{}: {lines} lines", path.display());
        for used in Names::of(&text).paths().filter(|used| used[0] == "upcycle") {
            let allowed = ["cli", "stage"].contains(&used[1].as_str());
            assert!(allowed, "{}: {}", path.display(), used.join("::"));
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

#[test]
fn the_site_lists_every_page_of_the_documentation() {
    let summary = fs::read_to_string("docs/SUMMARY.md").expect("docs/SUMMARY.md");
    for entry in fs::read_dir("docs").expect("docs") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        let is_page = path.extension().is_some_and(|kind| kind == "md");
        let is_listed = summary.contains(&format!("({name})"));
        let fine = !is_page || name == "SUMMARY.md" || is_listed;
        assert!(fine, "{name} is not in SUMMARY.md");
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

/// The files of the crate with the files that each of them uses.
struct Tree {
    paths: BTreeMap<Module, PathBuf>,
    names: BTreeMap<Module, Names>,
}

/// The names that lead from the crate's root to a file.
type Module = Vec<String>;

impl Tree {
    /// Reads the files of `src`, those of tests aside.
    fn of(sources: &[(PathBuf, String)]) -> Self {
        let (mut paths, mut names) = (BTreeMap::new(), BTreeMap::new());
        for (path, text) in sources {
            if path.to_string_lossy().ends_with("tests.rs") {
                continue;
            }
            let module = module(path);
            names.insert(module.clone(), Names::of(text));
            paths.insert(module, path.clone());
        }
        Self { paths, names }
    }

    /// Every import that leads up or aside, between the rooms of `layers`.
    fn upward(&self, layers: &[&[&str]]) -> Vec<String> {
        let floor = |room: &str| {
            let found = layers.iter().position(|rooms| rooms.contains(&room));
            found.unwrap_or_else(|| panic!("{room} is on no floor: add it to LAYERS"))
        };

        let mut found = BTreeSet::new();
        for (from, names) in &self.names {
            for path in names.paths() {
                // The root declares the rooms and uses none.
                let Some(to) = self.resolve(from, path) else { continue };
                let (Some(here), Some(there)) = (from.first(), to.first()) else {
                    continue;
                };
                if here != there && floor(there) >= floor(here) {
                    let (user, used) = (self.path(from), self.path(&to));
                    found.insert(format!("{user} uses {there} ({used})"));
                }
            }
        }
        found.into_iter().collect()
    }

    /// A circle of files that use each other, as paths, the first one again at the end; empty
    /// if there is none.
    ///
    /// The folder's `mod.rs` plays two parts, and a check that ignored them would find a
    /// circle in every room:
    /// * A door. Who takes a name that it hands on with `pub use` uses the file behind it, and
    ///   the `pub use` itself uses nothing. Circles through doors are therefore found.
    /// * A container. A file is a part of the modules around it: it may use what they define
    ///   (a trait, say) although they list it. That direction does not count here, the other
    ///   one does.
    fn circle(&self) -> Vec<String> {
        let mut uses: BTreeMap<&Module, BTreeSet<Module>> =
            self.names.keys().map(|from| (from, self.uses(from))).collect();

        // A file that uses nothing that is left is in no circle.
        loop {
            let left: BTreeSet<Module> = uses.keys().map(|&from| from.clone()).collect();
            for to in uses.values_mut() {
                to.retain(|file| left.contains(file));
            }
            uses.retain(|_, to| !to.is_empty());
            if uses.len() == left.len() {
                break;
            }
        }

        // Each of those that are left uses another one: who follows them comes back.
        let mut steps: Vec<&Module> = uses.keys().next().copied().into_iter().collect();
        while let Some(next) = steps.last().and_then(|last| uses[*last].first()) {
            if let Some(start) = steps.iter().position(|step| *step == next) {
                steps.push(next);
                return steps[start..].iter().map(|step| self.path(step)).collect();
            }
            steps.push(next);
        }
        Vec::new()
    }

    /// The other files that a file uses, but for what it only hands on and what is defined
    /// around it.
    fn uses(&self, from: &Module) -> BTreeSet<Module> {
        let names = &self.names[from];
        let handed_on = |path: &[String]| {
            let mut imports = names.imports.iter().filter(|import| import.path == path);
            imports.any(|i| i.is_public && !names.words.contains(&i.name))
        };
        names
            .paths()
            .filter(|path| !handed_on(path))
            .filter_map(|path| self.resolve(from, path))
            .filter(|to| !from.starts_with(to))
            .collect()
    }

    /// The file that holds what a path names; `None` for other crates, and for types and
    /// functions that stand in the file itself.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => Module::new(),
            "self" => from.clone(),
            "super" => from.split_last()?.1.to_vec(),
            name => {
                if let Some(child) = self.child(from, name) {
                    return Some(self.descend(child, rest));
                }
                // A name that a `use` brought in stands for the path behind it.
                let mut imports = self.names[from].imports.iter();
                let import = imports.find(|i| i.name == name && i.path != path)?;
                return self.resolve(from, &[&import.path, rest].concat());
            }
        };
        Some(self.descend(start, rest))
    }

    /// Follows the names of a path down from a module, and through `pub use`, to a file.
    fn descend(&self, mut module: Module, path: &[String]) -> Module {
        for (at, name) in path.iter().enumerate() {
            if name == "super" {
                module.pop();
            } else if let Some(child) = self.child(&module, name) {
                module = child;
            } else {
                let beyond = self.handed_on(&module, name, &path[at + 1..]);
                return beyond.unwrap_or(module);
            }
        }
        module
    }

    /// The file behind a name that a module imported and hands on.
    fn handed_on(&self, module: &Module, name: &str, rest: &[String]) -> Option<Module> {
        let imports = &self.names[module].imports;
        if let Some(import) = imports.iter().find(|import| import.name == name) {
            return self.resolve(module, &[&import.path, rest].concat());
        }
        let glob =
            imports.iter().find(|import| import.is_public && import.name == "*")?;
        self.resolve(module, &glob.path[..glob.path.len() - 1])
    }

    fn child(&self, module: &Module, name: &str) -> Option<Module> {
        let child = [module.as_slice(), &[name.to_owned()]].concat();
        self.names.contains_key(&child).then_some(child)
    }

    fn path(&self, module: &Module) -> String {
        self.paths[module].display().to_string()
    }
}

/// The names that lead to a file of `src`; none for `lib.rs`.
fn module(path: &Path) -> Module {
    let inner = path.strip_prefix("src").unwrap_or(path).with_extension("");
    let names = inner.iter().map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name != "mod" && name != "lib").collect()
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
