//! One model on one evaluation set: pictures stream through the image tower, a batch at a time.
//!
//! Memory is one batch of pictures and one vector per picture, whatever the size of the set.

use std::sync::Arc;

use super::files::Spread;
use crate::data::Skipped;
use crate::data::pairs::{EvaluationSet, Fault, Found, Pair, Task, Tolerance};
use crate::engine::Engine;
use crate::error::{Context as _, Error, Result};
use crate::eval::sets::{self, ProbePictures, Probes, Settings};
use crate::eval::{
    self, Concept, Encoder, LabelledImages, Measurement, Test, Vocabulary,
};
use crate::image::{Framing, Normalise, Pixels};
use crate::linalg::Matrix;
use crate::par;
use crate::ranks::Ranks;
use crate::text::Tokenizer;

/// A model, with what turns pictures and texts into its inputs.
#[derive(Debug)]
pub(crate) struct Model {
    pub engine: Box<dyn Engine>,
    /// Who embeds together.
    pub ranks: Arc<dyn Ranks>,
    pub tokenizer: Tokenizer,
    pub framing: Framing,
    pub normalise: Normalise,
}

/// The results of one set.
#[derive(Debug)]
pub(crate) struct Report {
    pub task: &'static str,
    pub pictures: usize,
    pub measurements: Vec<Measurement>,
    pub skipped: Vec<Skipped>,
}

/// Few-shot probes of a set, fitted on another of its splits.
#[derive(Debug)]
pub(crate) struct Probing<'a> {
    /// The training pictures.
    pub train: &'a EvaluationSet,
    pub probes: &'a Probes,
}

/// Measures `set`, known as `name`, with the model. Probes are for sets with classes alone.
///
/// # Errors
/// Where more pictures cannot be used than are tolerated, where none can, or where a label has
/// no class name; for probes also where two splits disagree on the classes, a drawn picture
/// cannot be used, or too few classes have enough pictures.
pub(crate) fn measure(
    model: &mut Model,
    (set, name): (&EvaluationSet, &str),
    probing: Option<Probing<'_>>,
    settings: &Settings,
    tolerance: Tolerance,
) -> Result<Report> {
    let embedded = embed(model, set, None, (settings.batch, tolerance))?;
    let Embedded { embeddings, labels, captions, skipped } = embedded;
    let pictures = labels.len();
    let images = LabelledImages::<Test>::embedded(name, embeddings, labels)?;

    let context = model.engine.config().text.context;
    let tokenize = |texts: &[String]| model.tokenizer.encode_all(texts, context);
    let vocabulary = vocabulary(set.task(), &tokenize);
    let mut encoder = Spread::new(&mut *model.engine, &*model.ranks);

    let (task, mut measurements) = match set.task() {
        Task::Classification { .. } => {
            let found =
                sets::classification(&mut encoder, &vocabulary, &images, settings)?;
            (sets::CLASSIFICATION, found)
        }
        Task::Retrieval => {
            let found =
                sets::retrieval(&mut encoder, &vocabulary, &images, &captions, settings)?;
            (sets::RETRIEVAL, found)
        }
    };

    if let (Some(probing), Task::Classification { .. }) = (probing, set.task()) {
        let found = few_shot(model, (set, &images), &probing, settings)
            .context(|| "few-shot probes".to_owned())?;
        measurements.extend(found);
    }
    Ok(Report { task, pictures, measurements, skipped })
}

/// Fits probes on drawn training pictures and measures them on the embedded test pictures.
fn few_shot(
    model: &mut Model,
    (set, images): (&EvaluationSet, &LabelledImages<Test>),
    probing: &Probing<'_>,
    settings: &Settings,
) -> Result<Vec<Measurement>> {
    let train = probing.train;
    let classes = match (set.task(), train.task()) {
        (
            Task::Classification { classes, .. },
            Task::Classification { classes: known, .. },
        ) if classes == known => classes.len(),
        _ => return Err(Error::failed("the training split has other classes")),
    };

    // Labels come first: only the drawn pictures are decoded and embedded, in a second pass.
    let mut labels = Vec::new();
    train.each(&mut |found| {
        labels.push(match found {
            Found::Pair(pair) => pair.label.filter(|&label| label < classes),
            Found::Bad(_) => None,
        });
        Ok(())
    })?;
    let drawn = ProbePictures::draw(labels, probing.probes)?;

    // A draw that misses a picture is another draw, so none may be skipped.
    let tolerance = Tolerance::new(0.0, "the training split");
    let positions = drawn.positions();
    let found = embed(model, train, Some(&positions), (settings.batch, tolerance))?;
    let test = (images, classes);
    let (probes, bootstrap) = (probing.probes, settings.bootstrap);
    sets::few_shot(&drawn, &found.embeddings, test, probes, bootstrap)
}

/// The usable pictures of a set: a unit embedding, a label and the captions of each.
struct Embedded {
    /// Unit embeddings [n, P].
    embeddings: Matrix,
    labels: Vec<usize>,
    captions: Vec<Vec<String>>,
    skipped: Vec<Skipped>,
}

