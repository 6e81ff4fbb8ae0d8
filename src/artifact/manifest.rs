//! The manifest: what a result is, what made it, and the digests that protect it.
//!
//! It is JSON with sorted keys, and it is written last. Its own digest covers its text, so that
//! a truncated or edited manifest is never believed. Provenance tells people the circumstances
//! and enters no key.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Digest, Key, canonical, files, key};
use crate::error::{Context, Error, Result};

/// File name of the manifest inside a result.
pub const MANIFEST: &str = "manifest.json";

/// Version of the manifest's form.
const SCHEMA: u32 = 1;

/// How the text begins: `digest` is the first key in sorted order.
const HEAD: &str = "{\n  \"digest\": \"";

/// One file of a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Name relative to the result's directory.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// Digest of the content.
    pub blake3: Digest,
    /// `parquet`, `safetensors`, `json`, or the file's extension.
    pub kind: String,
    /// Rows of a table or tensors of a checkpoint.
    pub rows: Option<u64>,
    /// Columns of a table, as `name: type`.
    pub schema: Option<Vec<String>>,
}

/// The circumstances of a run. None of it enters a key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Start in UTC.
    pub started: String,
    /// End in UTC.
    pub finished: String,
    /// Seconds between.
    pub wall: f64,
    /// Name of the machine.
    pub host: String,
    /// The command line.
    pub argv: Vec<String>,
    /// Commit of the working tree, empty if unknown.
    pub git: String,
    /// Compiler that built the binary.
    pub rustc: String,
    /// What computed.
    pub device: String,
    /// The processor and its instruction set.
    pub processor: String,
    /// Threads of the run.
    pub threads: usize,
    /// Largest resident memory of the process so far, in bytes.
    pub peak_rss: u64,
    /// The directories read, as `place/key`, by input.
    pub inputs: BTreeMap<String, String>,
    /// Key of the result that was accepted in place of a run.
    pub accepted_from: Option<String>,
}

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the form.
    pub schema: u32,
    /// Name of the stage.
    pub stage: String,
    /// Name of the run, if the stage has several.
    pub run: Option<String>,
    /// Name of the directory.
    pub key: Key,
    /// What the key is the hash of.
    pub key_preimage: Value,
    /// The files, sorted by path.
    pub outputs: Vec<Output>,
    /// Digest over names and digests of all files.
    pub tree: Digest,
    /// Figures worth comparing between runs; null where not finite.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// The circumstances.
    pub provenance: Provenance,
    /// Digest of this manifest's text with this field zeroed; filled in by writing.
    pub digest: String,
}

impl Manifest {
    /// Assembles a manifest.
    pub fn new(expected: &super::Expected, outputs: Vec<Output>) -> Self {
        Self {
            schema: SCHEMA,
            stage: expected.place.stage.clone(),
            run: expected.place.run.clone(),
            key: expected.key.clone(),
            key_preimage: expected.preimage.to_json(),
            tree: tree_digest(&outputs),
            outputs,
            metrics: BTreeMap::new(),
            provenance: Provenance::default(),
            digest: String::new(),
        }
    }

    /// The digests of the files, by name.
    pub fn digests(&self) -> BTreeMap<String, Digest> {
        self.outputs.iter().map(|o| (o.path.clone(), o.blake3.clone())).collect()
    }

    /// Reads and checks a manifest: form, own digest, and that its preimage hashes to `key`.
    pub fn read(path: &Path, key: &Key) -> Result<Self> {
        let text = fs::read_to_string(path)
            .context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, key)
            .map_err(|why| Error::corrupt(format!("{}: {why}", path.display())))
    }

    /// As [`Manifest::read`], from text; the error says what is wrong.
    pub fn parse(text: &str, key: &Key) -> std::result::Result<Self, String> {
        check_text(text)?;
        let manifest: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if manifest.schema != SCHEMA {
            return Err(unknown_schema(manifest.schema));
        }

        // A manifest that was copied from another result is whole, but not that of this one.
        if manifest.key != *key || key::key_of(&manifest.key_preimage) != *key {
            return Err(format!("its preimage does not hash to {key}"));
        }
        Ok(manifest)
    }

    /// The text that is stored.
    pub fn render(&self) -> Result<String> {
        let zeroed = Self { digest: "0".repeat(64), ..self.clone() };

        // The way through a value sorts the keys.
        let value = serde_json::to_value(&zeroed)
            .context(|| "cannot write the manifest as JSON".to_owned())?;
        let mut text = serde_json::to_string_pretty(&value)
            .context(|| "cannot write the manifest as text".to_owned())?;
        text.push('\n');

        // The digest is that of the text with zeros in its place.
        let digest = digest_of_text(&text);
        let digits = HEAD.len()..HEAD.len() + 64;
        text.replace_range(digits, digest.as_str());
        Ok(text)
    }

    /// Writes the manifest into a folder, synced and renamed into place.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        files::replace(&path, self.render()?.as_bytes(), files::Durability::Kept)?;
        files::make_read_only(&path)
    }
}

/// What a reader of a result needs of its manifest: files and digests, nothing else.
///
/// A decision reads a manifest for every node upstream, so this leaves the preimage unread;
/// the manifest's own digest vouches for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Brief {
    /// The digests of the files, by name.
    pub files: Arc<BTreeMap<String, Digest>>,
}

