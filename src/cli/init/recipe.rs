//! The recipe: numbers for fine-tuning a published CLIP, chosen from the model, the data and
//! the machine, each with its reason.
//!
//! A pure function, so that what it chooses can be tested. Every choice is a key that the
//! user may change.

use crate::cli::cost::{self, Length, Speed};
use crate::cli::forecast;
use crate::model::{ClipConfig, Moe};

/// Width of the towers that published learning rates are for.
const PUBLISHED_WIDTH: f64 = 512.0;

/// Learning rate at that width and a batch of [`PUBLISHED_BATCH`]: the usual one for
/// fine-tuning all weights of a CLIP.
const PUBLISHED_RATE: f64 = 1e-5;

/// The batch that goes with it.
const PUBLISHED_BATCH: f64 = 256.0;

/// Largest batch chosen: beyond it the gradient gains little and a step costs in proportion.
const LARGEST_BATCH: usize = 256;

/// Passes over the training pictures, and the steps they are kept between.
const EPOCHS: usize = 10;
const FEWEST_STEPS: usize = 100;
const MOST_STEPS: usize = 5000;

/// Tokens of each cluster, at least, that the subspaces are estimated from.
const TOKENS_PER_EXPERT: usize = 20_000;

/// Percent of the free memory that training may take.
const MEMORY: u64 = 80;

/// Seconds of all training below which three seeds are affordable.
const THREE_SEEDS: f64 = 2.0 * 3600.0;