/// Streams a set through the image tower, `batch` pictures at a time: all of it, or those at
/// these positions, ascending.
fn embed(
    model: &mut Model,
    set: &EvaluationSet,
    positions: Option<&[usize]>,
    (batch, tolerance): (usize, Tolerance),
) -> Result<Embedded> {
    let mut encoder = Spread::new(&mut *model.engine, &*model.ranks);
    let mut gathered = Gathered {
        set,
        framing: model.framing,
        normalise: model.normalise,
        encoder: &mut encoder,
        tolerance,
        waiting: Vec::new(),
        rows: Vec::new(),
        labels: Vec::new(),
        captions: Vec::new(),
    };

    // The pictures pass once, a batch at a time; only their embeddings are kept.
    let mut position = 0;
    set.each(&mut |found| {
        let asked = positions.is_none_or(|all| all.binary_search(&position).is_ok());
        position += 1;
        if !asked {
            return Ok(());
        }
        match found {
            Found::Bad(bad) => gathered.tolerance.reject(bad)?,
            Found::Pair(pair) => gathered.receive(pair)?,
        }
        if gathered.waiting.len() == batch {
            gathered.embed()?;
        }
        Ok(())
    })?;

    // The last batch is usually not full.
    gathered.embed()?;

    // Only now is the number of pairs known that a fraction can be taken of.
    let Gathered { tolerance, rows, labels, captions, .. } = gathered;
    let skipped = tolerance.finish()?.skipped;
    if labels.is_empty() {
        return Err(Error::failed("the set has no picture that can be used"));
    }
    let embeddings = Matrix::new(labels.len(), encoder.embed_dim(), rows)?;
    Ok(Embedded { embeddings, labels, captions, skipped })
}

/// The texts that stand for classes; retrieval asks with captions and has none.
fn vocabulary<'a>(task: &Task, tokenize: eval::Tokenize<'a>) -> Vocabulary<'a> {
    let (classes, templates) = match task {
        Task::Classification { classes, templates } => {
            (classes.clone(), templates.clone())
        }
        Task::Retrieval => (Vec::new(), Vec::new()),
    };

    // A foreign set knows no groups of classes and holds none out: all are equal here.
    let concept = |label| Concept { label, group: 0, subgroup: 0, held_out: false };
    let concepts: Vec<Concept> = classes.into_iter().map(concept).collect();
    Vocabulary { classes: concepts.len(), concepts, templates, tokenize }
}

/// Pictures on their way to embeddings, and the embeddings so far.
struct Gathered<'a> {
    set: &'a EvaluationSet,
    framing: Framing,
    normalise: Normalise,
    encoder: &'a mut dyn Encoder,
    tolerance: Tolerance,
    /// Pairs that are not embedded yet, fewer than a batch.
    waiting: Vec<Pair>,
    /// The embeddings, one row after the other.
    rows: Vec<f32>,
    /// The label of each row, 0 where the task has no classes.
    labels: Vec<usize>,
    /// The captions of each row.
    captions: Vec<Vec<String>>,
}

impl Gathered<'_> {
    /// Queues a pair that has what the task asks for. A class without a name is an error:
    /// names and labels belong to two different sets then, and any number would be wrong.
    fn receive(&mut self, pair: Pair) -> Result<()> {
        let bad = |fault: Fault, why: &str| {
            let (key, reason) = (pair.key.clone(), why.to_owned());
            Skipped { key, fault, reason }
        };

        // What lacks a class or a caption is a bad pair, which the tolerance may allow.
        match (self.set.task(), pair.label) {
            (Task::Classification { classes, .. }, Some(label))
                if label >= classes.len() =>
            {
                let (key, count) = (&pair.key, classes.len());
                Err(Error::corrupt(format!(
                    "{key} has class {label}, but classnames.txt has {count} names, for classes 0 to {}",
                    count.saturating_sub(1)
                )))
            }
            (Task::Classification { .. }, None) => {
                self.tolerance.reject(bad(Fault::UnknownClass, "there is no class"))
            }
            (Task::Retrieval, _) if pair.captions.is_empty() => {
                self.tolerance.reject(bad(Fault::NoCaption, "there is no caption"))
            }
            _ => {
                self.waiting.push(pair);
                Ok(())
            }
        }
    }

    /// Decodes and embeds the pairs that are waiting. A picture that cannot be decoded is
    /// rejected and leaves no row.
    fn embed(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);

        // Decoding and scaling take longer than a small model does, so all threads share it.
        let (framing, normalise) = (self.framing, self.normalise);
        let decoded = par::map(waiting.len(), |i| {
            let pair = &waiting[i];
            let picture = framing.square(&pair.image, &pair.key)?;
            Ok::<_, Error>(normalise.planes(&picture))
        });

        // Rows, labels and captions grow together, in the order of the set.
        let (mut pixels, mut n) = (Vec::new(), 0);
        for (pair, planes) in waiting.into_iter().zip(decoded) {
            match planes {
                Ok(planes) => {
                    self.tolerance.accept();
                    pixels.extend(planes);
                    n += 1;
                    self.labels.push(pair.label.unwrap_or(0));
                    self.captions.push(pair.captions);
                }
                Err(error) => {
                    let (fault, reason) = (Fault::TornPicture, error.chain());
                    self.tolerance.reject(Skipped { key: pair.key, fault, reason })?;
                }
            }
        }

        if n > 0 {
            let rows = eval::embed_pictures(self.encoder, Pixels::Values(&pixels), n)?;
            self.rows.extend(rows.into_data());
        }
        Ok(())
    }
}
