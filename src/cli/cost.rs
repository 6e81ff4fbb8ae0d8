//! How long a pipeline takes, before anything runs: the arithmetic of its models over the
//! speed of this machine.
//!
//! A node's time is its multiplications over what a short matrix product reaches here, the
//! bytes that its optimizer moves over what a short sum of vectors reaches, and what every node
//! costs beside its work. That tells minutes from hours and hours from days, which is what a
//! person needs to decide; `upcycle-inspect speed` measures a step.

use std::time::{Duration, Instant};

use serde::Deserialize as _;

use super::forecast::{Shapes, shapes};
use crate::config::{Config, OptimConfig};
use crate::engine::Backend;
use crate::error::Result;
use crate::linalg::gemm::{self, Rows, Write};
use crate::model::params::parameter_counts;
use crate::model::{ClipConfig, Tower};
use crate::par;
use crate::pipeline::{Node, duration};
use crate::stage::train::TrainParams;
use crate::upcycle;

/// Tokens of a usual caption: one of COCO has about 13 with its marks, and the engine leaves
/// out what lies behind the end.
const CAPTION: usize = 16;

/// What a training step reaches of the speed of a bare product: 102 GFLOP/s of 270 on the
/// machine of docs/scale.md.
const EFFICIENCY: f64 = 0.4;

/// A step is a forward pass and a backward pass of twice its work.
const STEP: f64 = 3.0;

/// Micro-batches repeat the forward pass.
const MICRO_STEP: f64 = 4.0;

/// What self-distillation adds to a step, as docs/benchmarks.md measures it.
const DISTILLS: f64 = 1.04;

/// Values of four bytes that a training step reads or writes for each parameter, used in the
/// batch or not, beside the lanes of gradients, each of which is cleared and added up: the norm
/// reads their sum, and AdamW reads four values and writes three. A large vocabulary pays this
/// in every step.
const TOUCHED: usize = 9;

/// The same for the teacher's average.
const AVERAGED: usize = 3;

/// Seconds of a thread that a node costs beside its arithmetic, for reading its model, its
/// tokenizer and its pictures and for writing its result. 85 nodes of a study of 240 pictures
/// took 11 s of two threads beside their arithmetic, between 0.1 and 0.5 s each.
const NODE: f64 = 0.25;

/// Side of the product that is timed.
const SIDE: usize = 256;

/// Values of each of the two vectors that are added: more than a core's own cache holds.
const VECTOR: usize = 1 << 21;

/// How long each of both is timed.
const TRIAL: Duration = Duration::from_millis(60);

/// What nodes compute and move.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Work {
    /// Multiplications and additions.
    flop: f64,
    /// Bytes that optimizers read and write.
    bytes: f64,
    /// Nodes that begin and end.
    nodes: f64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flop += other.flop;
        self.bytes += other.bytes;
        self.nodes += other.nodes;
    }
}

/// What all threads of this machine do in a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    /// FLOP of a training step.
    pub(super) flop: f64,
    /// Bytes to and from memory.
    pub(super) bytes: f64,
    /// Threads, each of which runs nodes of its own.
    pub(super) threads: usize,
}

impl Speed {
    /// How long the work takes.
    pub(super) fn seconds(self, work: Work) -> f64 {
        let aside = NODE * work.nodes / self.threads as f64;
        work.flop / self.flop + work.bytes / self.bytes + aside
    }
}

/// Multiplications and additions of the forward pass of one pair.
pub(super) fn forward(config: &ClipConfig) -> f64 {
    forward_at(config, CAPTION)
}

/// [`forward`] with captions of so many tokens.
fn forward_at(config: &ClipConfig, caption: usize) -> f64 {
    let experts = config.moe.as_ref().map_or(1, |moe| moe.top_k);
    let tower = |tower: Tower| -> usize {
        let shape = config.tower(tower);
        let tokens = match tower {
            Tower::Vision => shape.tokens,
            Tower::Text => shape.tokens.min(caption),
        };
        let (d, h) = (shape.width, shape.hidden);
        let block = |index: usize| {
            let ffns = if config.is_moe(tower, index) { experts } else { 1 };
            4 * d * d + 2 * tokens * d + 2 * d * h * ffns
        };
        tokens * (0..shape.layers).map(block).sum::<usize>()
    };
    let patches = &config.vision;
    let embedding = patches.patches() * 3 * patches.patch * patches.patch * patches.width;
    2.0 * (tower(Tower::Vision) + tower(Tower::Text) + embedding) as f64
}

/// Bytes that the backward pass of one pair needs to have kept.
pub(super) fn kept(config: &ClipConfig) -> u64 {
    let experts = config.moe.as_ref().map_or(1, |moe| moe.top_k);
    let tower = |tower: Tower| -> usize {
        let shape = config.tower(tower);
        let (t, d, h) = (shape.tokens, shape.width, shape.hidden);
        let block = |index: usize| {
            let ffns = if config.is_moe(tower, index) { experts } else { 1 };
            10 * d + 2 * h * ffns + shape.heads * t
        };
        t * (0..shape.layers).map(block).sum::<usize>()
    };
    4 * (tower(Tower::Vision) + tower(Tower::Text)) as u64
}