/// What is known before anything runs.
#[derive(Debug, Clone)]
pub(super) struct Evidence<'a> {
    /// The dense model.
    pub(super) shape: &'a ClipConfig,
    /// Different things that the training pictures show.
    pub(super) concepts: usize,
    /// Pictures that are trained on.
    pub(super) trained: usize,
    /// Pictures that retrieval is measured on.
    pub(super) retrieval: usize,
    /// Bytes of memory that are free, where the system says so.
    pub(super) memory: Option<u64>,
    /// What this machine does in a second, where it is measured.
    pub(super) speed: Option<Speed>,
    /// Sums of gradients side by side, of the configuration.
    pub(super) lanes: usize,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recipe {
    pub(super) seeds: Vec<u64>,
    pub(super) experts: usize,
    pub(super) top_k: usize,
    pub(super) batch: usize,
    pub(super) micro_batch: usize,
    pub(super) steps: usize,
    pub(super) warmup: usize,
    pub(super) learning_rate: f64,
    pub(super) every: usize,
    pub(super) samples: usize,
    pub(super) tokens_per_sample: usize,
    pub(super) recall_at: Vec<usize>,
    /// What memory says about training, where it is too small for the model.
    pub(super) warning: Option<String>,
    /// Keys with the reasons of their values.
    pub(super) reasons: Vec<(&'static str, String)>,
}

/// Runs that are compared, of which all but one train a mixture.
const RUNS: usize = 5;

impl Recipe {
    /// Chooses for the evidence.
    pub(super) fn choose(evidence: &Evidence<'_>) -> Self {
        let Evidence { shape, concepts, trained, retrieval, .. } = *evidence;
        let experts = if shape.vision.width < 256 { 4 } else { 8 };
        let mixture = mixture(shape, experts);

        // A batch holds each thing once, and half of them leaves the batches different.
        let batch = power_of_two((concepts / 2).max(concepts.min(16))).min(LARGEST_BATCH);
        let (micro_batch, warning) = fit(evidence, &mixture, batch);
        let steps = (EPOCHS * trained / batch.max(1)).clamp(FEWEST_STEPS, MOST_STEPS);
        let (samples, tokens_per_sample) = calibration(shape, experts, trained);

        let mut recipe = Self {
            seeds: Vec::new(),
            experts,
            top_k: 2,
            batch,
            micro_batch,
            steps,
            warmup: (steps / 20).max(5),
            learning_rate: learning_rate(shape, batch),
            every: (steps / 4).max(1),
            samples,
            tokens_per_sample,
            recall_at: recalls(retrieval),
            warning,
            reasons: Vec::new(),
        };
        recipe.seeds = recipe.affordable(&mixture, evidence);
        recipe.reasons = recipe.explain(evidence);
        recipe
    }

    /// Three seeds where they are affordable, else one.
    fn affordable(&self, mixture: &ClipConfig, evidence: &Evidence<'_>) -> Vec<u64> {
        let Self { steps, batch, micro_batch, .. } = *self;
        let length = Length { steps, batch, micro_batch, lanes: evidence.lanes };
        let run = cost::training(mixture, &length, true);
        let seconds = evidence.speed.map(|speed| speed.seconds(run) * (3 * RUNS) as f64);
        if seconds.is_none_or(|seconds| seconds <= THREE_SEEDS) {
            return vec![1, 2, 3];
        }
        vec![1]
    }

    /// Why each value is what it is.
    fn explain(&self, evidence: &Evidence<'_>) -> Vec<(&'static str, String)> {
        let Evidence { shape, concepts, trained, .. } = *evidence;
        let Self { batch, steps, .. } = *self;
        let passes = (steps * batch) as f64 / trained.max(1) as f64;
        let seeds = match self.seeds.len() {
            1 => {
                "one, because three would take more than two hours; differences then cover \
                 the examples and not the luck of training"
            }
            _ => "three, so that differences have an interval over the luck of training",
        };
        let mut reasons = vec![
            ("seeds", seeds.to_owned()),
            ("moe.experts", format!("usual for towers of width {}", shape.vision.width)),
            (
                "train.optim.batch",
                format!(
                    "the training pictures show {concepts} different things, and a batch \
                     holds each once"
                ),
            ),
            (
                "train.optim.steps",
                format!("{passes:.0} passes over {trained} training pictures"),
            ),
            (
                "train.optim.learning_rate",
                format!(
                    "{PUBLISHED_RATE:.0e} is usual for fine-tuning a CLIP of width 512 at \
                     batch 256; scaled to batch {batch} by its root and to width {}",
                    shape.text.width
                ),
            ),
        ];
        if self.micro_batch > 0 {
            let why = format!(
                "the activations of {batch} pairs do not fit into the free memory; the \
                 gradient is the same"
            );
            reasons.push(("train.optim.micro_batch", why));
        }
        reasons
    }

    /// The reason of a key; empty if it has none.
    pub(super) fn reason(&self, key: &str) -> &str {
        let found = self.reasons.iter().find(|(known, _)| *known == key);
        found.map_or("", |(_, why)| why.as_str())
    }
}

/// The published rate at another batch and width: noise falls with the root of the batch, and
/// narrower layers take larger steps.
fn learning_rate(shape: &ClipConfig, batch: usize) -> f64 {
    let narrow = PUBLISHED_WIDTH / shape.text.width.max(1) as f64;
    round(PUBLISHED_RATE * (batch as f64 / PUBLISHED_BATCH).sqrt() * narrow)
}

/// How many pictures are clustered, and how many tokens of each: some of many pictures, or
/// all (0) of few.
fn calibration(shape: &ClipConfig, experts: usize, trained: usize) -> (usize, usize) {
    let tokens = shape.vision.patches();
    let some = tokens.min(8);
    let wanted = TOKENS_PER_EXPERT * experts;
    let samples = trained.min(wanted.div_ceil(some)).max(1);
    (samples, if samples * tokens > 2 * wanted { some } else { 0 })
}

/// Recalls at up to half of the pictures that retrieval is measured on.
fn recalls(pictures: usize) -> Vec<usize> {
    [1, 5, 10].into_iter().filter(|&k| k == 1 || k <= pictures / 2).collect()
}

/// The mixture with experts in every second block.
pub(super) fn mixture(dense: &ClipConfig, experts: usize) -> ClipConfig {
    let odd = |layers: usize| (0..layers).filter(|index| index % 2 == 1).collect();
    let moe = Moe {
        experts,
        top_k: 2,
        rank: None,
        vision_blocks: odd(dense.vision.layers),
        text_blocks: odd(dense.text.layers),
    };
    ClipConfig { moe: Some(moe), ..dense.clone() }
}

/// How many pairs fit into memory at a time, 0 for the whole batch; and what to say where not
/// even the model does.
fn fit(
    evidence: &Evidence<'_>,
    mixture: &ClipConfig,
    batch: usize,
) -> (usize, Option<String>) {
    let Some(free) = evidence.memory else { return (0, None) };
    let total = crate::model::params::parameter_counts(mixture).0;
    let state = 4 * (forecast::training_copies(evidence.lanes) * total) as u64;
    let free = free / 100 * MEMORY;
    let Some(rest) = free.checked_sub(state) else {
        let size = crate::pipeline::memory::size;
        let text = format!(
            "training the mixture needs {}, and {} may be used here: lower moe.experts or \
             moe.vision_blocks, or train on another machine",
            size(state),
            size(free)
        );
        return (16, Some(text));
    };

    let pair = cost::kept(mixture).max(1);
    let fitting = usize::try_from(rest / pair).unwrap_or(usize::MAX);
    if fitting >= batch {
        return (0, None);
    }
    ((fitting / 16 * 16).max(16), None)
}

/// The largest power of two up to `n`, at least 2.
fn power_of_two(n: usize) -> usize {
    1 << n.max(2).ilog2()
}

/// Two digits are as many as a learning rate has.
fn round(rate: f64) -> f64 {
    let text = format!("{rate:.1e}");
    text.parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Activation;
    use crate::model::{TextConfig, VisionConfig};

    fn shape(width: usize) -> ClipConfig {
        let (layers, heads, hidden) = (12, 8, 4 * width);
        ClipConfig {
            embed_dim: width,
            activation: Activation::Gelu,
            vision: VisionConfig {
                image_size: 224,
                patch: 32,
                width,
                layers,
                heads,
                hidden,
            },
            text: TextConfig {
                context: 77,
                vocabulary: 49408,
                width,
                layers,
                heads,
                hidden,
            },
            moe: None,
        }
    }

    fn evidence(shape: &ClipConfig) -> Evidence<'_> {
        Evidence {
            shape,
            concepts: 57,
            trained: 160,
            retrieval: 20,
            memory: Some(64 << 30),
            speed: Some(Speed { flop: 1e11, bytes: 1e10, threads: 2 }),
            lanes: 4,
        }
    }

    #[test]
    fn the_batch_never_exceeds_what_the_captions_allow() {
        let shape = shape(512);
        for concepts in 2..600 {
            let found = Recipe::choose(&Evidence { concepts, ..evidence(&shape) });
            assert!(found.batch <= concepts && found.batch >= 2, "{concepts}: {found:?}");
            assert!(found.batch.is_power_of_two() && found.batch <= LARGEST_BATCH);
        }
    }

    #[test]
    fn small_memory_is_met_by_micro_batches_and_too_small_a_one_is_said() {
        let shape = shape(512);
        let many = Evidence { concepts: 10_000, trained: 10_000, ..evidence(&shape) };
        let roomy = Recipe::choose(&Evidence { memory: Some(1 << 40), ..many.clone() });
        assert_eq!((roomy.micro_batch, roomy.warning), (0, None));

        let total = crate::model::params::parameter_counts(&mixture(&shape, 8)).0;
        let state = 4 * 8 * total as u64;
        let pairs = 40 * cost::kept(&mixture(&shape, 8));
        let memory = Some((state + pairs) / MEMORY * 100);
        let tight = Recipe::choose(&Evidence { memory, ..many.clone() });
        assert!(
            tight.micro_batch > 0 && tight.micro_batch.is_multiple_of(16),
            "{tight:?}"
        );
        assert!(tight.micro_batch <= 40 && tight.warning.is_none(), "{tight:?}");

        let none = Recipe::choose(&Evidence { memory: Some(1 << 20), ..many });
        assert!(none.warning.unwrap().contains("lower moe.experts"));
    }

    #[test]
    fn published_models_get_the_published_learning_rate() {
        let shape = shape(512);
        let many = Evidence { concepts: 10_000, trained: 10_000, ..evidence(&shape) };
        let found = Recipe::choose(&many);
        assert!((found.learning_rate - 1e-5).abs() < 1e-12, "{found:?}");
        assert_eq!(found.batch, 256);
        assert_eq!(found.reason("seeds").split(',').next(), Some("one"));
    }

    #[test]
    fn recalls_say_something_about_the_pictures_that_there_are() {
        let shape = shape(64);
        let recalls = |retrieval| {
            Recipe::choose(&Evidence { retrieval, ..evidence(&shape) }).recall_at
        };
        assert_eq!(recalls(3), [1]);
        assert_eq!(recalls(12), [1, 5]);
        assert_eq!(recalls(20), [1, 5, 10]);
    }
}
