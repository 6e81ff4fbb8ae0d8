//! What a run reads: concrete directories of upstream results, resolved once.
//!
//! They are looked up when the key is made and never again, so that a result cannot mix the
//! files of two upstream runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Digest, Key, Place};
use crate::error::{Error, Result};

/// One upstream result.
#[derive(Debug, Clone)]
pub struct Input {
    /// What the reader calls it.
    pub name: String,
    /// Whose result it is.
    pub place: Place,
    /// Which result it is.
    pub key: Key,
    /// Its directory.
    pub dir: PathBuf,
    /// The files the reader may read, with their digests; only these enter its key.
    pub files: Arc<BTreeMap<String, Digest>>,
}

/// All upstream results of a run, in the order of the plan.
#[derive(Debug, Clone, Default)]
pub struct Inputs(Vec<Input>);

impl Inputs {
    /// Collects resolved inputs.
    pub fn new(inputs: Vec<Input>) -> Self {
        Self(inputs)
    }

    /// The directory of an input.
    pub fn dir(&self, name: &str) -> Result<&Path> {
        self.get(name).map(|input| input.dir.as_path())
    }

    /// The path of one file of an input; an error if the plan does not list it.
    pub fn file(&self, name: &str, file: &str) -> Result<PathBuf> {
        let input = self.get(name)?;
        if input.files.contains_key(file) {
            return Ok(input.dir.join(file));
        }

        let known: Vec<&str> = input.files.keys().map(String::as_str).collect();
        Err(Error::failed(format!(
            "the plan does not list {file} among the files of input {name}; it lists: {}",
            known.join(", ")
        )))
    }

    /// An input by name.
    pub fn get(&self, name: &str) -> Result<&Input> {
        self.0.iter().find(|input| input.name == name).ok_or_else(|| {
            let known: Vec<&str> =
                self.0.iter().map(|input| input.name.as_str()).collect();
            Error::failed(format!(
                "the plan does not list an input named {name}; it lists: {}",
                known.join(", ")
            ))
        })
    }

    /// All inputs, in the order of the plan.
    pub fn iter(&self) -> std::slice::Iter<'_, Input> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Inputs {
    type Item = &'a Input;
    type IntoIter = std::slice::Iter<'a, Input>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
