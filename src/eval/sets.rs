//! The two tasks of `CLIP_benchmark` on embedded pictures, under its names.
//!
//! The pictures of such a set are too many to hold: they are embedded as they stream by, and
//! only vectors come here. The numbers are those of the pipeline's own tasks.

use super::tasks::{self, ZeroShot};
use super::{Bootstrap, Encoder, LabelledImages, Measurement, Test, Vocabulary, embed};
use crate::error::{Error, Result};

/// Name of the classification task.
pub const CLASSIFICATION: &str = "zeroshot_classification";
/// Name of the retrieval task.
pub const RETRIEVAL: &str = "zeroshot_retrieval";

/// How a set is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Prompts or captions embedded at a time.
    pub batch: usize,
    /// Resampling of the intervals.
    pub bootstrap: Bootstrap,
    /// k of the recalls.
    pub recall_at: Vec<usize>,
}

/// acc1, acc5 (from five classes on) and `mean_per_class_recall` over all classes of
/// `vocabulary`; the concepts of `images` are its numbers.
pub fn classification(
    encoder: &mut dyn Encoder,
    vocabulary: &Vocabulary<'_>,
    images: &LabelledImages<Test>,
    settings: &Settings,
) -> Result<Vec<Measurement>> {
    let texts = vocabulary.prompts()?;
    let prompts = embed::texts(encoder, vocabulary, &texts, settings.batch)?;
    let zero_shot =
        ZeroShot { vocabulary, prompts: &prompts, bootstrap: settings.bootstrap };
    let found = tasks::concept::measure(&zero_shot, &[images], &[])?;
    Ok(named(found, CLASSIFICATION))
}

/// Recalls both ways at every k; `captions` are those of each picture, at least one.
pub fn retrieval(
    encoder: &mut dyn Encoder,
    vocabulary: &Vocabulary<'_>,
    images: &LabelledImages<Test>,
    captions: &[Vec<String>],
    settings: &Settings,
) -> Result<Vec<Measurement>> {
    if captions.len() != images.len() {
        let (pictures, found) = (images.len(), captions.len());
        return Err(Error::failed(format!("{pictures} pictures, {found} caption lists")));
    }
    let owner: Vec<usize> = captions
        .iter()
        .enumerate()
        .flat_map(|(index, own)| own.iter().map(move |_| index))
        .collect();
    let all: Vec<String> = captions.iter().flatten().cloned().collect();
    let texts = embed::texts(encoder, vocabulary, &all, settings.batch)?;
    let pairs = (&texts, owner.as_slice());
    let found = tasks::retrieval::measure(
        settings.bootstrap,
        images,
        pairs,
        &settings.recall_at,
    )?;
    Ok(named(found, RETRIEVAL))
}

fn named(found: Vec<Measurement>, task: &str) -> Vec<Measurement> {
    let name = |m| Measurement { task: task.to_owned(), ..m };
    found.into_iter().map(name).collect()
}
