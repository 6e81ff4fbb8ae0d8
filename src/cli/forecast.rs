//! What the configured mixture will be and what it will cost, before anything runs.
//!
//! Shapes and counts are exact: they follow from the configuration, or from the checkpoint
//! that is to be upcycled. Memory is that of the buffers of one step; the activations of a
//! batch are added to it.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::error::Result;
use crate::model::names::parameters;
use crate::model::params::parameter_counts;
use crate::model::{ClipConfig, Tower};
use crate::pipeline::memory::size;
use crate::stage::pretrain::dense;
use crate::stage::upcycle::placement;
use crate::upcycle;

/// Bytes of a stored or trained value.
const WIDTH: u64 = 4;

/// Bytes that one node of a stage needs, roughly: copies of its largest model. Zero where
/// the data and not the model decides.
pub(super) fn need(config: &Config, stage: &str) -> u64 {
    // A configuration that cannot be planned fails later, with its own message.
    let Ok(mixture) = mixture(config) else { return 0 };
    let total = parameter_counts(&mixture).0;
    bytes(match stage {
        "train" => (training_buffers(config) + 2) * total,
        "upcycle" => making(&mixture),
        "evaluate" | "analyze" => 2 * total,
        _ => 0,
    })
}

/// Values that are in memory while a mixture is written: the dense model, one layer, and as
/// much again for its subspaces.
fn making(mixture: &ClipConfig) -> usize {
    let dense = ClipConfig { moe: None, ..mixture.clone() };

    // Layers are made one after the other, so the largest decides.
    let layer = |tower, block| -> usize {
        let all = parameters(mixture).into_iter();
        let own = all.filter(|p| p.id.block() == Some((tower, block)));
        own.filter(|p| p.id.is_moe()).map(|p| p.len()).sum()
    };
    let blocks = |tower| mixture.moe_blocks(tower).iter().map(move |&b| layer(tower, b));
    let largest = Tower::BOTH.into_iter().flat_map(blocks).max();
    parameter_counts(&dense).0 + 2 * largest.unwrap_or(0)
}

/// Values that training holds for each parameter, with a teacher: weights, two moments, the
/// lanes of gradients, and the EMA.
pub(super) fn training_copies(lanes: usize) -> usize {
    4 + lanes
}

/// [`training_copies`], without the EMA where no run has a teacher.
fn training_buffers(config: &Config) -> usize {
    training_copies(config.train.optim.lanes)
        - usize::from(config.runs.values().all(|run| run.eesd <= 0.0))
}

/// The models of a pipeline.
#[derive(Debug)]
pub(super) struct Shapes {
    /// Before upcycling.
    pub(super) dense: ClipConfig,
    /// After it.
    pub(super) mixture: ClipConfig,
}

/// The model before and after upcycling.
pub(super) fn shapes(config: &Config) -> Result<Shapes> {
    Ok(Shapes { dense: dense(config)?, mixture: mixture(config)? })
}

/// The shape of the configured mixture.
fn mixture(config: &Config) -> Result<ClipConfig> {
    let dense = dense(config)?;
    let placement = placement(&config.moe, &dense, None);
    Ok(ClipConfig { moe: Some(placement), ..dense })
}

/// Bytes of this many values.
fn bytes(values: usize) -> u64 {
    WIDTH * values as u64
}

/// The forecast in lines.
pub(super) fn lines(config: &Config) -> Result<Vec<String>> {
    let dense = dense(config)?;
    let (plain, _) = parameter_counts(&dense);
    let moe = &config.moe;
    let mixture = mixture(config)?;
    let (total, active) = parameter_counts(&mixture);

    let mut lines = vec![
        format!("dense model: {plain} parameters, {}", size(bytes(plain))),
        format!(
            "mixture: {total} parameters, {active} active ({} of {} experts), {}",
            moe.top_k,
            moe.experts,
            size(bytes(total))
        ),
    ];
    lines.extend(layers(&mixture));

    // Several runs may start from one initialization, which is on disk once.
    let used: BTreeSet<&String> = config.runs.values().map(|run| &run.init).collect();
    let inits = Models::count(config, used);
    let runs = Models::count(config, config.runs.values().map(|run| &run.init));
    let disk = |models: &Models| {
        models.dense as u64 * bytes(plain) + models.mixtures as u64 * bytes(total)
    };
    lines.push(format!(
        "disk: {} for {} initializations, {} for {} runs",
        size(disk(&inits)),
        inits.dense + inits.mixtures,
        // A run keeps its weights at step 0 and at the end.
        size(2 * disk(&runs)),
        runs.dense + runs.mixtures
    ));

    lines.extend(swept(config)?);

    let buffers = training_buffers(config);
    lines.push(format!(
        "memory: {} to build a mixture, {} to train it and the activations of {} samples",
        size(bytes(making(&mixture))),
        size(bytes(buffers * total)),
        config.train.optim.batch
    ));
    Ok(lines)
}

