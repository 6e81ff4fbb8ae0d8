//! The two tasks of `CLIP_benchmark` on embedded pictures, under its names.
//!
//! The pictures of such a data set are too many to keep: they are embedded as they stream by,
//! and only vectors come here. The numbers are those of the pipeline's own tasks.

use super::tasks::{self, ZeroShot};
use super::{Bootstrap, Encoder, LabelledImages, Measurement, Test, Vocabulary, embed};
use crate::error::{Error, Result};

/// Name of the classification task.
pub const CLASSIFICATION: &str = "zeroshot_classification";
/// Name of the retrieval task.
pub const RETRIEVAL: &str = "zeroshot_retrieval";

/// How a data set is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Prompts or captions embedded at a time.
    pub batch: usize,
    /// Resampling of the intervals.
    pub bootstrap: Bootstrap,
    /// The k of the recalls.
    pub recall_at: Vec<usize>,
}

/// acc1, acc5 (from five classes on) and `mean_per_class_recall` over all classes of
/// `vocabulary`, whose numbers are the concepts of `images`.
pub fn classification(
    encoder: &mut dyn Encoder,
    vocabulary: &Vocabulary<'_>,
    images: &LabelledImages<Test>,
    settings: &Settings,
) -> Result<Vec<Measurement>> {
    let texts = vocabulary.prompts()?;
    let prompts = embed::texts(encoder, vocabulary, &texts, settings.batch)?;

    // No summary over shifts: one data set is one split.
    let zero_shot =
        ZeroShot { vocabulary, prompts: &prompts, bootstrap: settings.bootstrap };
    let found = tasks::concept::measure(&zero_shot, &[images], &[])?;
    Ok(named(found.measurements, CLASSIFICATION))
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
        return Err(Error::failed(format!(
            "found {found} caption lists for {pictures} pictures, expected one per picture"
        )));
    }

    let owner: Vec<usize> = captions
        .iter()
        .enumerate()
        .flat_map(|(index, own)| own.iter().map(move |_| index))
        .collect();

    let all: Vec<String> = captions.iter().flatten().cloned().collect();
    let texts = embed::texts(encoder, vocabulary, &all, settings.batch)?;

    let pairs = tasks::retrieval::Captions { texts: &texts, owner: &owner };
    let found = tasks::retrieval::measure(
        settings.bootstrap,
        images,
        pairs,
        &settings.recall_at,
    )?;
    Ok(named(found.measurements, RETRIEVAL))
}

fn named(found: Vec<Measurement>, task: &str) -> Vec<Measurement> {
    let name = |m| Measurement { task: task.to_owned(), ..m };
    found.into_iter().map(name).collect()
}
