//! Files that more than one stage reads or writes: models, MoE layers by name, evaluation.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Device;
use crate::data::{Dataset, Split};
use crate::engine::{Backend, Engine};
use crate::error::{Context as _, Result};
use crate::eval::{self, Encoder};
use crate::linalg::Matrix;
use crate::model::{Checkpoint, ClipConfig, Tower};
use crate::pipeline::Job;

/// Writes `config.json` and the weights of a model under the given file name.
pub(crate) fn write_model(
    job: &Job<'_>,
    model: &Checkpoint,
    weights: &str,
) -> Result<()> {
    write_config(job, &model.config)?;
    model.write(&job.output(weights))
}

/// Writes `config.json`.
pub(crate) fn write_config(job: &Job<'_>, config: &ClipConfig) -> Result<()> {
    let path = job.output("config.json");
    std::fs::write(&path, config.to_json()?)
        .context(|| format!("writing {}", path.display()))
}

/// The folder of an input that the plan lists.
pub(crate) fn folder<'a>(job: &'a Job<'_>, name: &str) -> Result<&'a Path> {
    job.inputs.dir(name)
}

/// The name of a layer in centroids, bases and messages, such as `vision.1`.
pub(crate) fn layer_name(tower: Tower, block: usize) -> String {
    format!("{}.{block}", tower.name())
}

/// What runs the models of a node, as the plan says. `device: auto` does not say which it is,
/// so a card is named on the console, and so is one that is left idle.
pub(crate) fn backend(job: &Job<'_>) -> Result<Backend> {
    let compute = job.node.compute;
    if job.node.backend == Backend::Cpu.name() {
        if compute.device == Device::Auto && Backend::choose(compute)? != Backend::Cpu {
            job.progress.line(
                "runs on processors: the engine on cards has no kernels for a model of this \
                 shape (docs/gpu.md)",
            );
        }
        return Ok(Backend::Cpu);
    }
    let backend = Backend::choose(compute)?;
    if let Backend::Cuda { ordinal, .. } = backend {
        job.progress.line(&format!("runs on cuda:{ordinal} ({})", backend.name()));
    }
    Ok(backend)
}

/// Evaluation asks any engine for embeddings.
impl Encoder for &mut (dyn Engine + '_) {
    fn embed_dim(&self) -> usize {
        self.config().embed_dim
    }

    fn images(&mut self, pixels: &[f32], n: usize) -> Result<Matrix> {
        Matrix::new(n, self.embed_dim(), self.encode_images(pixels)?)
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        Matrix::new(n, self.embed_dim(), self.encode_texts(ids)?)
    }
}

/// An encoder under a clock, which counts the pictures that pass through it.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    inner: &'a mut dyn Engine,
    pictures: usize,
    time: Duration,
}

impl<'a> Timed<'a> {
    pub(crate) fn new(inner: &'a mut dyn Engine) -> Self {
        Self { inner, pictures: 0, time: Duration::ZERO }
    }

    /// Mean time of a picture so far; NaN before the first one.
    pub(crate) fn milliseconds_per_picture(&self) -> f64 {
        1000.0 * self.time.as_secs_f64() / self.pictures as f64
    }
}

impl Encoder for Timed<'_> {
    fn embed_dim(&self) -> usize {
        self.inner.config().embed_dim
    }

    fn images(&mut self, pixels: &[f32], n: usize) -> Result<Matrix> {
        let clock = Instant::now();
        let found = Encoder::images(&mut self.inner, pixels, n)?;
        self.time += clock.elapsed();
        self.pictures += n;
        Ok(found)
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        Encoder::texts(&mut self.inner, ids, n)
    }
}

/// An opened data set with the splits that a stage evaluates on.
#[derive(Debug)]
pub(crate) struct Pictures {
    pub(crate) dataset: Dataset,
    splits: BTreeMap<String, Split>,
}

impl Pictures {
    /// Opens the data set and decodes the named splits.
    pub(crate) fn open(folder: &Path, splits: &[&str]) -> Result<Self> {
        let dataset = Dataset::open(folder)?;
        let mut decoded = BTreeMap::new();
        for &name in splits {
            decoded.insert(name.to_owned(), dataset.split(name)?);
        }
        Ok(Self { dataset, splits: decoded })
    }

    /// A split in a role. Roles are types: a test split cannot be trained on.
    pub(crate) fn role<R>(&self, name: &str) -> Result<eval::Split<'_, R>> {
        let split = self.splits.get(name).ok_or_else(|| {
            crate::error::Error::failed(format!("split {name} was not opened"))
        })?;

        // Pixels are read when an evaluation asks for them, a batch at a time.
        let rows = &split.rows;
        let pixels = move |indices: &[usize]| {
            let mut out = vec![0.0; indices.len() * 3 * split.side() * split.side()];
            split.pixels(indices, &mut out)?;
            Ok(out)
        };

        eval::Split::new(
            name,
            rows.iter().map(|r| r.sample).collect(),
            rows.iter().map(|r| crate::num::widen(r.concept)).collect(),
            rows.iter().map(|r| r.names.clone()).collect(),
            Box::new(pixels),
        )
    }

    /// Concepts and templates, with the tokenizer as a function of texts.
    pub(crate) fn vocabulary<'a>(
        &self,
        tokenize: eval::Tokenize<'a>,
    ) -> eval::Vocabulary<'a> {
        let concepts = self.dataset.concepts.iter().map(|c| eval::Concept {
            label: c.label.clone(),
            group: crate::num::widen(c.group),
            subgroup: crate::num::widen(c.subgroup),
            held_out: c.held_out,
        });
        let layout = &self.dataset.meta.layout;
        eval::Vocabulary {
            concepts: concepts.collect(),
            classes: layout.classes.unwrap_or(self.dataset.concepts.len()),
            templates: layout.templates.clone(),
            tokenize,
        }
    }

    /// Texts to padded token ids.
    pub(crate) fn tokenize(&self, texts: &[String]) -> Result<Vec<u32>> {
        let context = self.dataset.meta.context;
        self.dataset.tokenizer.encode_all(texts, context)
    }
}
