//! The data that an evaluation needs, as plain structs: they know no file, codec or
//! tokenizer.
//!
//! A [`Split`] knows its role at compile time. Fitting takes [`Train`], choosing takes
//! [`Validation`] and reporting takes [`Test`]. Because a role could still be given to the
//! wrong file, [`Bundle::check`] refuses a test picture that is also trained or chosen on.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use crate::error::{Error, Result};
use crate::image::PixelBuffer;

/// Role of pictures that probes are fitted on.
#[derive(Debug, Clone, Copy)]
pub struct Train;

/// Role of pictures that choices are made on.
#[derive(Debug, Clone, Copy)]
pub struct Validation;

/// Role of pictures that numbers are reported on.
#[derive(Debug, Clone, Copy)]
pub struct Test;

/// Pictures [n, 3, S, S] by their positions in a split.
pub type ReadPixels<'a> = Box<dyn Fn(&[usize]) -> Result<PixelBuffer> + 'a>;

/// Texts to token ids [n, T].
pub type Tokenize<'a> = &'a dyn Fn(&[String]) -> Result<Vec<u32>>;

/// One concept: a class of the zero-shot tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concept {
    /// Its name in prompts.
    pub label: String,
    /// Group it belongs to.
    pub group: usize,
    /// Subgroup it belongs to.
    pub subgroup: usize,
    /// Whether no picture of it is ever trained on.
    pub held_out: bool,
}

/// All classes, the prompts that name them, and how texts become tokens.
#[derive(Clone)]
pub struct Vocabulary<'a> {
    /// The concepts by number.
    pub concepts: Vec<Concept>,
    /// How many of them, from the first on, are classes: those that pictures are sorted into.
    pub classes: usize,
    /// Prompts with `{}` for the label.
    pub templates: Vec<String>,
    /// Texts to token ids.
    pub tokenize: Tokenize<'a>,
}

/// The pictures of one split, in its role.
pub struct Split<'a, R> {
    pub(super) name: String,
    pub(super) sample: Vec<u32>,
    pub(super) concept: Vec<usize>,
    pub(super) captions: Vec<Vec<String>>,
    pub(super) pixels: ReadPixels<'a>,
    role: PhantomData<R>,
}

/// Everything that [`super::evaluate()`] reads; names are those of `dataset.json`.
#[derive(Debug)]
pub struct Bundle<'a> {
    /// Classes and prompts.
    pub vocabulary: Vocabulary<'a>,
    /// Pictures that probes are fitted on.
    pub train: Split<'a, Train>,
    /// Pictures that the ℓ2 weight of probes is chosen on.
    pub validation: Split<'a, Validation>,
    /// The held-out splits that the names below refer to.
    pub splits: Vec<Split<'a, Test>>,
    /// Splits of the concept task, in report order.
    pub tests: Vec<String>,
    /// Those whose mean is the shift score; probes are tested on them together.
    pub shifts: Vec<String>,
    /// Split of the retrieval, group and subgroup tasks.
    pub retrieval: String,
    /// Split of concepts that are never trained on, if there is one.
    pub held_out: Option<String>,
}

impl<'a, R> Split<'a, R> {
    /// A split of `sample.len()` pictures: the sample and concept numbers, the retrieval
    /// captions (empty for a split that retrieves nothing) and the source of pixels.
    pub fn new(
        name: &str,
        sample: Vec<u32>,
        concept: Vec<usize>,
        captions: Vec<Vec<String>>,
        pixels: ReadPixels<'a>,
    ) -> Result<Self> {
        let n = sample.len();
        for (what, found) in
            [("concepts", concept.len()), ("caption lists", captions.len())]
        {
            if found != n && !(what == "caption lists" && found == 0) {
                return Err(Error::failed(format!(
                    "split {name}: found {found} {what} for {n} samples, expected one per \
                     sample"
                )));
            }
        }

        let name = name.to_owned();
        Ok(Self { name, sample, concept, captions, pixels, role: PhantomData })
    }

