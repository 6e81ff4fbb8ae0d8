//! Where results lie: the one thing that loading has to be told.

use std::path::PathBuf;

use crate::error::Result;

/// Finds the folder of a stage's run: `("train", "sparse-s1")`, `("cluster", "s1")`,
/// `("subspaces", "paper-s1")`, `("dataset", "")`. The classifiers on pixels are
/// `("evaluate", "pixels")`. A training of section `sweep` is found by
/// factor, number of the value and seed: `("sweep", "tau/0-s1")`.
pub type Find<'a> = dyn Fn(&str, &str) -> Result<PathBuf> + 'a;
