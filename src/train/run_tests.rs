//! The loop as a whole: it learns, and an interrupted run ends with the same bits.

use std::sync::Arc;

use super::*;
use crate::config::{Activation, EesdTarget, OptimConfig};
use crate::data::{Batches, Dataset};
use crate::engine::{Backend, Engine, Objective, TeacherPlan, Trainable, Training};
use crate::error::Error;
use crate::model::params::Layout;
use crate::model::{ClipConfig, Moe, TextConfig, VisionConfig, init};

/// Stops a run after some steps, as a kill would.
struct Killer {
    at: usize,
    losses: Vec<f64>,
}

impl Watcher for Killer {
    fn stepped(&mut self, _done: usize, loss: f64) {
        self.losses.push(loss);
    }

    fn validate(
        &mut self,
        engine: &mut dyn Engine,
    ) -> crate::error::Result<Vec<(String, f64)>> {
        if self.losses.len() >= self.at {
            return Err(Error::failed("killed"));
        }
        Ok(vec![("sum".to_owned(), crate::num::sum(&engine.values()?))])
    }
}

fn optim(steps: usize) -> OptimConfig {
    let config = crate::config::load_default(&crate::config::Overrides {
        profile: Some("smoke".to_owned()),
        set: vec![],
    });
    OptimConfig {
        steps,
        checkpoint_every: 4,
        validate_every: 3,
        ..config.unwrap().pretrain.optim
    }
}

fn world(folder: &std::path::Path) -> (Dataset, ClipConfig) {
    let config = crate::config::load_default(&crate::config::Overrides {
        profile: Some("smoke".to_owned()),
        set: vec![],
    });
    let mut quiet = |_: usize, _: usize| {};
    crate::data::build(&config.unwrap().dataset, folder, 0, folder, &mut quiet).unwrap();
    let data = Dataset::open(folder).unwrap();
    let (layers, heads) = (2, 2);
    let vision =
        VisionConfig { image_size: 16, patch: 4, width: 16, layers, heads, hidden: 32 };
    let (context, vocabulary) = (data.meta.context, data.meta.vocabulary);
    let text = TextConfig { context, vocabulary, width: 16, layers, heads, hidden: 32 };
    let activation = Activation::Gelu;
    (data, ClipConfig { embed_dim: 16, activation, vision, text, moe: None })
}

#[test]
fn a_killed_run_ends_with_the_bits_of_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let (data, mut config) = world(folder.path());
    config.moe = Some(Moe {
        experts: 3,
        top_k: 2,
        rank: None,
        vision_blocks: vec![1],
        text_blocks: vec![0, 1],
    });
    let split = Arc::new(data.split("train").unwrap());
    let optim = optim(14);
    let settings = crate::data::BatchSettings {
        batch: optim.batch,
        context: data.meta.context,
        seed: 5,
        augment: optim.augment,
    };
    let batches = Arc::new(Batches::new(split, &data.tokenizer, settings).unwrap());
    let cases = [
        (EesdTarget::Layer, None),
        (EesdTarget::Embedding, None),
        (EesdTarget::Layer, Some(2)),
        (EesdTarget::Embedding, Some(3)),
    ];
    for (target, rank) in cases {
        if let Some(moe) = &mut config.moe {
            moe.rank = rank;
        }
        // Random experts: an MoE from scratch is enough here.
        let mut start = init::dense(&config, 1);
        crate::rng::fill_normal(&mut crate::rng::stream(1, "x"), 0.1, &mut start.values);
        let scratch = tempfile::tempdir().unwrap();
        let teacher = TeacherPlan { target, fraction: 0.5, decay: 0.9 };
        let plan = |scratch: Option<&std::path::Path>| Plan {
            training: Training {
                optim: optim.clone(),
                trainable: Trainable::all(&config),
                objective: Objective {
                    balance: 0.1,
                    router_z: 0.01,
                    eesd: 0.5,
                    label_smoothing: 0.0,
                },
                teacher: Some(teacher),
            },
            backend: Backend::Cpu,
            scratch: scratch.map(std::path::Path::to_owned),
        };
        let run = |at, scratch: Option<&std::path::Path>| {
            let mut killer = Killer { at, losses: Vec::new() };
            let result = train(start.clone(), &batches, &plan(scratch), &mut killer);
            (result, killer.losses.len())
        };
        let (whole, _) = run(usize::MAX, None);
        let whole = whole.unwrap();
        let (killed, _) = run(9, Some(scratch.path()));
        assert!(killed.is_err());
        let (resumed, steps) = run(usize::MAX, Some(scratch.path()));
        let resumed = resumed.unwrap();
        assert_eq!(steps, 14 - 8, "it goes on from the checkpoint of step 8");
        assert_eq!(resumed.record, whole.record);
        let bits = |c: &crate::model::Checkpoint| -> Vec<u32> {
            c.values.iter().map(|v| v.to_bits()).collect()
        };
        assert!(bits(&resumed.checkpoint) == bits(&whole.checkpoint));
        for (parameter, range) in Layout::new(&config).iter() {
            let (old, new) =
                (&start.values[range.clone()], &whole.checkpoint.values[range]);
            assert!(old != new, "{} is not trained", parameter.name);
        }
    }
}

#[test]
fn training_on_shapes_lowers_the_loss_well_below_guessing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = world(folder.path());
    let split = Arc::new(data.split("train").unwrap());
    let optim = optim(120);
    let settings = crate::data::BatchSettings {
        batch: optim.batch,
        context: data.meta.context,
        seed: 5,
        augment: optim.augment,
    };
    let batches = Arc::new(Batches::new(split, &data.tokenizer, settings).unwrap());
    let training = Training {
        optim,
        trainable: Trainable::all(&config),
        objective: Objective::default(),
        teacher: None,
    };
    let plan = Plan { training, backend: Backend::Cpu, scratch: None };
    let mut watcher = Killer { at: usize::MAX, losses: Vec::new() };
    let trained = train(init::dense(&config, 1), &batches, &plan, &mut watcher).unwrap();
    let guessing = 32.0_f64.ln();
    let last = trained.record.recent_loss(10);
    assert!(last < 0.75 * guessing, "{last} at the end, guessing is {guessing}");
}
