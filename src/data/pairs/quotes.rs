//! Quotation marks of a table that do not close where they should.
//!
//! The csv crate reads a field whose quotation mark is never closed up to the end of the file,
//! or up to the first mark of another row, without an error: all rows between become part of
//! one caption. As Python's csv module does when it is strict, this looks at the marks alone.
//! Text behind a closing mark is tolerated within one line, as pandas does.

use std::io::{BufRead as _, BufReader};
use std::path::Path;

/// A field that is opened by a quotation mark and not closed as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Open {
    /// The line of the mark, from 1.
    pub line: u64,
    /// Whether the file ends before a closing mark.
    pub is_end: bool,
}

impl Open {
    /// What is wrong and what to do.
    pub(super) fn reason(self) -> &'static str {
        if self.is_end {
            "a quotation mark opens a field and is never closed: close it, or write it twice \
             within a quoted field (\"\"\")"
        } else {
            "a quotation mark opens a field that is closed only on a later line, within what \
             looks like another row: close it, or write it twice within a quoted field (\"\"\")"
        }
    }
}

/// Where a reader of fields is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first byte of a field.
    Start,
    /// In a field without quotation marks, or behind its closing one.
    Plain,
    /// Between quotation marks that opened on this line.
    Quoted { line: u64 },
    /// Behind a mark that closes the field, or is the first of two.
    Closed { line: u64 },
}

/// The first field of a table whose quotation marks hide rows.
pub(super) fn check(path: &Path, delimiter: u8) -> std::io::Result<Option<Open>> {
    let mut reader = BufReader::new(std::fs::File::open(path)?);
    let (mut state, mut line, mut is_first) = (State::Start, 1, true);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }

        // A byte order mark is not a part of the first field.
        let start = if is_first && bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        is_first = false;
        for &byte in &bytes[start..] {
            state = match (state, byte) {
                (State::Start, b'"') => State::Quoted { line },
                (State::Quoted { line }, b'"') => State::Closed { line },
                (State::Quoted { line }, _) | (State::Closed { line }, b'"') => {
                    State::Quoted { line }
                }
                (_, b'\n' | b'\r') => State::Start,
                (_, other) if other == delimiter => State::Start,
                (State::Closed { line: opened }, _) if opened != line => {
                    return Ok(Some(Open { line: opened, is_end: false }));
                }
                _ => State::Plain,
            };
            line += u64::from(byte == b'\n');
        }

        let length = bytes.len();
        reader.consume(length);
    }

    Ok(match state {
        State::Quoted { line } => Some(Open { line, is_end: true }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<Open> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        check(file.path(), b',').unwrap()
    }

    #[test]
    fn marks_that_close_on_their_line_or_around_whole_lines_are_sound() {
        for text in [
            "a,b\n1,\"x, y\"\n2,\"say \"\"hi\"\"\"\n",
            "a,b\r\n1,\"two\r\nlines\"\r\n2,plain\r\n",
            "a,b\n1,a 5\" ruler\n2,it is 5\"\n",
            "a,b\n1,\"Hello\" said he\n",
            "\u{feff}\"a\",\"b\"\n1,\"\"\n",
            "a,b\n1,\"x\"",
            "",
        ] {
            assert_eq!(found(text), None, "{text:?}");
        }
    }

    #[test]
    fn marks_that_swallow_rows_are_found_by_the_line_that_opens() {
        for (text, line, is_end) in [
            ("a,b\n1,\"open\n2,x\n3,y\n", 2, true),
            ("a,b\n1,x\n2,\"open", 3, true),
            ("a,b\n1,x\n2,\"", 3, true),
            ("a,b\n1,\"even \"\"\n", 2, true),
            ("\"a,b\n1,x\n", 1, true),
            ("a,b\n1,\"open\n2,\"quoted\"\n3,y\n", 2, false),
            ("a,b\n1,x\n2,\"open\n3,says \"hi\" to\n", 3, false),
        ] {
            assert_eq!(found(text), Some(Open { line, is_end }), "{text:?}");
        }
    }
}
