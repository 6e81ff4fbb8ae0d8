//! Files that more than one stage reads or writes: models, MoE layers by name, evaluation.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Device;
use crate::data::{Dataset, Split};
use crate::engine::{Backend, Engine};
use crate::error::{Context as _, Result};
use crate::eval::{self, Encoder};
use crate::image::Pixels;
use crate::linalg::Matrix;
use crate::model::names::ParameterId;
use crate::model::params::Layout;
use crate::model::{Checkpoint, ClipConfig, Tower};
use crate::pipeline::Job;
use crate::ranks::Ranks;

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
/// so a card is named on the console, and so is one that is left idle. Every rank has a card of
/// its own.
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
    let backend = Backend::choose(compute)?.on_rank(&*job.ranks)?;
    if let Backend::Cuda { ordinal, .. } = backend {
        let others = match job.ranks.count() {
            1 => String::new(),
            count => format!(", each of {count} ranks on a card of its own"),
        };
        job.progress
            .line(&format!("runs on cuda:{ordinal} ({}){others}", backend.name()));
    }
    Ok(backend)
}

/// What a model multiplies cosines with.
pub(super) fn scale(engine: &dyn Engine) -> Result<f64> {
    let range = Layout::new(engine.config()).range(ParameterId::LogitScale);
    Ok(f64::from(engine.values()?[range.start]).exp())
}

/// Evaluation asks any engine for embeddings.
impl Encoder for &mut (dyn Engine + '_) {
    fn embed_dim(&self) -> usize {
        self.config().embed_dim
    }

    fn scale(&self) -> Result<f64> {
        scale(&**self)
    }

    fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix> {
        Matrix::new(n, self.embed_dim(), self.encode_images(pixels)?)
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        Matrix::new(n, self.embed_dim(), self.encode_texts(ids)?)
    }
}

/// An engine as several ranks see it: each embeds its part, and all have the whole.
#[derive(Debug)]
pub(crate) struct Spread<'a> {
    engine: &'a mut dyn Engine,
    ranks: &'a dyn Ranks,
}

impl<'a> Spread<'a> {
    pub(crate) fn new(engine: &'a mut dyn Engine, ranks: &'a dyn Ranks) -> Self {
        Self { engine, ranks }
    }

    /// The rows [n, P] of `n` inputs, of which this rank encodes its own range.
    fn rows(
        &mut self,
        n: usize,
        encode: impl FnOnce(&mut dyn Engine, Range<usize>) -> Result<Vec<f32>>,
    ) -> Result<Matrix> {
        let (rank, count) = (self.ranks.rank(), self.ranks.count());
        let width = self.engine.config().embed_dim;

        // Blocks are of equal length, so that the last ones may be short or empty.
        let block = n.div_ceil(count).next_multiple_of(self.engine.encoded());
        let own = (rank * block).min(n)..((rank + 1) * block).min(n);
        let mut rows = Vec::new();
        if !own.is_empty() {
            rows = encode(self.engine, own)?;
        }

        rows.resize(block * width, 0.0);
        let mut all = vec![0.0; count * block * width];
        self.ranks.gather(&rows, &mut all)?;
        all.truncate(n * width);
        Matrix::new(n, width, all)
    }
}

impl Encoder for Spread<'_> {
    fn embed_dim(&self) -> usize {
        self.engine.config().embed_dim
    }

    fn scale(&self) -> Result<f64> {
        scale(self.engine)
    }

    fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix> {
        let each = pixels.len() / n.max(1);
        self.rows(n, |engine, own| {
            engine.encode_images(pixels.part(own.start * each..own.end * each))
        })
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        let each = ids.len() / n.max(1);
        self.rows(n, |engine, own| {
            engine.encode_texts(&ids[own.start * each..own.end * each])
        })
    }
}

/// An encoder under a clock, which counts the pictures that pass through it.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    inner: Spread<'a>,
    pictures: usize,
    time: Duration,
}

impl<'a> Timed<'a> {
    pub(crate) fn new(inner: Spread<'a>) -> Self {
        Self { inner, pictures: 0, time: Duration::ZERO }
    }

    /// Mean time of a picture so far; NaN before the first one.
    pub(crate) fn milliseconds_per_picture(&self) -> f64 {
        1000.0 * self.time.as_secs_f64() / self.pictures as f64
    }
}

impl Encoder for Timed<'_> {
    fn embed_dim(&self) -> usize {
        self.inner.embed_dim()
    }

    fn scale(&self) -> Result<f64> {
        self.inner.scale()
    }

    fn images(&mut self, pixels: Pixels<'_>, n: usize) -> Result<Matrix> {
        let clock = Instant::now();
        let found = self.inner.images(pixels, n)?;
        self.time += clock.elapsed();
        self.pictures += n;
        Ok(found)
    }

    fn texts(&mut self, ids: &[u32], n: usize) -> Result<Matrix> {
        self.inner.texts(ids, n)
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
        let pixels = move |indices: &[usize]| split.pixels(indices);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Activation;
    use crate::engine::open_model;
    use crate::model::{TextConfig, VisionConfig, init};
    use crate::ranks::Threads;

    /// Embeddings of an odd number of inputs are those of one rank, bit for bit, on every
    /// rank.
    #[test]
    fn ranks_embed_what_one_embeds() {
        let (width, layers, heads, hidden) = (16, 1, 2, 32);
        let config = ClipConfig {
            embed_dim: 8,
            activation: Activation::Gelu,
            vision: VisionConfig {
                image_size: 8,
                patch: 4,
                width,
                layers,
                heads,
                hidden,
            },
            text: TextConfig { context: 6, vocabulary: 40, width, layers, heads, hidden },
            moe: None,
        };
        let model = init::dense(&config, 1);
        let n = 37;
        let mut pixels = vec![0.0; n * 3 * 8 * 8];
        crate::rng::fill_normal(&mut crate::rng::stream(1, "p"), 1.0, &mut pixels);
        let ids: Vec<u32> = (0..n).flat_map(|_| [1, 5, 9, 39, 0, 0]).collect();

        let mut alone = open_model(model.clone(), Backend::Cpu).unwrap();
        let images = alone.encode_images(Pixels::Values(&pixels)).unwrap();
        let texts = alone.encode_texts(&ids).unwrap();
        for count in [1, 2, 4] {
            std::thread::scope(|scope| {
                for ranks in Threads::new(count) {
                    let (model, pixels, ids) = (model.clone(), &pixels, &ids);
                    let (images, texts) = (&images, &texts);
                    scope.spawn(move || {
                        let mut engine = open_model(model, Backend::Cpu).unwrap();
                        let mut spread = Spread::new(&mut *engine, &ranks);
                        let pixels = Pixels::Values(pixels);
                        assert!(spread.images(pixels, n).unwrap().into_data() == *images);
                        assert!(spread.texts(ids, n).unwrap().into_data() == *texts);
                    });
                }
            });
        }
    }
}