/// The speed of training on this machine; `None` where a card computes, whose speed is not
/// measured here.
pub(super) fn speed(config: &Config, threads: usize) -> Result<Option<Speed>> {
    if Backend::choose(config.compute())? != Backend::Cpu {
        return Ok(None);
    }

    // All threads work at the same time, because they share clocks and memory when they train.
    let products = |_: usize| {
        let (a, b) = (vec![1.0; SIDE * SIDE], vec![1.0; SIDE * SIDE]);
        let mut c = vec![0.0; SIDE * SIDE];
        let rows = (Rows::new(&a, SIDE), Rows::new(&b, SIDE));
        let rate = rate(|| gemm::a_bt(&mut c, rows.0, rows.1, Write::Replace));
        2.0 * (SIDE * SIDE * SIDE) as f64 * rate
    };
    let sums = |_: usize| {
        let (mut sum, added) = (vec![1.0_f32; VECTOR], vec![1e-3_f32; VECTOR]);
        let rate = rate(|| sum.iter_mut().zip(&added).for_each(|(sum, own)| *sum += own));
        // Both vectors are read, and one is written.
        (3 * size_of::<f32>() * VECTOR) as f64 * rate
    };
    let flop = EFFICIENCY * par::map(threads, products).iter().sum::<f64>();
    let bytes = par::map(threads, sums).iter().sum();
    Ok(Some(Speed { flop, bytes, threads }))
}

/// How often a second something can be done.
fn rate(mut work: impl FnMut()) -> f64 {
    let (clock, mut count) = (Instant::now(), 0_u32);
    while clock.elapsed() < TRIAL {
        work();
        count += 1;
    }
    f64::from(count) / clock.elapsed().as_secs_f64()
}

/// What of the section of an optimizer decides about the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Length {
    pub(super) steps: usize,
    pub(super) batch: usize,
    pub(super) micro_batch: usize,
    pub(super) lanes: usize,
}

impl Length {
    fn of(optim: &OptimConfig) -> Self {
        let OptimConfig { steps, batch, micro_batch, lanes, .. } = *optim;
        Self { steps, batch, micro_batch, lanes }
    }
}

/// The work of training a model, with a teacher or without.
pub(super) fn training(shape: &ClipConfig, length: &Length, distills: bool) -> Work {
    let Length { steps, batch, micro_batch, lanes } = *length;
    let passes = if micro_batch > 0 { MICRO_STEP } else { STEP };
    let more = if distills { DISTILLS } else { 1.0 };
    let touched = TOUCHED + 2 * lanes + if distills { AVERAGED } else { 0 };
    let parameters = parameter_counts(shape).0;
    Work {
        flop: more * passes * forward(shape) * (steps * batch) as f64,
        bytes: (size_of::<f32>() * touched * parameters * steps) as f64,
        nodes: 0.0,
    }
}

/// The work of one node; `pictures` are those of the evaluated splits, where they are known.
fn work(config: &Config, shapes: &Shapes, node: &Node, pictures: usize) -> Work {
    let (dense, mixture) = (forward(&shapes.dense), forward(&shapes.mixture));
    let arithmetic = |flop: f64| Work { flop, ..Work::default() };

    let own = match node.stage {
        "pretrain" if config.pretrain.checkpoint.is_empty() => {
            training(&shapes.dense, &Length::of(&config.pretrain.optim), false)
        }
        "activations" => arithmetic(dense * config.activations.samples as f64),
        "train" => {
            let name = node.place.run.as_deref().unwrap_or_default();
            let name = name.rsplit_once("-s").map_or(name, |(name, _)| name);

            // A value of a sweep stands behind the name of its run; another number of experts
            // is not counted.
            let name = name.split_once('@').map_or(name, |(name, _)| name);
            let run = config.runs.get(name);
            let method = run.and_then(|run| config.inits.get(&run.init));
            let is_dense = method
                .and_then(|init| upcycle::find(&init.method).ok())
                .is_some_and(|method| method.form().is_dense());
            let shape = if is_dense { &shapes.dense } else { &shapes.mixture };
            match TrainParams::deserialize(&node.params) {
                Ok(TrainParams { train, eesd, .. }) => {
                    training(shape, &Length::of(&train.optim), eesd > 0.0 && !is_dense)
                }
                Err(_) => Work::default(),
            }
        }
        // The weights at both ends are measured.
        "evaluate" => arithmetic(2.0 * mixture * pictures as f64),
        "analyze" => arithmetic(2.0 * mixture * config.analyze.samples as f64),
        _ => Work::default(),
    };
    Work { nodes: 1.0, ..own }
}

