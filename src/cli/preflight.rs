//! What cannot work is refused here, within seconds and before any stage: with the key, what
//! was found, and what to set.
//!
//! The stages refuse the same things themselves; but a batch that the data cannot fill would
//! be found out only after the data set was built and the dense model trained.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::checkpoint::{self, Hints};
use crate::config::Config;
use crate::data::Meta;
use crate::data::pairs::{Census, EvaluationSet};
use crate::error::{Context as _, Error, Result};
use crate::io::table::TableReader;
use crate::stage::adopted::Adopted;
use crate::stage::evaluate::SPLIT;
use crate::tables::{self, PictureRow, SampleRow};

/// How long a source is counted before it is left to the stage.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pairs that are enough to judge by where a source has more.
const ENOUGH: usize = 10_000;

/// Pairs between two judgments.
const EVERY: usize = 1000;

/// What is known of the data before training.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    /// Different things that the training pictures show.
    concepts: Option<usize>,
    /// Pictures of the split that retrieval is measured on.
    retrieval: Option<usize>,
}

/// Refuses a configuration that cannot work. `built` is the data set, where it is up to date.
pub(super) fn check(config: &Config, built: Option<&Path>) -> Result<()> {
    check_model(config)?;
    for set in &config.evaluate.sets {
        EvaluationSet::open(Path::new(set), SPLIT)
            .context(|| format!("evaluate.sets: {set}"))?;
    }

    let known = match built {
        Some(folder) => of_built(folder)?,
        None => of_source(config)?,
    };
    check_batches(config, known.concepts)?;
    check_recalls(config, known.retrieval)
}

/// The tokenizer and the pictures of `dataset.like` must be those of the model.
fn check_model(config: &Config) -> Result<()> {
    if config.dataset.like.is_empty() {
        return Ok(());
    }
    let adopted = Adopted::read(Path::new(&config.dataset.like))?;
    if config.dataset.source.reads_pairs() {
        adopted.pictures.check_usual().context(|| "dataset.like".to_owned())?;
    }

    // The checkpoint is asked and not `dataset.vocabulary`, which a tokenizer of one's own
    // overrules.
    let (like, checkpoint) = (&config.dataset.like, &config.pretrain.checkpoint);
    if checkpoint.is_empty() {
        return Ok(());
    }
    let shape = checkpoint::shape(Path::new(checkpoint), &Hints::default())
        .context(|| "pretrain.checkpoint".to_owned())?;
    let (found, expected) = (adopted.tokenizer.vocabulary(), shape.text.vocabulary);
    if found != expected {
        return Err(Error::usage(format!(
            "dataset.like: the tokenizer of {like} has {found} entries, but the model \
             {checkpoint} has {expected}: name the folder of the model's own tokenizer"
        )));
    }
    Ok(())
}

/// What a data set that is there says about itself.
fn description(folder: &Path) -> Result<Meta> {
    let path = folder.join("dataset.json");
    let place = || format!("reading {}", path.display());
    let text = std::fs::read(&path).context(place)?;
    serde_json::from_slice(&text).context(place)
}

/// Pictures that a data set evaluates on: those of all its splits that are not trained on.
pub(super) fn evaluated(folder: &Path) -> Result<usize> {
    let splits = description(folder)?.splits;
    Ok(splits.iter().filter(|(name, _)| *name != "train").map(|(_, count)| count).sum())
}

/// Counts of a data set that is there.
fn of_built(folder: &Path) -> Result<Known> {
    let meta = description(folder)?;
    let path = folder.join(SampleRow::file("train"));
    let mut reader = TableReader::open_without(&path, Some(PictureRow::IMAGE))?;
    let mut concepts = BTreeSet::new();
    while let Some(part) = reader.next()? {
        let rows = tables::from_table::<SampleRow>(part)?;
        concepts.extend(rows.iter().map(|row| row.concept));
    }
    Ok(Known {
        concepts: Some(concepts.len()),
        // Without a split to test on, the layout names `val`, which is not tested on.
        retrieval: if meta.layout.tests.is_empty() {
            Some(0)
        } else {
            meta.splits.get(&meta.layout.retrieval).copied()
        },
    })
}

