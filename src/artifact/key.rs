//! The key of a result: a hash of everything that may change its bytes, and nothing else.
//!
//! It covers the stage, its version, the hash of its source, format versions, the backend, its
//! own slice of the parameters with defaults filled in, and the digests of the files it reads.
//! It leaves out the git commit, host, paths, device number, threads, time, and the name of
//! the run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Digest, Place, canonical, digest};

/// Separates our hashes from all others.
const DOMAIN: &str = "upcycle 2026-11-22 artifact key";

/// Digits of a key: 128 bits.
const DIGITS: usize = 32;

/// The name of a result's directory: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// Reads back a directory name.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == DIGITS && text.bytes().all(hex)).then(|| Self(text.to_owned()))
    }

    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first ten digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..10.min(self.0.len())]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that may change the bytes of a result.
#[derive(Debug, Clone, PartialEq)]
pub struct Preimage {
    /// Name of the stage.
    pub stage: String,
    /// The stage's own version number.
    pub version: u32,
    /// Hash of the stage's source.
    pub source: String,
    /// Versions of the packages that fix bytes on disk.
    pub formats: BTreeMap<String, String>,
    /// What computes, where that changes bytes: `cpu-f32`.
    pub backend: String,
    /// The stage's slice of the configuration.
    pub params: Value,
    /// Digests of the files read, by input and file.
    pub inputs: BTreeMap<String, Arc<BTreeMap<String, Digest>>>,
    /// Digests of files from outside, by name.
    pub externals: BTreeMap<String, Digest>,
}

impl Preimage {
    /// As JSON, ready to be stored.
    pub fn to_json(&self) -> Value {
        let inputs: BTreeMap<_, _> =
            self.inputs.iter().map(|(name, files)| (name, &**files)).collect();
        let mut value = json!({
            "stage": self.stage,
            "version": self.version,
            "source": self.source,
            "formats": self.formats,
            "backend": self.backend,
            "params": self.params,
            "inputs": inputs,
            "externals": self.externals,
        });
        settle_floats(&mut value);
        value
    }

    /// The canonical text of [`Preimage::to_json`], written without building it: most keys
    /// are only compared.
    fn canonical(&self) -> String {
        let mut params = self.params.clone();
        settle_floats(&mut params);

        // Keys in sorted order, as the canonical form asks.
        let mut out = String::with_capacity(2048);
        out.push_str("{\"backend\":");
        text(&self.backend, &mut out);
        out.push_str(",\"externals\":");
        object(&self.externals, &mut out, |digest, out| text(digest.as_str(), out));
        out.push_str(",\"formats\":");
        object(&self.formats, &mut out, |version, out| text(version, out));
        out.push_str(",\"inputs\":");
        object(&self.inputs, &mut out, |files, out| {
            object(files, out, |digest, out| text(digest.as_str(), out));
        });
        out.push_str(",\"params\":");
        digest::write_canonical(&params, &mut out);
        out.push_str(",\"source\":");
        text(&self.source, &mut out);
        out.push_str(",\"stage\":");
        text(&self.stage, &mut out);
        out.push_str(",\"version\":");
        out.push_str(&self.version.to_string());
        out.push('}');
        out
    }
}

/// Writes a JSON object; the map is sorted already.
fn object<T>(
    map: &BTreeMap<String, T>,
    out: &mut String,
    value: impl Fn(&T, &mut String),
) {
    out.push('{');
    for (index, (key, item)) in map.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        text(key, out);
        out.push(':');
        value(item, out);
    }
    out.push('}');
}

/// Writes a JSON string.
fn text(value: &str, out: &mut String) {
    digest::write_text(value, out);
}

/// Stores floats of more than 15 significant digits as text: JSON readers may return their
/// neighbor, and a stored preimage must hash to the same key again.
fn settle_floats(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(settle_floats),
        Value::Object(map) => map.values_mut().for_each(settle_floats),
        Value::Number(number) if number.is_f64() => {
            let text = number.to_string();
            let mantissa = text.split('e').next().unwrap_or_default();
            if mantissa.bytes().filter(u8::is_ascii_digit).count() > 15 {
                *value = Value::String(text);
            }
        }
        _ => {}
    }
}