/// The time of some nodes in a line; `None` where there is nothing to do. `pictures` are those
/// of the evaluated splits, 0 where they are not known.
pub(super) fn line<'a>(
    config: &Config,
    nodes: impl Iterator<Item = &'a Node>,
    pictures: usize,
    threads: usize,
) -> Result<Option<String>> {
    let shapes = &shapes(config)?;
    let mut stages: Vec<(&str, Work)> = Vec::new();
    for node in nodes {
        let own = work(config, shapes, node, pictures);
        match stages.iter_mut().find(|(stage, _)| *stage == node.stage) {
            Some((_, sum)) => *sum += own,
            None => stages.push((node.stage, own)),
        }
    }
    if stages.is_empty() {
        return Ok(None);
    }

    let Some(speed) = speed(config, threads)? else {
        return Ok(Some(
            "time: not estimated for a card; `upcycle-inspect speed` times a step"
                .to_owned(),
        ));
    };
    let seconds = |(stage, work): (&'a str, Work)| (stage, speed.seconds(work));
    let stages: Vec<(&str, f64)> = stages.into_iter().map(seconds).collect();
    let total: f64 = stages.iter().map(|(_, seconds)| seconds).sum();

    // Stages that hardly count are left out of the sum's parts.
    let parts = stages.iter().filter(|(_, seconds)| *seconds >= total / 50.0);
    let parts: Vec<String> =
        parts.map(|(stage, seconds)| format!("{stage} {}", duration(*seconds))).collect();
    let parts =
        if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    let threads =
        if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
    Ok(Some(format!("time: about {} on {threads}{parts}", duration(total))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Activation, Overrides, load_default};
    use crate::model::{Moe, TextConfig, VisionConfig};

    fn vit_b_32() -> ClipConfig {
        ClipConfig {
            embed_dim: 512,
            activation: Activation::QuickGelu,
            vision: VisionConfig {
                image_size: 224,
                patch: 32,
                width: 768,
                layers: 12,
                heads: 12,
                hidden: 3072,
            },
            text: TextConfig {
                context: 77,
                vocabulary: 49408,
                width: 512,
                layers: 12,
                heads: 8,
                hidden: 2048,
            },
            moe: None,
        }
    }

    #[test]
    fn the_work_of_a_published_model_is_that_of_docs_scale() {
        let dense = vit_b_32();
        let odd = (0..12).filter(|i| i % 2 == 1).collect::<Vec<_>>();
        let moe = Moe {
            experts: 8,
            top_k: 2,
            rank: None,
            vision_blocks: odd.clone(),
            text_blocks: odd,
        };
        let mixture = ClipConfig { moe: Some(moe), ..dense.clone() };
        // 58 GFLOP forward and backward with captions of all 77 tokens.
        let found = STEP * forward_at(&mixture, 77) / 1e9;
        assert!((57.0..59.0).contains(&found), "{found}");
        assert!(forward(&mixture) > forward(&dense));
        assert!(kept(&mixture) > kept(&dense));
    }

    #[test]
    fn words_that_no_caption_has_cost_time_in_every_step() {
        let small = vit_b_32();
        let text = TextConfig { vocabulary: 2 * small.text.vocabulary, ..small.text };
        let large = ClipConfig { text, ..small.clone() };
        let length = Length { steps: 100, batch: 64, micro_batch: 0, lanes: 4 };
        let (small, large) =
            (training(&small, &length, false), training(&large, &length, false));
        assert!(large.bytes > small.bytes);
        let speed = Speed { flop: 1e11, bytes: 1e10, threads: 1 };
        // 49,408 words of 512 values, 17 times four bytes each, in 100 steps.
        let more = 49_408.0 * 512.0 * 17.0 * 4.0 * 100.0 / 1e10;
        let found = speed.seconds(large) - speed.seconds(small);
        assert!((found / more - 1.0).abs() < 1e-9, "{found} {more}");
    }

    #[test]
    fn longer_training_takes_longer_and_nothing_takes_no_line() {
        let config = |steps: usize| {
            let set = vec![format!("train.optim.steps={steps}"), "device=cpu".to_owned()];
            load_default(&Overrides { profile: None, set }).unwrap()
        };
        let shapes = shapes(&config(10)).unwrap();
        let plan = |config: &Config| {
            crate::stage::plan(config, std::path::Path::new("cache")).unwrap()
        };
        let work = |steps| {
            let (config, nodes) = (config(steps), plan(&config(steps)));
            let train = nodes.iter().find(|node| node.stage == "train").unwrap();
            work(&config, &shapes, train, 0)
        };
        let speed = Speed { flop: 1e11, bytes: 1e10, threads: 2 };
        let seconds = |steps| speed.seconds(Work { nodes: 0.0, ..work(steps) });
        assert!((seconds(20) / seconds(10) - 2.0).abs() < 1e-9);
        assert!((speed.seconds(work(10)) - seconds(10) - NODE / 2.0).abs() < 1e-9);

        let none = line(&config(10), std::iter::empty(), 0, 1).unwrap();
        assert_eq!(none, None);
        let nodes = plan(&config(10));
        let all = line(&config(10), nodes.iter(), 0, 1).unwrap().unwrap();
        assert!(all.starts_with("time: about ") && all.contains("train "), "{all}");
    }
}
