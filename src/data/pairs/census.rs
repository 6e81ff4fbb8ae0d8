//! What a source of pairs holds, counted without decoding a picture.
//!
//! Recipes and refusals need few numbers of the data before any stage runs: how many pictures
//! each split has, and how many different things the training pictures show. The rules are
//! those of the stage `dataset`, which are the same functions.

use std::collections::{BTreeMap, BTreeSet};

use super::Found;
use super::gather::{Lacking, Lot, concept_of, is_test, split_of};
use crate::config::DatasetConfig;
use crate::data::splits::TRAIN;
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
    /// The training pictures, by what they are drawn for where a split is lacking.
    training: BTreeMap<Lot, Drawn>,
}

/// Training pictures of one lot.
#[derive(Debug, Clone, Default)]
struct Drawn {
    pictures: usize,
    /// What they show.
    concepts: BTreeSet<String>,
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
            let drawn = self.training.entry(Lot::of(&pair.key)).or_default();
            drawn.pictures += 1;
            drawn.concepts.insert(concept_of(&pair));
        }
        *self.splits.entry(split).or_insert(0) += 1;
    }

    /// The training pictures with the split that each lot of them ends up in: splits that the
    /// source lacks get theirs, unless nothing would be left to train on.
    fn assigned(&self) -> Vec<(&'static str, &Drawn)> {
        let lacking = Lacking::of(self.splits.keys().map(String::as_str));
        let keeps_some = self.training.keys().any(|&lot| lacking.split(lot) == TRAIN);
        let split = |lot| if keeps_some { lacking.split(lot) } else { TRAIN };
        self.training.iter().map(|(&lot, drawn)| (split(lot), drawn)).collect()
    }

    /// Different things that the training pictures show: classes, or first captions. A batch
    /// holds each at most once.
    pub fn concepts(&self) -> usize {
        let assigned = self.assigned();
        let trained = assigned.iter().filter(|(split, _)| *split == TRAIN);
        trained.flat_map(|(_, drawn)| &drawn.concepts).collect::<BTreeSet<_>>().len()
    }

    /// Pictures of each split.
    pub fn splits(&self) -> BTreeMap<String, usize> {
        let mut splits = self.splits.clone();
        for (split, drawn) in self.assigned() {
            if split != TRAIN {
                *splits.entry(split.to_owned()).or_insert(0) += drawn.pictures;
                splits.entry(TRAIN.to_owned()).and_modify(|n| *n -= drawn.pictures);
            }
        }
        splits
    }

    /// Pictures of the split that retrieval is measured on: the first of the tests; zero
    /// where there are none.
    pub fn retrieval(&self) -> usize {
        self.splits().iter().find(|(name, _)| is_test(name)).map_or(0, |(_, &n)| n)
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
    fn a_source_of_training_pictures_alone_is_tested_too() {
        let source = folder(200);
        let table = source.path().join("captions.csv");
        let named = std::fs::read_to_string(&table).unwrap();
        let named = named.replace("filepath,caption", "split,filepath,caption");
        let named = named.replace('\n', "\ntrain,");
        std::fs::write(&table, named).unwrap();

        let config = config(source.path());
        let census = Census::of(&config, &mut |_| true).unwrap().unwrap();
        let out = tempfile::tempdir().unwrap();
        let none = std::path::Path::new("");
        crate::data::build(&config, none, 0, out.path(), &mut |_, _| ()).unwrap();
        let built = Dataset::open(out.path()).unwrap();
        assert_eq!(census.splits(), built.meta.splits);
        assert_eq!((built.meta.layout.tests, built.meta.layout.retrieval), {
            (vec!["test".to_owned()], "test".to_owned())
        });
        assert!(
            census.retrieval() == built.meta.splits["test"] && census.trained() > 120
        );
    }

    #[test]
    fn counting_stops_when_it_is_told_to() {
        let source = folder(40);
        let config = config(source.path());
        let census = Census::of(&config, &mut |c| c.read < 7).unwrap().unwrap();
        assert!(!census.is_complete && census.read == 7);
    }
}
