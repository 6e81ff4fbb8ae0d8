//! The hash of the code a stage can reach; compiled into `build.rs` and into tests.
//!
//! Reachable is the stage's own file, every helper of `src/stage` it names, and the closure
//! of top-level modules named by `crate::…`. Comments, layout and `#[cfg(test)]` modules do
//! not count. Left out are the modules that cannot change a byte of a result: `pipeline`,
//! `cli`, `artifact` and `error`; and `config`, whose values stand in the key.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

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
            for next in named(src, &strip(&text), inside_stage) {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
            files.insert(path);
        }
    }
    files
}

/// The modules that stripped code names, as paths without extension.
fn named(src: &Path, code: &str, inside_stage: bool) -> Vec<PathBuf> {
    let top = paths_after(code, "crate::")
        .into_iter()
        .filter(|module| !UNCOUNTED.contains(&module.as_str()))
        .map(|module| src.join(module));
    let mut helpers = paths_after(code, "crate::stage::");
    if inside_stage {
        helpers.extend(paths_after(code, "super::"));
    }
    let helpers = helpers
        .into_iter()
        .filter(|module| !FRAMEWORK.contains(&module.as_str()))
        .map(|module| src.join("stage").join(module));
    top.chain(helpers).filter(|module| !files_of(module).is_empty()).collect()
}

/// The first names after each `prefix`, groups in braces opened.
fn paths_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split(prefix).skip(1) {
        match rest.strip_prefix('{') {
            None => found.extend(word(rest)),
            Some(group) => {
                let mut depth = 0_usize;
                let mut expecting = true;
                for (position, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => expecting = true,
                        c if expecting && !c.is_whitespace() => {
                            found.extend(word(&group[position..]));
                            expecting = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn word(text: &str) -> Option<String> {
    let name: String =
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
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

/// Code without comments, layout and test modules.
pub(crate) fn strip(text: &str) -> String {
    let (code, shape) = lex(text);
    without_tests(&code, &shape)
}

/// Splits text into code without comments (white space collapsed outside of literals), and a
/// twin of the same length whose literals are blank, safe to search for braces.
fn lex(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut shape) = (String::new(), String::new());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let literal = literal_length(rest, chars[..at].last().copied());
        if let Some(length) = comment_length(rest) {
            at += length;
            space(&mut code, &mut shape);
        } else if literal > 0 {
            for &c in &rest[..literal] {
                code.push(c);
                (0..c.len_utf8()).for_each(|_| shape.push('_'));
            }
            at += literal;
        } else if rest[0].is_whitespace() {
            space(&mut code, &mut shape);
            at += 1;
        } else {
            code.push(rest[0]);
            shape.push(rest[0]);
            at += 1;
        }
    }
    (code, shape)
}

fn space(code: &mut String, shape: &mut String) {
    if !code.is_empty() && !shape.ends_with(' ') {
        code.push(' ');
        shape.push(' ');
    }
}

fn comment_length(rest: &[char]) -> Option<usize> {
    match rest {
        ['/', '/', ..] => Some(rest.iter().take_while(|c| **c != '\n').count()),
        ['/', '*', ..] => {
            let (mut depth, mut at) = (0_usize, 0);
            while at < rest.len() {
                match rest[at..] {
                    ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
                    ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
                    _ => at += 1,
                }
                if depth == 0 {
                    break;
                }
            }
            Some(at)
        }
        _ => None,
    }
}

/// Length of the string or character literal that begins here; 0 if none does.
fn literal_length(rest: &[char], before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest {
        ['"', ..] => quoted(rest),
        ['r', tail @ ..] if !in_word || before == Some('b') => {
            let hashes = tail.iter().take_while(|c| **c == '#').count();
            if tail.get(hashes) != Some(&'"') {
                return 0;
            }
            let end: Vec<char> = std::iter::once('"').chain(vec!['#'; hashes]).collect();
            let body = &tail[hashes + 1..];
            let close = body.windows(end.len()).position(|w| w == end.as_slice());
            1 + hashes + 1 + close.map_or(body.len(), |close| close + end.len())
        }
        ['\'', '\\', ..] => {
            3 + rest.iter().skip(3).take_while(|c| **c != '\'').count() + 1
        }
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
    .min(rest.len())
}

fn quoted(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// Removes `#[cfg(test)]` items that are modules.
fn without_tests(code: &str, shape: &str) -> String {
    let mut kept = String::new();
    let mut at = 0;
    while let Some(found) = shape[at..].find("#[cfg(test)]") {
        let start = at + found;
        let body = start + "#[cfg(test)]".len();
        let module = shape[body..].trim_start().starts_with("mod ");
        let end = if module { item_end(shape, body) } else { body };
        kept.push_str(&code[at..if module { start } else { end }]);
        at = end;
    }
    kept.push_str(&code[at..]);
    kept.trim().to_owned()
}

fn item_end(shape: &str, from: usize) -> usize {
    let mut depth = 0_usize;
    for (position, c) in shape[from..].char_indices() {
        match c {
            ';' if depth == 0 => return from + position + 1,
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return from + position + 1;
                }
            }
            _ => {}
        }
    }
    shape.len()
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
    fn comments_layout_and_tests_do_not_count() {
        let plain = "fn f() -> u8 { let s = \"// no\"; 1 }";
        let dressed = "//! Docs.\n\n/// More { docs.\nfn f() -> u8 {\n    // why\n    let s = \
                       \"// no\"; /* a /* nested */ one */ 1\n}\n\n#[cfg(test)]\nmod tests \
                       { const C: char = '}'; fn g() { \"}\"; r#\"}\"#; } }\n";
        assert_eq!(strip(plain), strip(dressed));
        assert_ne!(strip(plain), strip(&plain.replace("1 }", "2 }")));
    }

    #[test]
    fn what_stands_in_literals_counts() {
        for (a, b) in [
            ("x(\"a  b\")", "x(\"a b\")"),
            ("x(r#\"a // b\"#)", "x(r#\"a // c\"#)"),
            ("x('/')", "x('*')"),
            ("x(b\"\\\"//\", 1)", "x(b\"\\\"//\", 2)"),
        ] {
            assert_ne!(strip(a), strip(b));
        }
        assert_eq!(strip("fn f<'a>(x: &'a str) {} // c"), "fn f<'a>(x: &'a str) {}");
    }

    #[test]
    fn every_form_of_a_path_is_seen() {
        let code = "use crate::{num, io::{table, x}, rng}; crate::par::map(); use crate::error::E;";
        let found = paths_after(code, "crate::");
        let names: Vec<&str> = found.iter().map(String::as_str).collect();
        assert_eq!(names, ["error", "io", "num", "par", "rng"]);
    }

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
