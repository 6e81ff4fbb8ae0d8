//! Rust source as a machine reads it: without comments, layout and tests, and its paths.
//!
//! Compiled into three programs: `build.rs` hashes what [`strip`] leaves, the library's tests
//! hold that hash, and `tests/tidy.rs` follows the [`paths`](Names) from file to file. It
//! therefore uses the standard library alone. It knows no macro and no type: what counts is
//! what is written.

use std::collections::BTreeSet;

/// What a file names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Its `use` declarations, groups in braces opened.
    pub(crate) imports: Vec<Import>,
    /// Every other path of two names or more, such as `crate::num::sum` or `table::write`.
    pub(crate) mentions: Vec<Vec<String>>,
    /// Every word outside of `use` and `mod` declarations.
    pub(crate) words: BTreeSet<String>,
}

/// One name that a `use` declaration brings into a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// The path as it is written; `*` is the last name of a glob.
    pub(crate) path: Vec<String>,
    /// What the file calls it.
    pub(crate) name: String,
    /// Whether others may import it from here: `pub use`, `pub(super) use`.
    pub(crate) is_public: bool,
}

impl Names {
    /// Reads the code of a file; comments, literals and test modules do not count.
    pub(crate) fn of(text: &str) -> Self {
        let (_, shape) = lex(text);
        let code = without_tests(&shape, &shape);
        let mut names = Self::default();
        let (mut rest, mut from) = (String::new(), 0);

        // Declarations are taken out, so that what is left holds mentions only.
        while let Some(at) = declaration(&code, from) {
            let end = code[at..].find(';').map_or(code.len(), |length| at + length);
            let before = code[from..at].trim_end();
            rest.push_str(before);
            rest.push(' ');

            let visibility = before.rsplit([' ', ';', '{', '}', ']']).next();
            let is_public = visibility.is_some_and(|word| word.starts_with("pub"));
            let mut found = Vec::new();
            tree(&code[at + "use ".len()..end], &[], &mut found);
            names.imports.extend(found.into_iter().map(|(path, alias)| {
                let name = alias.or_else(|| path.last().cloned()).unwrap_or_default();
                Import { path, name, is_public }
            }));
            from = end;
        }
        rest.push_str(&code[from..]);

        names.scan(&rest);
        names
    }

    /// All paths of the file, as they are written.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &[String]> {
        let imported = self.imports.iter().map(|import| import.path.as_slice());
        imported.chain(self.mentions.iter().map(Vec::as_slice))
    }

    /// Collects the words and paths of code without `use` declarations.
    fn scan(&mut self, code: &str) {
        let mut at = 0;
        while let Some(start) = code[at..].find(is_word).map(|found| at + found) {
            let name = word(&code[start..]);
            at = start + name.len();

            let before = &code[..start];
            // The later names of a path, fields, lifetimes and `pub(in …)` use nothing.
            let inner = before.ends_with("::")
                || before.ends_with(['.', '\''])
                || before.ends_with("(in ");
            if !inner && code[at..].starts_with("::") {
                let mut found = Vec::new();
                tree(&code[start..], &[], &mut found);
                self.mentions.extend(found.into_iter().map(|(path, _)| path));
            }

            // `mod name;` declares the name and does not use it.
            if !before.ends_with("mod ") {
                self.words.insert(name.to_owned());
            }
        }
    }
}

/// Where the next `use` declaration begins. `use` is a keyword, but `use<'a>` in a type
/// captures lifetimes and declares nothing.
fn declaration(code: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let found = at + code[at..].find("use ")?;
        if !code[..found].ends_with(is_word) {
            return Some(found);
        }
        at = found + "use ".len();
    }
}

/// Reads one path or tree of paths, each with the name after `as`; returns what follows.
fn tree<'a>(
    text: &'a str,
    prefix: &[String],
    found: &mut Vec<(Vec<String>, Option<String>)>,
) -> &'a str {
    let mut path = prefix.to_vec();
    let mut rest = text.trim_start();
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            rest = group.trim_start();
            while !rest.is_empty() && !rest.starts_with('}') {
                let after = tree(rest, &path, found).trim_start();
                let after = after.strip_prefix(',').unwrap_or(after).trim_start();
                // Something that is no tree of paths is left alone.
                if after.len() == rest.len() {
                    return rest;
                }
                rest = after;
            }
            return rest.strip_prefix('}').unwrap_or(rest);
        }

        let name = if rest.starts_with('*') { "*" } else { word(rest) };
        // `a::{self, b}` names `a` itself.
        if !(name.is_empty() || name == "self" && !path.is_empty()) {
            path.push(name.to_owned());
        }
        rest = &rest[name.len()..];
        match rest.strip_prefix("::") {
            Some(next) if !name.is_empty() => rest = next,
            _ => break,
        }
    }

    let alias = rest.trim_start().strip_prefix("as ").map(word);
    if let Some(alias) = alias {
        rest = &rest.trim_start()["as ".len() + alias.len()..];
    }
    found.push((path, alias.map(str::to_owned)));
    rest
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The word that text begins with, empty if it begins with none.
fn word(text: &str) -> &str {
    text.split_once(|c| !is_word(c)).map_or(text, |(word, _)| word)
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
            // The twin has the same length in bytes, so positions in one hold in the other.
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

/// Adds one blank for any amount of white space.
fn space(code: &mut String, shape: &mut String) {
    if !code.is_empty() && !shape.ends_with(' ') {
        code.push(' ');
        shape.push(' ');
    }
}

/// Length of the comment that begins here, if one does.
fn comment_length(rest: &[char]) -> Option<usize> {
    match rest {
        ['/', '/', ..] => Some(rest.iter().take_while(|c| **c != '\n').count()),

        // Block comments nest in Rust; one without an end reaches to the end of the file.
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

        // A raw string ends at a quote with as many hashes as it began with. `b` before the
        // `r` is read already, and an `r` inside of a word begins none.
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

        // A character with an escape, and one without. A lone quote begins a lifetime.
        ['\'', '\\', ..] => {
            3 + rest.iter().skip(3).take_while(|c| **c != '\'').count() + 1
        }
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
    .min(rest.len())
}

/// Length of a string with escapes.
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
        // A field or a function for tests alone is left in: it is small and rare.
        let body = start + "#[cfg(test)]".len();
        let module = shape[body..].trim_start().starts_with("mod ");
        let end = if module { item_end(shape, body) } else { body };
        kept.push_str(&code[at..if module { start } else { end }]);
        at = end;
    }
    kept.push_str(&code[at..]);
    kept.trim().to_owned()
}

/// Where an item ends: after its first semicolon or its last brace.
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
    fn every_form_of_a_path_is_seen_and_nothing_in_literals_or_tests() {
        let names = Names::of(
            "use crate::{num, io::{self, table as t}};\npub(super) use a::*;\n\
             // crate::comment::x\nfn f() { crate::par::map(\"crate::text::x\"); t::go() }\n\
             #[cfg(test)]\nmod tests { use crate::test::X; }",
        );

        let paths: Vec<String> = names.paths().map(|path| path.join("::")).collect();
        let expected = [
            "crate::num",
            "crate::io",
            "crate::io::table",
            "a::*",
            "crate::par::map",
            "t::go",
        ];
        assert_eq!(paths, expected);

        let import = |name: &str| names.imports.iter().find(|i| i.name == name).unwrap();
        assert!(!import("t").is_public && import("*").is_public);
        assert!(names.words.contains("go") && !names.words.contains("num"));
    }
}
