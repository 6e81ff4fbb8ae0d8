//! What a source of pairs holds, counted without decoding a picture.
//!
//! Recipes and refusals need few numbers of the data before any stage runs: how many pictures
//! each split has, and how many different things the training pictures show. The rules are
//! those of the stage `dataset`, which are the same functions.

use std::collections::{BTreeMap, BTreeSet};

use super::gather::{concept_of, split_of, validates};
use super::{Found, Pair};
use crate::config::DatasetConfig;
use crate::data::splits::{TRAIN, VAL};
use crate::error::{Error, Result};

/// What was counted so far.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Pairs that were looked at.
    pub read: usize,
    /// Those that cannot be used.
    pub bad: usize,
    /// Captions of all pairs.
    pub captions: usize,
    /// Pairs with the name of a class.
    pub classed: usize,
    /// Whether all of the source was read.
    pub is_complete: bool,
    splits: BTreeMap<String, usize>,
    /// What training pictures show that stay in `train` if there is no `val`.
    kept: BTreeSet<String>,
    /// What the others show.
    given: BTreeSet<String>,
    /// How many training pictures become `val` if there is none.
    given_count: usize,
}

impl Census {
    /// Counts the pairs of `config` as long as `go_on` says so; `None` for a source that makes
    /// its own pictures.
    pub fn of(
        config: &DatasetConfig,
        go_on: &mut dyn FnMut(&Self) -> bool,
    ) -> Result<Option<Self>> {
        let Some(stream) = super::open(config)? else { return Ok(None) };
        let mut census = Self::default();
        let mut has_enough = false;

        // A stream has no other way to be stopped than an error.
        let result = stream.each(&mut |found| {
            census.add(found);
            has_enough = !go_on(&census);
            if has_enough { Err(Error::failed("counted enough")) } else { Ok(()) }
        });
        if !has_enough {
            result?;
        }
        census.is_complete = !has_enough;
        Ok(Some(census))
    }

    fn add(&mut self, found: Found) {
        self.read += 1;
        let pair = match found {
            Found::Bad(_) => {
                self.bad += 1;
                return;
            }
            Found::Pair(pair) => pair,
        };
        self.captions += pair.captions.len();
        self.classed += usize::from(pair.class.is_some());

        let split = split_of(&pair);
        if split == TRAIN && pair.weight > 0.0 {
            self.train(&pair);
        }
        *self.splits.entry(split).or_insert(0) += 1;
    }

    fn train(&mut self, pair: &Pair) {
        let concept = concept_of(pair);
        if validates(&pair.key) {
            self.given_count += 1;
            self.given.insert(concept);
        } else {
            self.kept.insert(concept);
        }
    }

    /// Whether training pictures become `val`, as the source has none.
    fn gives(&self) -> bool {
        !self.splits.contains_key(VAL) && !self.kept.is_empty()
    }

    /// Different things that the training pictures show: classes, or first captions. A batch
    /// holds each at most once.
    pub fn concepts(&self) -> usize {
        let given = self.given.difference(&self.kept).count();
        self.kept.len() + if self.gives() { 0 } else { given }
    }

    /// Pictures of each split.
    pub fn splits(&self) -> BTreeMap<String, usize> {
        let mut splits = self.splits.clone();
        if self.gives() && self.given_count > 0 {
            splits.insert(VAL.to_owned(), self.given_count);
            splits.entry(TRAIN.to_owned()).and_modify(|n| *n -= self.given_count);
        }
        splits
    }

    /// Pictures of the split that retrieval is measured on: the first of the tests, or `val`.
    pub fn retrieval(&self) -> usize {
        let splits = self.splits();
        let is_test = |name: &&String| *name != TRAIN && *name != VAL;
        let name = splits.keys().find(is_test).map_or(VAL, String::as_str);
        splits.get(name).copied().unwrap_or(0)
    }

    /// Pictures that are trained on.
    pub fn trained(&self) -> usize {
        self.splits().get(TRAIN).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load_default};
    use crate::data::Dataset;
    use crate::image::{Picture, encode_png};

    /// A folder with `n` pictures, of which every third has the caption of another.
    fn folder(n: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut table = vec!["filepath,caption".to_owned()];
        for i in 0..n {
            let rgb = vec![u8::try_from(i % 256).unwrap(); 3 * 16];
            let png = encode_png(&Picture { width: 4, height: 4, rgb }).unwrap();
            std::fs::write(folder.path().join(format!("{i}.png")), png).unwrap();
            let thing = if i % 3 == 0 { 0 } else { i };
            table.push(format!("{i}.png,thing {thing}"));
        }
        let table = table.join("\n");
        std::fs::write(folder.path().join("captions.csv"), table).unwrap();
        folder
    }

    fn config(folder: &std::path::Path) -> DatasetConfig {
        let set = vec![
            "dataset.source=folder".to_owned(),
            format!("dataset.folder={}", folder.display()),
            "dataset.image_size=8".to_owned(),
            "dataset.vocabulary=300".to_owned(),
        ];
        load_default(&Overrides { profile: None, set }).unwrap().dataset
    }

    #[test]
    fn the_numbers_are_those_of_the_data_set_that_is_built() {
        let source = folder(90);
        let config = config(source.path());
        let census = Census::of(&config, &mut |_| true).unwrap().unwrap();
        assert!(census.is_complete && census.read == 90 && census.classed == 0);

        let out = tempfile::tempdir().unwrap();
        let none = std::path::Path::new("");
        crate::data::build(&config, none, 0, out.path(), &mut |_, _| ()).unwrap();
        let built = Dataset::open(out.path()).unwrap();
        let train = built.split("train").unwrap();
        let concepts: BTreeSet<u32> = train.rows.iter().map(|row| row.concept).collect();
        assert_eq!(census.concepts(), concepts.len());
        assert_eq!(census.splits(), built.meta.splits);
        assert_eq!(census.retrieval(), built.meta.splits["test"]);
    }

    #[test]
    fn counting_stops_when_it_is_told_to() {
        let source = folder(40);
        let config = config(source.path());
        let census = Census::of(&config, &mut |c| c.read < 7).unwrap().unwrap();
        assert!(!census.is_complete && census.read == 7);
    }
}
