//! The tasks of `CLIP_benchmark` on embedded pictures, under its names, and few-shot probes.
//!
//! The pictures of such a data set are too many to keep: they are embedded as they stream by,
//! and only vectors come here. The numbers are those of the pipeline's own tasks.

use std::collections::BTreeMap;

use super::probe::{FewShot, Size};
use super::tasks::{self, ZeroShot};
use super::{Bootstrap, Encoder, LabelledImages, Measurement, Test, Vocabulary, embed};
use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::rng::{self, SliceRandom};

/// Name of the classification task.
pub const CLASSIFICATION: &str = "zeroshot_classification";
/// Name of the retrieval task.
pub const RETRIEVAL: &str = "zeroshot_retrieval";

/// Name of the few-shot probes; theirs are the metrics `logistic-K` and `ridge-K`.
pub const FEW_SHOT: &str = "few_shot";

/// How many training pictures of each class the ℓ2 weight of its probes is chosen on.
const CHOSEN_ON: usize = 5;

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

/// How few-shot probes are drawn and fitted.
#[derive(Debug, Clone)]
pub struct Probes {
    /// Pictures of each class, a probe for each number.
    pub shots: Vec<usize>,
    /// Training sets drawn of each size.
    pub draws: usize,
    /// Most classes, those with the most pictures; 0 for all.
    pub classes: usize,
    /// The ℓ2 weights to choose from.
    pub l2: Vec<f64>,
    /// Seed of the draws.
    pub seed: u64,
}

/// The training pictures that probes need, so that no other has to be embedded: those that
/// they are fitted on, and others that their ℓ2 weight is chosen on.
#[derive(Debug)]
pub struct ProbePictures {
    few: FewShot,
    chosen_on: Vec<usize>,
    labels: Vec<Option<usize>>,
}

impl ProbePictures {
    /// Draws from training pictures with these labels; one without a label takes no part.
    ///
    /// # Errors
    /// Where fewer than two classes have enough pictures.
    pub fn draw(labels: Vec<Option<usize>>, probes: &Probes) -> Result<Self> {
        let most = probes.shots.iter().copied().max().unwrap_or(0);
        let needed = FewShot::needed(most) + CHOSEN_ON;
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (position, label) in labels.iter().enumerate() {
            if let Some(label) = *label {
                members.entry(label).or_default().push(position);
            }
        }
        members.retain(|_, pictures| pictures.len() >= needed);

        // Pictures to choose on are set aside first: no draw may be fitted on one of them.
        let mut stream = rng::stream(probes.seed, "eval/sets/chosen-on");
        let mut chosen_on = Vec::with_capacity(members.len() * CHOSEN_ON);
        for pictures in members.values_mut() {
            pictures.shuffle(&mut stream);
            chosen_on.extend(pictures.drain(..CHOSEN_ON));
        }
        chosen_on.sort_unstable();

        let mut left = vec![None; labels.len()];
        for (&label, pictures) in &members {
            for &position in pictures {
                left[position] = Some(label);
            }
        }
        let size = Size { shots: most, draws: probes.draws, classes: probes.classes };
        let few = FewShot::draw(&left, size, probes.seed);
        let found = few.classes().len();
        if found < 2 {
            return Err(Error::failed(format!(
                "{found} classes have {needed} training pictures, expected at least 2: ask \
                 for fewer --shots"
            )));
        }

        // Of a class that is no class of the probe, no picture has to be embedded.
        chosen_on.retain(|&position| {
            labels[position]
                .is_some_and(|label| few.classes().binary_search(&label).is_ok())
        });
        Ok(Self { few, chosen_on, labels })
    }

    /// The positions of all pictures that must be embedded, ascending.
    pub fn positions(&self) -> Vec<usize> {
        let mut all = self.few.pictures();
        all.extend(&self.chosen_on);
        all.sort_unstable();
        all
    }

    /// The pictures at `positions`, all of which have a label, out of the embeddings of
    /// [`Self::positions`].
    fn images<R>(
        &self,
        split: &str,
        positions: &[usize],
        embeddings: &Matrix,
    ) -> Result<LabelledImages<R>> {
        let all = self.positions();
        let row = |position: &usize| all.partition_point(|p| p < position);
        let rows: Vec<usize> = positions.iter().map(row).collect();
        let embeddings = embeddings.select(&rows)?;
        let labels = positions.iter().filter_map(|&position| self.labels[position]);
        LabelledImages::embedded(split, embeddings, labels.collect())
    }
}

/// Accuracy of few-shot probes on `test`; `embeddings` are those of
/// [`ProbePictures::positions`], and `classes` is the number of classes of the set.
pub fn few_shot(
    pictures: &ProbePictures,
    embeddings: &Matrix,
    (test, classes): (&LabelledImages<Test>, usize),
    probes: &Probes,
    bootstrap: Bootstrap,
) -> Result<Vec<Measurement>> {
    let few = &pictures.few;
    let class: Vec<Option<usize>> =
        (0..classes).map(|label| few.classes().binary_search(&label).ok()).collect();
    let probing = tasks::few_shot::Probing {
        few,
        train: &pictures.images("train", &few.pictures(), embeddings)?,
        validation: &pictures.images("train", &pictures.chosen_on, embeddings)?,
        tests: &[test],
        class: &class,
        shots: &probes.shots,
        l2: &probes.l2,
    };
    let found = tasks::few_shot::measure(&probing, bootstrap)?;
    let found = found.ok_or_else(|| {
        Error::failed("no test picture has a class with enough training pictures")
    })?;
    Ok(named(found.measurements, FEW_SHOT))
}

fn named(found: Vec<Measurement>, task: &str) -> Vec<Measurement> {
    let name = |m| Measurement { task: task.to_owned(), ..m };
    found.into_iter().map(name).collect()
}