/// What a node should be: its place, its preimage and the key that follows.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Where results of this node live.
    pub place: Place,
    /// What the key is the hash of.
    pub preimage: Preimage,
    /// The hash.
    pub key: Key,
}

impl Expected {
    /// Hashes a preimage.
    pub fn new(place: Place, preimage: Preimage) -> Self {
        let key = hash(&preimage.stage, &preimage.canonical());
        Self { place, preimage, key }
    }
}

/// The key of a stored preimage.
pub(super) fn key_of(preimage: &Value) -> Key {
    let stage = preimage.get("stage").and_then(Value::as_str).unwrap_or_default();
    hash(stage, &canonical(preimage))
}

/// The key of a stage's preimage in canonical form.
fn hash(stage: &str, canonical: &str) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key(DOMAIN);
    hasher.update(stage.as_bytes());
    hasher.update(b"\0");
    hasher.update(canonical.as_bytes());
    Key(hasher.finalize().to_hex().as_str()[..DIGITS].to_owned())
}

/// A section of a stored preimage; `None` if it is absent.
pub fn section<'a>(preimage: &'a Value, name: &str) -> Option<&'a Map<String, Value>> {
    preimage.get(name).and_then(Value::as_object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preimage(params: Value) -> Preimage {
        Preimage {
            stage: "train".to_owned(),
            version: 1,
            source: "s".to_owned(),
            formats: BTreeMap::new(),
            backend: "cpu-f32".to_owned(),
            params,
            inputs: BTreeMap::new(),
            externals: BTreeMap::new(),
        }
    }

    fn key(params: Value) -> Key {
        Expected::new(Place::new("train", None), preimage(params)).key
    }

    #[test]
    fn the_way_a_number_is_written_does_not_matter_and_its_value_does() {
        let read = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        assert_eq!(key(read(r#"{"a": 1e-3}"#)), key(read(r#"{"a":0.001}"#)));
        assert_ne!(key(read(r#"{"a": 0.0}"#)), key(read(r#"{"a": null}"#)));
        assert_ne!(key(read(r#"{"a": false}"#)), key(read("{}")));
        assert_ne!(key(read(r#"{"a": ""}"#)), key(read(r#"{"a": null}"#)));
    }

    #[test]
    fn the_text_that_is_hashed_is_that_of_the_stored_preimage() {
        let digests = |names: [&str; 2]| -> BTreeMap<String, Digest> {
            names
                .iter()
                .map(|n| ((*n).to_owned(), Digest::of_bytes(n.as_bytes())))
                .collect()
        };
        let full = Preimage {
            inputs: BTreeMap::from([
                ("b".to_owned(), Arc::new(digests(["x", "a \"quoted\"\nname"]))),
                ("a".to_owned(), Arc::new(BTreeMap::new())),
            ]),
            externals: digests(["ü", "z"]),
            formats: BTreeMap::from([("parquet".to_owned(), "60".to_owned())]),
            ..preimage(json!({"z": [0.1 + 0.2, null], "a": {"\t": true}}))
        };

        assert_eq!(full.canonical(), canonical(&full.to_json()));
        let expected = Expected::new(Place::new("train", None), full.clone());
        assert_eq!(key_of(&full.to_json()), expected.key);
    }

    #[test]
    fn a_stored_preimage_hashes_to_its_key_whatever_its_floats() {
        for value in [0.1, 1e-7, 0.1 + 0.2, std::f64::consts::PI * 1e-300, 1e22, 5e-324] {
            let json = preimage(json!({ "x": value })).to_json();
            let text = serde_json::to_string_pretty(&json).unwrap();
            let back: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(key_of(&back), key_of(&json), "{value}");
        }
    }
}