/// What section `sweep` adds, if it has a factor.
fn swept(config: &Config) -> Result<Option<String>> {
    let sweep = &config.sweep;
    let mut values = 0;
    for (name, factor) in &sweep.factors {
        // Every factor has a default, which many share.
        values += config.sweep_points(name, factor)?.len() - 1;
    }
    let (factors, seeds) = (sweep.factors.len(), sweep.seeds.len());
    Ok((factors > 0).then(|| {
        format!(
            "sweep: {} trainings and their defaults, for {values} values of {factors} factors \
             on {seeds} seeds",
            values * seeds
        )
    }))
}

/// How many models of either kind there are, over all seeds.
struct Models {
    dense: usize,
    mixtures: usize,
}

impl Models {
    /// Counts the models of some initializations; one may be named several times.
    fn count<'a>(config: &Config, inits: impl IntoIterator<Item = &'a String>) -> Self {
        let is_dense = |name: &String| {
            config.inits.get(name).is_some_and(|init| {
                upcycle::find(&init.method).is_ok_and(|method| method.form().is_dense())
            })
        };

        // Every initialization is made once for each seed.
        let seeds = config.seeds.len();
        let (dense, mixtures): (Vec<_>, Vec<_>) =
            inits.into_iter().partition(|name| is_dense(name));
        Self { dense: seeds * dense.len(), mixtures: seeds * mixtures.len() }
    }
}

/// The tensors of each MoE layer.
fn layers(mixture: &ClipConfig) -> Vec<String> {
    let all = parameters(mixture);
    let mut lines = Vec::new();
    for tower in Tower::BOTH {
        for &block in mixture.moe_blocks(tower) {
            // The line begins with the block, so the names go on without it.
            let prefix = crate::model::names::block(tower, block).prefix();
            let own = all
                .iter()
                .filter(|p| p.id.is_moe() && p.id.block() == Some((tower, block)));
            let shapes: Vec<String> = own
                .map(|p| {
                    let name = p.name.strip_prefix(&prefix).unwrap_or(&p.name);
                    format!("{name} {:?}", p.shape)
                })
                .collect();

            lines.push(format!("  {}.{block}: {}", tower.name(), shapes.join(", ")));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load_default};

    fn config(set: &[&str]) -> Config {
        let set = set.iter().map(|&s| s.to_owned()).collect();
        load_default(&Overrides { profile: None, set }).unwrap()
    }

    #[test]
    fn the_forecast_counts_what_the_model_will_hold() {
        let config = config(&[]);
        let text = lines(&config).unwrap().join("\n");
        let mixture = dense(&config).unwrap();
        let (plain, _) = parameter_counts(&mixture);
        assert!(text.contains(&format!("dense model: {plain} parameters")), "{text}");
        assert!(text.contains("(2 of 8 experts)"), "{text}");
        assert!(text.contains("vision.3: moe.router.weight [8, 64]"), "{text}");
        assert!(text.contains("moe.experts.c_proj.bias [8, 64]"), "{text}");
        assert!(text.contains("disk: ") && text.contains("memory: "), "{text}");
    }

    #[test]
    fn a_checkpoint_that_is_another_model_is_refused_with_what_to_set() {
        let folder =
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/clip-tiny-quickgelu/hf");
        let given = format!("pretrain.checkpoint={folder}");
        let error = lines(&config(&[&given])).unwrap_err().to_string();
        assert!(error.contains("model.vision.layers=3"), "{error}");
        assert!(error.contains("model.activation=quick_gelu"), "{error}");
        assert!(!error.contains("dataset.image_size"), "{error}");
        let set = error.rsplit_once("set: ").unwrap().1.to_owned();
        let all: Vec<&str> = std::iter::once(given.as_str())
            .chain(set.split(' '))
            .chain(["moe.vision_blocks={list: [2]}", "moe.text_blocks={list: [1]}"])
            .collect();
        let text = lines(&config(&all)).unwrap().join("\n");
        assert!(text.contains("dense model: 71801 parameters"), "{text}");
    }
}
