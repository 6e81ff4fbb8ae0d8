//! Content digests and the one text form of a JSON value.
//!
//! A digest is blake3 in hexadecimal. JSON is hashed in a canonical form (sorted keys, no
//! spaces), so that neither key order nor layout of a file can reach a key.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Context, Result};

/// The blake3 digest of some bytes: 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// Digest of bytes in memory.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().as_str().to_owned())
    }

    /// Digest of a file, streamed.
    pub fn of_file(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path)
            .context(|| format!("cannot open {}", path.display()))?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(file)
            .context(|| format!("cannot read {}", path.display()))?;
        Ok(Self(hasher.finalize().to_hex().as_str().to_owned()))
    }

    /// Reads back 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(hex)).then(|| Self(text.to_owned()))
    }

    /// The hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The canonical text of a value: keys sorted at every level, no spaces.
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

/// Writes the canonical text of a value behind what is there.
pub(super) fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }

        // serde_json sorts keys already, unless a crate in the tree asks it not to.
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort_unstable();
            out.push('{');
            for (index, key) in keys.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write_canonical(&map[key], out);
            }
            out.push('}');
        }

        // Numbers have the text that serde_json gives them: the shortest that reads back.
        Value::String(text) => write_text(text, out),
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// Writes a JSON string. Most texts need no escape, and are not copied to find that out.
pub(super) fn write_text(text: &str, out: &mut String) {
    if text.bytes().any(|b| b < 0x20 || b == b'"' || b == b'\\') {
        out.push_str(&Value::from(text).to_string());
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_order_does_not_reach_the_canonical_text() {
        let a: Value =
            serde_json::from_str(r#"{"b": [1, {"d": 0.001, "c": null}], "a": "x"}"#)
                .unwrap();
        let b: Value =
            serde_json::from_str(r#"{"a":"x","b":[1,{"c":null,"d":1e-3}]}"#).unwrap();
        assert_eq!(canonical(&a), canonical(&b));
        assert_eq!(canonical(&a), r#"{"a":"x","b":[1,{"c":null,"d":0.001}]}"#);
    }

    #[test]
    fn a_digest_reads_back_and_nothing_else_does() {
        let digest = Digest::of_bytes(b"x");
        assert_eq!(Digest::parse(digest.as_str()), Some(digest.clone()));
        for bad in ["", "zz", &digest.as_str()[1..], &digest.as_str().to_uppercase()] {
            assert_eq!(Digest::parse(bad), None);
        }
    }
}