    /// The split's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.sample.len()
    }

    /// Whether the split has no pictures.
    pub fn is_empty(&self) -> bool {
        self.sample.is_empty()
    }

    /// Refuses concepts that do not exist.
    pub(super) fn check(&self, concepts: usize) -> Result<()> {
        match self.concept.iter().position(|&c| c >= concepts) {
            None => Ok(()),
            Some(index) => {
                let (name, sample) = (&self.name, self.sample[index]);
                let found = self.concept[index];
                Err(Error::corrupt(format!(
                    "split {name}: sample {sample} has concept {found}, expected a number \
                     below {concepts}"
                )))
            }
        }
    }
}

impl Vocabulary<'_> {
    /// The prompts of all classes, the templates of concept 0 first.
    pub(super) fn prompts(&self) -> Result<Vec<String>> {
        let bad = self.templates.iter().find(|t| !t.contains("{}"));
        if let Some(template) = bad {
            return Err(Error::usage(format!(
                "template {template:?} has no {{}} for the label"
            )));
        }

        let known = self.concepts.len();
        if self.classes > known {
            return Err(Error::failed(format!(
                "found {} classes among {known} concepts, expected no more classes than \
                 concepts",
                self.classes
            )));
        }
        if self.templates.is_empty() || self.classes == 0 {
            let (t, c) = (self.templates.len(), self.classes);
            return Err(Error::failed(format!(
                "found {c} classes and {t} templates, expected at least one of each"
            )));
        }

        let prompts = self.concepts[..self.classes].iter().flat_map(|concept| {
            self.templates.iter().map(|t| t.replace("{}", &concept.label))
        });
        Ok(prompts.collect())
    }

    /// Rows of a concept's prompts in [`Self::prompts`].
    pub(super) fn rows(&self, concept: usize) -> std::ops::Range<usize> {
        let templates = self.templates.len();
        concept * templates..(concept + 1) * templates
    }
}

impl<'a> Bundle<'a> {
    /// The test split of that name.
    pub(super) fn test(&self, name: &str) -> Result<&Split<'a, Test>> {
        self.splits.iter().find(|s| s.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.splits.iter().map(|s| s.name.as_str()).collect();
            Error::failed(format!(
                "there is no test split {name:?} among {}",
                known.join(", ")
            ))
        })
    }

    /// Refuses names of splits that do not exist, concepts that do not exist, and a picture
    /// that is both tested on and trained or chosen on.
    pub fn check(&self) -> Result<()> {
        let concepts = self.vocabulary.concepts.len();
        self.train.check(concepts)?;
        self.validation.check(concepts)?;

        // Pictures may repeat within the training split, but never across splits.
        let mut seen: BTreeMap<u32, &str> = BTreeMap::new();
        seen.extend(self.train.sample.iter().map(|&s| (s, self.train.name.as_str())));
        let validation = self.validation.name.as_str();
        disjoint(&mut seen, &self.validation.sample, validation)?;
        for split in &self.splits {
            split.check(concepts)?;
            disjoint(&mut seen, &split.sample, &split.name)?;
        }

        let named = self.tests.iter().chain(&self.shifts).chain(&self.held_out);
        for name in named.chain([&self.retrieval]) {
            if self.test(name)?.is_empty() {
                return Err(Error::failed(format!("split {name} has no pictures")));
            }
        }

        match self.shifts.iter().find(|s| !self.tests.contains(s)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::failed(format!("the shift split {name} is not a test split")))
            }
        }
    }
}

/// Adds the samples of split `name`; refuses one that another split has.
fn disjoint<'s>(
    seen: &mut BTreeMap<u32, &'s str>,
    samples: &[u32],
    name: &'s str,
) -> Result<()> {
    for &sample in samples {
        if let Some(other) = seen.insert(sample, name) {
            return Err(Error::corrupt(format!(
                "sample {sample} is in split {other} and in split {name}, expected it in one"
            )));
        }
    }
    Ok(())
}

impl<R> fmt::Debug for Split<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Split")
            .field("name", &self.name)
            .field("pictures", &self.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Vocabulary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary")
            .field("concepts", &self.concepts.len())
            .field("templates", &self.templates)
            .finish_non_exhaustive()
    }
}
