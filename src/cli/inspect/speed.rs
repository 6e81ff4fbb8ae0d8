//! `upcycle-inspect speed`: what a training step of the configured model costs here.
//!
//! Before people spend hours on a run they want to know how many, and a claim of speed needs a
//! measurement that anyone can repeat. The data are random and captions have full length, so
//! that the time is that of the arithmetic alone. The variants take turns, so that a slow
//! minute of the machine slows all of them.

use std::time::Instant;

use serde_json::json;

use super::Answer;
use crate::artifact;
use crate::config::{Config, InitConfig};
use crate::engine::{
    self, Backend, Engine, Objective, Pairs, TeacherPlan, Trainable, Training,
};
use crate::error::{Context as _, Error, Result};
use crate::image::Pixels;
use crate::model::{Checkpoint, ClipConfig, init};
use crate::num::index_u32;
use crate::rng::{self, RngExt};
use crate::stage::pretrain;
use crate::stage::upcycle::{Recipe, mixture};
use crate::upcycle::{self, Settings};

/// Steps of each variant before the clock runs: buffers grow in them.
const WARM_UP: usize = 2;

/// Small enough for random data to change nothing that matters to the time of a step.
const LEARNING_RATE: f64 = 1e-4;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Variant {
    /// The dense model.
    Dense,
    /// The mixture with load balance.
    Moe,
    /// The mixture with load balance and self-distillation.
    MoeEesd,
}

impl Variant {
    /// Every variant, in the order of the output.
    const ALL: [Self; 3] = [Self::Dense, Self::Moe, Self::MoeEesd];

    fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Moe => "moe",
            Self::MoeEesd => "moe-eesd",
        }
    }
}