/// Counts of a source, as far as they are cheap.
fn of_source(config: &Config) -> Result<Known> {
    let (clock, needed) = (Instant::now(), largest_batch(config).1);
    let census = Census::of(&config.dataset, &mut |census| {
        // Counting what is different takes time itself, so not every pair is judged.
        let is_due = census.read >= ENOUGH && census.read.is_multiple_of(EVERY);
        let is_judged = is_due && census.concepts() >= needed;
        !is_judged && clock.elapsed() < PATIENCE
    });
    let census = census.context(|| "dataset".to_owned())?;

    // A part of a source says nothing about what the rest lacks.
    let census = census.filter(|census| census.is_complete && census.trained() > 0);
    Ok(census.map_or_else(Known::default, |census| Known {
        concepts: Some(census.concepts()),
        retrieval: Some(census.retrieval()),
    }))
}

/// The largest batch that is trained with, and its key.
fn largest_batch(config: &Config) -> (&'static str, usize) {
    let train = ("train.optim.batch", config.train.optim.batch);
    let pretrain = ("pretrain.optim.batch", config.pretrain.optim.batch);
    if config.pretrain.checkpoint.is_empty() && pretrain.1 > train.1 {
        return pretrain;
    }
    train
}

fn check_batches(config: &Config, concepts: Option<usize>) -> Result<()> {
    let (key, batch) = largest_batch(config);
    let Some(concepts) = concepts.filter(|&concepts| concepts < batch) else {
        return Ok(());
    };
    let remedy = match concepts {
        0 | 1 => "bring pictures of at least 2 different things".to_owned(),
        _ => format!("set {key}={}", 1_usize << concepts.ilog2()),
    };
    Err(Error::usage(format!(
        "{key}: found {batch}, but the training pictures show {concepts} different things \
         (classes, or first captions), and a batch holds each of them once: {remedy}"
    )))
}

/// Refuses what cannot be tested before hours of training, and not after them.
fn check_recalls(config: &Config, pictures: Option<usize>) -> Result<()> {
    let recalls = &config.evaluate.recall_at;
    let Some(pictures) = pictures else { return Ok(()) };
    if pictures == 0 {
        return Err(Error::usage(
            "dataset: no picture is left to test on, because the source names no split for it \
             and is too small for one to be drawn: bring more pictures, or put some into a \
             split test",
        ));
    }
    let Some(bad) = recalls.iter().find(|&&k| k > pictures) else { return Ok(()) };
    let fine: Vec<&usize> = recalls.iter().filter(|&&k| k <= pictures).collect();
    Err(Error::usage(format!(
        "evaluate.recall_at: recall at {bad} among the {pictures} pictures that retrieval is \
         measured on says nothing: set evaluate.recall_at={fine:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load_default};

    fn config(set: &[&str]) -> Config {
        let set = set.iter().map(|&s| s.to_owned()).collect();
        load_default(&Overrides { profile: None, set }).unwrap()
    }

    #[test]
    fn a_batch_that_the_data_cannot_fill_is_refused_with_one_that_they_can() {
        let huge = config(&["train.optim.batch=32768"]);
        let error = check_batches(&huge, Some(57)).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("train.optim.batch: found 32768"), "{text}");
        assert!(text.contains("show 57 different things"), "{text}");
        assert!(text.ends_with("set train.optim.batch=32"), "{text}");
        assert!(check_batches(&huge, Some(32768)).is_ok());
        assert!(check_batches(&huge, None).is_ok());

        let pretrain = config(&["pretrain.optim.batch=4096"]);
        let text = check_batches(&pretrain, Some(2000)).unwrap_err().to_string();
        assert!(text.contains("set pretrain.optim.batch=1024"), "{text}");
    }

    #[test]
    fn a_recall_beyond_the_pictures_is_refused_with_those_that_say_something() {
        let text = check_recalls(&config(&[]), Some(7)).unwrap_err().to_string();
        assert!(text.contains("recall at 10 among the 7 pictures"), "{text}");
        assert!(text.ends_with("set evaluate.recall_at=[1, 5]"), "{text}");
        assert!(check_recalls(&config(&[]), Some(10)).is_ok());
        let text = check_recalls(&config(&[]), Some(0)).unwrap_err().to_string();
        assert!(text.contains("no picture is left to test on"), "{text}");
    }
}
