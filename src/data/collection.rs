//! What a source hands over, and the description that is stored beside the pictures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spool::Stored;

/// One picture with its captions and labels, before it is written.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Name of the split it belongs to.
    pub split: String,
    /// The picture: PNG, RGB, square.
    pub png: Stored,
    /// Captions to train on.
    pub captions: Vec<String>,
    /// Captions of the retrieval task.
    pub names: Vec<String>,
    /// Index of the concept.
    pub concept: usize,
    /// Who drew it, or how.
    pub style: String,
}

/// A thing that pictures show.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Concept {
    pub key: String,
    pub label: String,
    pub tags: Vec<String>,
    pub group: usize,
    pub subgroup: usize,
    pub held_out: bool,
}

/// How a source was read: what became of everything that it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Pictures that were looked at.
    #[serde(default)]
    pub read: usize,
    /// Pictures that are not in the data set, by reason.
    #[serde(default)]
    pub skipped: BTreeMap<String, usize>,
    /// Files and folders beside the source's that were not looked at, by kind.
    #[serde(default)]
    pub left_out: BTreeMap<String, usize>,
}

/// Everything that a source found.
#[derive(Debug)]
pub(super) struct Collection {
    pub samples: Vec<Sample>,
    pub concepts: Vec<Concept>,
    pub groups: Vec<String>,
    pub subgroups: Vec<String>,
    /// Splits in the order of their files and sample ids.
    pub splits: Vec<String>,
    pub reading: Reading,
    pub layout: Layout,
}

/// What the splits are for, and how prompts are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Name of the source.
    pub source: String,
    /// Held-out splits in report order.
    pub tests: Vec<String>,
    /// Those of `tests` whose mean is the shift score.
    pub shifts: Vec<String>,
    /// Split of the retrieval task.
    pub retrieval: String,
    /// Split with concepts that were never trained on.
    pub held_out: Option<String>,
    /// How many concepts, from the first on, are the classes that pictures are sorted into;
    /// all of them where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Prompts with `{}` in the place of the label.
    pub templates: Vec<String>,
    /// Who made the pictures and under which license.
    pub attribution: Vec<String>,
}

/// The content of `dataset.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// What the splits are for.
    #[serde(flatten)]
    pub layout: Layout,
    /// Side of the pictures in pixels.
    pub image_size: usize,
    /// Tokens of a caption, start and end included.
    pub context: usize,
    /// Entries of the tokenizer; at most what the configuration asked for.
    pub vocabulary: usize,
    /// Mean of red, green, blue over the training pictures, on the scale 0..1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green, blue over the training pictures.
    pub std: [f32; 3],
    /// Pictures of every split.
    pub splits: BTreeMap<String, usize>,
    /// What became of the source's pictures.
    #[serde(flatten)]
    pub reading: Reading,
}
