//! What a stage is, and what it is given to do its work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{Node, Progress};
use crate::artifact::{Draft, External, Inputs};
use crate::error::{Context as _, Error, Result};
use crate::ranks::Ranks;

/// How the nodes of a stage share the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Several nodes at a time, each with its part of the threads.
    Shared,
    /// One node at a time with all threads.
    Whole,
}

/// Whether several processes may do the work of a node together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// One process.
    Process,
    /// As many ranks as were started, each with its part of the work.
    Ranks,
}

/// One stage of the pipeline.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    /// Its name, as in `artifacts/<name>`.
    pub name: &'static str,
    /// Raised by hand when its results change although its source does not.
    pub version: u32,
    /// How its nodes share the machine.
    pub width: Width,
    /// Who does the work of a node.
    pub reach: Reach,
    /// One sentence for `--help`.
    pub about: &'static str,
    /// The work.
    pub run: fn(&mut Job<'_>) -> Result<()>,
}

/// What a stage is given to do its work.
#[derive(Debug)]
pub struct Job<'a> {
    /// The node of the plan.
    pub node: &'a Node,
    /// Directories of the upstream results.
    pub inputs: &'a Inputs,
    /// Files from outside, sorted by name.
    pub externals: &'a [External],
    /// Where to write.
    pub draft: &'a mut Draft,
    /// Where to show how far the work is.
    pub progress: Progress,
    /// Threads of the pool the work runs in; results must not depend on it.
    pub threads: usize,
    /// The processes that do this work together; results must not depend on their number.
    /// What is written on other ranks than the first is thrown away.
    pub ranks: Arc<dyn Ranks>,
}

impl Job<'_> {
    /// The stage's slice of the configuration.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.node.params)
            .context(|| format!("cannot read the parameters of {}", self.node.place))
    }

    /// A path that does not enter the key, such as `cache`, `folder` or `checkpoint`.
    pub fn path(&self, name: &str) -> Result<&Path> {
        self.node.paths.get(name).map(PathBuf::as_path).ok_or_else(|| {
            let place = &self.node.place;
            Error::failed(format!("the plan does not give {place} a path named {name}"))
        })
    }

    /// The path of a file of an input; an error if the plan does not list it.
    pub fn input(&self, name: &str, file: &str) -> Result<PathBuf> {
        self.inputs.file(name, file)
    }

    /// The path of an output.
    pub fn output(&self, name: &str) -> PathBuf {
        self.draft.path(name)
    }
}