/// The fields of a manifest that a reader needs; the others are skipped.
#[derive(Deserialize)]
struct BriefText<'a> {
    schema: u32,
    key: &'a str,
    #[serde(borrow)]
    outputs: Vec<BriefOutput<'a>>,
}

/// The fields of a file that a reader needs.
#[derive(Deserialize)]
struct BriefOutput<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    blake3: Digest,
}

impl Brief {
    /// Reads and checks a manifest: form, own digest, and that it is that of `key`.
    pub fn read(path: &Path, key: &Key) -> Result<Self> {
        let text = fs::read_to_string(path)
            .context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, key)
            .map_err(|why| Error::corrupt(format!("{}: {why}", path.display())))
    }

    /// As [`Brief::read`], from text; the error says what is wrong.
    fn parse(text: &str, key: &Key) -> std::result::Result<Self, String> {
        check_text(text)?;
        let brief: BriefText<'_> =
            serde_json::from_str(text).map_err(|e| e.to_string())?;
        if brief.schema != SCHEMA {
            return Err(unknown_schema(brief.schema));
        }
        if brief.key != key.as_str() {
            return Err(format!("it is the manifest of {}, not of {key}", brief.key));
        }

        let files = brief.outputs.into_iter().map(|o| (o.path.into_owned(), o.blake3));
        Ok(Self { files: Arc::new(files.collect()) })
    }
}

/// What is wrong with a manifest of another version.
fn unknown_schema(found: u32) -> String {
    format!("the manifest has the schema {found}; this program reads schema {SCHEMA}")
}

/// Compares a manifest's text with the digest it carries.
fn check_text(text: &str) -> std::result::Result<(), String> {
    let stored = text
        .strip_prefix(HEAD)
        .and_then(|rest| rest.get(..64))
        .ok_or("it does not begin as a manifest does")?;
    if digest_of_text(text).as_str() != stored {
        return Err("its digest does not match its text".to_owned());
    }
    Ok(())
}

/// Digest of a manifest's text, its digest field taken as zeros.
fn digest_of_text(text: &str) -> Digest {
    let bytes = text.as_bytes();
    let (start, end) = (HEAD.len().min(bytes.len()), (HEAD.len() + 64).min(bytes.len()));
    let zeroed = [&bytes[..start], &[b'0'; 64], &bytes[end..]].concat();
    Digest::of_bytes(&zeroed)
}

/// One digest over the names and digests of all files.
pub(super) fn tree_digest(outputs: &[Output]) -> Digest {
    let list: Vec<Value> = outputs
        .iter()
        .map(|output| Value::from(vec![output.path.as_str(), output.blake3.as_str()]))
        .collect();
    Digest::of_bytes(canonical(&Value::Array(list)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Expected, Place, Preimage};
    use serde_json::json;

    fn expected(params: Value) -> Expected {
        let preimage = Preimage {
            stage: "train".to_owned(),
            version: 1,
            source: String::new(),
            formats: BTreeMap::new(),
            backend: "cpu-f32".to_owned(),
            params,
            inputs: BTreeMap::new(),
            externals: BTreeMap::new(),
        };
        Expected::new(Place::new("train", None), preimage)
    }

    fn sample() -> Manifest {
        let expected = expected(json!({"steps": 3, "rate": 0.002}));
        let output = Output {
            path: "a.json".to_owned(),
            bytes: 2,
            blake3: Digest::of_bytes(b"{}"),
            kind: "json".to_owned(),
            rows: None,
            schema: None,
        };
        let mut manifest = Manifest::new(&expected, vec![output]);
        manifest.metrics.insert("loss".to_owned(), Some(0.1 + 0.2));
        manifest.provenance.wall = 1.0 / 3.0;
        manifest
    }

    #[test]
    fn a_manifest_reads_back_and_its_keys_are_sorted() {
        let manifest = sample();
        let text = manifest.render().unwrap();
        let back = Manifest::parse(&text, &manifest.key).unwrap();
        assert_eq!(back.outputs, manifest.outputs);
        assert_eq!(back.key_preimage, manifest.key_preimage);
        let top: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("  \"")?.split('"').next())
            .collect();
        assert!(top.is_sorted(), "{top:?}");
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_refused_without_a_panic() {
        let manifest = sample();
        let text = manifest.render().unwrap();
        for length in 0..text.len() {
            assert!(Manifest::parse(&text[..length], &manifest.key).is_err(), "{length}");
        }
        for position in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] ^= 1;
            let flipped = String::from_utf8_lossy(&bytes);
            assert!(Manifest::parse(&flipped, &manifest.key).is_err(), "{position}");
            assert!(Brief::parse(&flipped, &manifest.key).is_err(), "{position}");
        }
    }

    #[test]
    fn a_manifest_in_the_wrong_directory_is_refused() {
        let manifest = sample();
        let other = expected(json!({"steps": 4})).key;
        let text = manifest.render().unwrap();
        let error = Manifest::parse(&text, &other).unwrap_err();
        assert!(error.contains("does not hash"), "{error}");
        assert!(Brief::parse(&text, &other).is_err());
        assert_eq!(
            *Brief::parse(&text, &manifest.key).unwrap().files,
            manifest.digests()
        );
    }
}