/// Times `steps` training steps of each variant: forward, losses, backward, AdamW and the
/// EMA teacher where there is one.
pub(super) fn speed(
    config: &Config,
    variants: &[Variant],
    steps: usize,
    threads: Option<usize>,
) -> Result<Answer> {
    if steps == 0 {
        return Err(Error::usage("--steps must be positive"));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
    let pool = pool.context(|| "starting threads".to_owned())?;
    pool.install(|| race(config, variants, steps))
}

/// Times the variants on the threads of the current pool.
fn race(config: &Config, variants: &[Variant], steps: usize) -> Result<Answer> {
    let data = &config.dataset;
    let extents = [data.image_size, data.context, data.vocabulary];
    let shape = pretrain::shape(&config.model, extents);
    let batch = config.train.optim.batch;
    let (pixels, ids) = pairs(&shape, batch);

    // All models are in memory at the same time, because they take turns.
    let variants = if variants.is_empty() { &Variant::ALL } else { variants };
    let mut runners = Vec::new();
    for &variant in variants {
        runners.push(Runner::new(variant, &shape, config)?);
    }

    // Milliseconds of each step after the warm-up, by variant.
    let mut times = vec![Vec::with_capacity(steps); runners.len()];
    for step in 0..WARM_UP + steps {
        for (runner, times) in runners.iter_mut().zip(&mut times) {
            let clock = Instant::now();
            runner.step(Pairs { pixels: Pixels::Values(&pixels), ids: &ids })?;
            if step >= WARM_UP {
                times.push(1e3 * clock.elapsed().as_secs_f64());
            }
        }
    }

    let threads = rayon::current_num_threads();
    let mut lines = vec![format!("{batch} pairs per step, {threads} threads")];
    let mut rows = Vec::new();
    for (runner, times) in runners.iter().zip(&mut times) {
        // The median, because a step that another program interrupts is slow without reason.
        times.sort_by(f64::total_cmp);
        let (median, low, high) =
            (times[times.len() / 2], times[0], times[times.len() - 1]);
        let name = runner.variant.name();
        let (total, active) = runner.parameters;
        let pairs = 1e3 * batch as f64 / median;

        lines.push(format!(
            "{name:9} {median:8.1} ms [{low:.1}, {high:.1}]  {pairs:7.0} pairs/s  {total} parameters, {active} active"
        ));
        rows.push(json!({
            "variant": name, "median_ms": median, "low_ms": low, "high_ms": high,
            "steps": steps, "parameters_total": total, "parameters_active": active,
        }));
    }

    let peak = artifact::peak_memory().unwrap_or(0);
    lines.push(format!("peak memory {}", crate::pipeline::memory::size(peak)));
    Ok(Answer::new(
        lines,
        json!({ "batch": batch, "threads": threads, "rows": rows, "peak_bytes": peak }),
    ))
}

/// Normal pixels, uniform ids with the end of text in the last place.
fn pairs(shape: &ClipConfig, batch: usize) -> (Vec<f32>, Vec<u32>) {
    let side = shape.vision.image_size;
    let mut pixels = vec![0.0; batch * 3 * side * side];
    rng::fill_normal(&mut rng::stream(1, "speed/pixels"), 1.0, &mut pixels);

    // The end of text has the largest id, and no other token of a caption is one.
    let end = index_u32(shape.text.vocabulary - 1);
    let mut stream = rng::stream(1, "speed/ids");
    let mut ids = Vec::with_capacity(batch * shape.text.context);
    for _ in 0..batch {
        ids.extend((1..shape.text.context).map(|_| stream.random_range(0..end)));
        ids.push(end);
    }
    (pixels, ids)
}

/// A model in training.
struct Runner {
    variant: Variant,
    engine: Box<dyn Engine>,
    parameters: (usize, usize),
}

impl Runner {
    /// A model of the variant that is ready to train.
    fn new(variant: Variant, shape: &ClipConfig, config: &Config) -> Result<Self> {
        let dense = init::dense(shape, 1);
        let model = match variant {
            Variant::Dense => dense,
            Variant::Moe | Variant::MoeEesd => copies(&dense, config)?,
        };

        let balance = config.train.balance;
        let objective = match variant {
            Variant::Dense => Objective::default(),
            Variant::Moe => Objective { balance, ..Objective::default() },
            Variant::MoeEesd => Objective { balance, eesd: 0.1, ..Objective::default() },
        };

        // The teacher as it is configured: its fraction of tokens decides what it costs.
        let eesd = &config.train.eesd;
        let teacher = TeacherPlan {
            target: eesd.target,
            fraction: eesd.tokens,
            decay: eesd.decay_over(config.train.optim.steps),
        };
        let training = Training {
            optim: config.train.optim.clone(),
            trainable: Trainable::all(&model.config),
            objective,
            teacher: (variant == Variant::MoeEesd).then_some(teacher),
        };

        let parameters = model.counts();
        let backend = Backend::choose_for(config.compute(), &model.config)?;
        let mut engine = engine::open_model(model, backend)?;
        engine.start_training(&training)?;
        Ok(Self { variant, engine, parameters })
    }

    /// One step on a batch, the update of the weights included.
    fn step(&mut self, pairs: Pairs<'_>) -> Result<()> {
        let losses = self.engine.step(pairs)?;
        // The time of arithmetic on values that are not numbers would mean nothing.
        if !losses.total.is_finite() {
            return Err(Error::failed("the loss on random data is not finite"));
        }
        self.engine.update(LEARNING_RATE).map(|_norm| ())
    }
}

/// The dense model upcycled by exact copies.
fn copies(dense: &Checkpoint, config: &Config) -> Result<Checkpoint> {
    let method = upcycle::find("sparse")?;
    let init = InitConfig { method: method.name().to_owned(), ..InitConfig::default() };
    let settings = Settings::new(method, &init, config.moe.experts)?;
    let recipe = Recipe {
        method,
        settings,
        centroids: None,
        subspaces: None,
        multiplet: None,
        seed: 1,
    };
    mixture(dense, &config.moe, &recipe).checkpoint()
}
