//! How long a pipeline takes, before anything runs: the arithmetic of its models over the
//! speed of this machine.
//!
//! Products dominate everything but small stages, so a node's time is its multiplications
//! over what a short matrix product reaches here. That tells minutes from hours and hours from
//! days, which is what a person needs to decide; `upcycle-inspect speed` measures a step.

use std::time::{Duration, Instant};

use serde::Deserialize as _;

use super::forecast::{Shapes, shapes};
use crate::config::Config;
use crate::engine::Backend;
use crate::error::Result;
use crate::linalg::gemm::{self, Rows, Write};
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

/// Side of the product that is timed.
const SIDE: usize = 256;

/// How long products are timed.
const TRIAL: Duration = Duration::from_millis(60);

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

/// The speed of training on this machine, in FLOP a second; `None` where a card computes,
/// whose speed is not measured here.
pub(super) fn speed(config: &Config, threads: usize) -> Result<Option<f64>> {
    if Backend::choose(config.compute())? != Backend::Cpu {
        return Ok(None);
    }
    let products = |_: usize| {
        let (a, b) = (vec![1.0; SIDE * SIDE], vec![1.0; SIDE * SIDE]);
        let mut c = vec![0.0; SIDE * SIDE];
        let (clock, mut count) = (Instant::now(), 0_u32);
        while clock.elapsed() < TRIAL {
            let rows = (Rows::new(&a, SIDE), Rows::new(&b, SIDE));
            gemm::a_bt(&mut c, rows.0, rows.1, Write::Replace);
            count += 1;
        }
        let work = 2.0 * (SIDE * SIDE * SIDE) as f64 * f64::from(count);
        work / clock.elapsed().as_secs_f64()
    };
    let each = par::map(threads, products);
    Ok(Some(EFFICIENCY * each.iter().sum::<f64>()))
}

/// FLOP of one node; `pictures` are those of the evaluated splits, where they are known.
fn work(config: &Config, shapes: &Shapes, node: &Node, pictures: usize) -> f64 {
    let (dense, mixture) = (forward(&shapes.dense), forward(&shapes.mixture));
    let trained = |pair: f64, optim: &crate::config::OptimConfig| {
        let passes = if optim.micro_batch > 0 { MICRO_STEP } else { STEP };
        passes * pair * (optim.steps * optim.batch) as f64
    };
    match node.stage {
        "pretrain" if config.pretrain.checkpoint.is_empty() => {
            trained(dense, &config.pretrain.optim)
        }
        "activations" => dense * config.activations.samples as f64,
        "train" => {
            let name = node.place.run.as_deref().unwrap_or_default();
            let name = name.rsplit_once("-s").map_or(name, |(name, _)| name);

            // A value of a sweep stands behind the name of its run; another number of experts
            // is not counted.
            let name = name.split_once('@').map_or(name, |(name, _)| name);
            let Some(run) = config.runs.get(name) else { return 0.0 };
            let Ok(params) = TrainParams::deserialize(&node.params) else { return 0.0 };
            let is_dense = config
                .inits
                .get(&run.init)
                .and_then(|init| upcycle::find(&init.method).ok())
                .is_some_and(|method| method.form().is_dense());
            let pair = if is_dense { dense } else { mixture };
            let more = if params.eesd > 0.0 && !is_dense { DISTILLS } else { 1.0 };
            more * trained(pair, &params.train.optim)
        }
        // The weights at both ends are measured.
        "evaluate" => 2.0 * mixture * pictures as f64,
        "analyze" => 2.0 * mixture * config.analyze.samples as f64,
        _ => 0.0,
    }
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
    let mut stages: Vec<(&str, f64)> = Vec::new();
    let mut is_empty = true;
    for node in nodes {
        is_empty = false;
        let flop = work(config, shapes, node, pictures);
        match stages.iter_mut().find(|(stage, _)| *stage == node.stage) {
            Some((_, sum)) => *sum += flop,
            None => stages.push((node.stage, flop)),
        }
    }
    if is_empty {
        return Ok(None);
    }

    let Some(speed) = speed(config, threads)? else {
        return Ok(Some(
            "time: not estimated for a card; `upcycle-inspect speed` times a step"
                .to_owned(),
        ));
    };
    let total: f64 = stages.iter().map(|(_, flop)| flop / speed).sum();
    let parts = stages.iter().filter(|(_, flop)| flop / speed >= total / 50.0);
    let parts: Vec<String> = parts
        .filter(|(_, flop)| *flop > 0.0)
        .map(|(stage, flop)| format!("{stage} {}", duration(flop / speed)))
        .collect();
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
    fn longer_training_takes_longer_and_nothing_takes_no_line() {
        let config = |steps: usize| {
            let set = vec![format!("train.optim.steps={steps}"), "device=cpu".to_owned()];
            load_default(&Overrides { profile: None, set }).unwrap()
        };
        let shapes = shapes(&config(10)).unwrap();
        let plan = |config: &Config| {
            crate::stage::plan(config, std::path::Path::new("cache")).unwrap()
        };
        let nodes = plan(&config(10));
        let work = |steps| {
            let (config, nodes) = (config(steps), plan(&config(steps)));
            let train = nodes.iter().find(|node| node.stage == "train").unwrap();
            work(&config, &shapes, train, 0)
        };
        assert!((work(20) / work(10) - 2.0).abs() < 1e-9);

        let none = line(&config(10), std::iter::empty(), 0, 1).unwrap();
        assert_eq!(none, None);
        let all = line(&config(10), nodes.iter(), 0, 1).unwrap().unwrap();
        assert!(all.starts_with("time: about ") && all.contains("train "), "{all}");
    }
}
