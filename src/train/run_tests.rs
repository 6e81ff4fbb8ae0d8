//! The loop as a whole: it learns, and an interrupted run ends with the same bits.

use std::sync::Arc;

use super::*;
use crate::config::{Activation, EesdTarget, OptimConfig};
use crate::data::{Batches, Dataset, Shuffled};
use crate::engine::{Backend, Engine, Objective, TeacherPlan, Trainable, Training};
use crate::error::Error;
use crate::model::names::{ParameterId, Part};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Moe, TextConfig, VisionConfig, init};
use crate::ranks::{Alone, Ranks as _, Threads};

/// Stops a run after some steps, as a kill would.
struct Killer {
    at: usize,
    losses: Vec<f64>,
    resumed: Option<usize>,
}

impl Watcher for Killer {
    fn resumed(&mut self, done: usize) {
        self.resumed = Some(done);
    }

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
            ranks: Arc::new(Alone),
        };
        let run = |at, scratch: Option<&std::path::Path>| {
            let mut killer = Killer { at, losses: Vec::new(), resumed: None };
            let result = train(start.clone(), &batches, &plan(scratch), &mut killer);
            (result, (killer.losses.len(), killer.resumed))
        };
        let (whole, _) = run(usize::MAX, None);
        let whole = whole.unwrap();
        let (killed, _) = run(9, Some(scratch.path()));
        assert!(killed.is_err());
        let (resumed, steps) = run(usize::MAX, Some(scratch.path()));
        let resumed = resumed.unwrap();
        let (steps, told) = steps;
        assert_eq!(steps, 14 - 8, "it goes on from the checkpoint of step 8");
        assert_eq!(told, Some(8), "people are told where it goes on");
        assert_eq!(resumed.record, whole.record);
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
    let plan =
        Plan { training, backend: Backend::Cpu, scratch: None, ranks: Arc::new(Alone) };
    let mut watcher = Killer { at: usize::MAX, losses: Vec::new(), resumed: None };
    let trained = train(init::dense(&config, 1), &batches, &plan, &mut watcher).unwrap();
    let guessing = 32.0_f64.ln();
    let last = trained.record.recent_loss(10);
    assert!(last < 0.75 * guessing, "{last} at the end, guessing is {guessing}");
}

/// A training on several ranks, each a thread with a pool of its own; what rank 0 has comes
/// back, and whether any rank failed.
fn on_ranks(
    count: usize,
    start: &crate::model::Checkpoint,
    batches: &Arc<Batches>,
    (plan, at): (&Plan, usize),
) -> crate::error::Result<Trained> {
    let work = |ranks: Threads| {
        // Threads differ from rank to rank, which must not matter either.
        let threads = 1 + ranks.rank() % 3;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let plan = Plan { ranks: Arc::new(ranks), ..plan.clone() };
        let mut killer = Killer { at, losses: Vec::new(), resumed: None };
        pool.install(|| train(start.clone(), batches, &plan, &mut killer))
    };
    std::thread::scope(|scope| {
        let work = &work;
        let all = Threads::new(count).into_iter();
        let all: Vec<_> = all.map(|ranks| scope.spawn(move || work(ranks))).collect();
        let mut all = all.into_iter().map(|rank| rank.join().unwrap());
        let first = all.next().unwrap();
        let others: Vec<_> = all.collect();

        // All ranks end with the same model, or all fail.
        for other in others {
            match (&first, other) {
                (Ok(first), Ok(other)) => {
                    assert!(bits(&first.checkpoint) == bits(&other.checkpoint));
                }
                (Err(_), Err(_)) => {}
                (first, other) => panic!("{first:?} and {other:?}"),
            }
        }
        first
    })
}

fn bits(model: &crate::model::Checkpoint) -> Vec<u32> {
    model.values.iter().map(|v| v.to_bits()).collect()
}

/// What differs between trainings that must not depend on the number of ranks.
struct Variant {
    target: EesdTarget,
    rank: Option<usize>,
    routers_alone: bool,
    micro_batch: usize,
}

/// Model, losses, norms and routing are the same on 1, 2 and 4 ranks, and when a run is killed
/// on 4 ranks, goes on on 2, is killed again, and ends on 1.
#[test]
fn the_number_of_ranks_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (data, mut config) = world(folder.path());
    config.moe = Some(Moe {
        experts: 3,
        top_k: 2,
        rank: None,
        vision_blocks: vec![1],
        text_blocks: vec![0],
    });
    let split = Arc::new(data.split("train").unwrap());
    let (batch, seed) = (64, 5);
    let optim = OptimConfig { batch, validate_every: 1, checkpoint_every: 1, ..optim(4) };
    let settings = crate::data::BatchSettings {
        batch,
        context: data.meta.context,
        seed,
        augment: optim.augment,
    };
    let sampler = Box::new(Shuffled::new(split.len(), batch, seed).unwrap());
    let batches = Batches::with_sampler(split, &data.tokenizer, settings, sampler);
    let batches = Arc::new(batches.unwrap());

    let (layer, embedding) = (EesdTarget::Layer, EesdTarget::Embedding);
    for (target, rank, routers_alone, micro_batch) in [
        (layer, None, false, 0),
        (embedding, None, false, 16),
        (layer, Some(2), false, 0),
        (embedding, Some(2), true, 0),
        (layer, None, true, 16),
    ] {
        let variant = Variant { target, rank, routers_alone, micro_batch };
        if let Some(moe) = &mut config.moe {
            moe.rank = variant.rank;
        }
        same_on_any_ranks(&config, &optim, &batches, &variant);
    }
}

/// A record in words, digit by digit: the ratio of a run that trains no expert is not a number,
/// and as such not equal to itself.
fn text(record: &Record) -> String {
    format!("{record:?}")
}

fn same_on_any_ranks(
    config: &ClipConfig,
    optim: &OptimConfig,
    batches: &Arc<Batches>,
    variant: &Variant,
) {
    let mut start = init::dense(config, 1);
    crate::rng::fill_normal(&mut crate::rng::stream(1, "x"), 0.1, &mut start.values);
    let trainable = Trainable::only(config, |id| {
        !variant.routers_alone || matches!(id, ParameterId::Block(_, _, Part::Router))
    });
    let teacher = TeacherPlan { target: variant.target, fraction: 0.5, decay: 0.9 };
    let plan = |scratch: Option<&std::path::Path>| Plan {
        training: Training {
            optim: OptimConfig { micro_batch: variant.micro_batch, ..optim.clone() },
            trainable: trainable.clone(),
            objective: Objective {
                balance: 0.1,
                router_z: 0.01,
                eesd: 0.5,
                label_smoothing: 0.1,
            },
            teacher: Some(teacher),
        },
        backend: Backend::Cpu,
        scratch: scratch.map(std::path::Path::to_owned),
        ranks: Arc::new(Alone),
    };

    let never = usize::MAX;
    let whole = on_ranks(1, &start, batches, (&plan(None), never)).unwrap();
    assert!(bits(&start) != bits(&whole.checkpoint));
    for count in [2, 4] {
        let own = on_ranks(count, &start, batches, (&plan(None), never)).unwrap();
        assert!(bits(&own.checkpoint) == bits(&whole.checkpoint), "{count} ranks");
        assert_eq!(text(&own.record), text(&whole.record), "{count} ranks");
    }

    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(Some(scratch.path()));
    assert!(on_ranks(4, &start, batches, (&plan, 2)).is_err());
    assert!(on_ranks(2, &start, batches, (&plan, 2)).is_err());
    let own = on_ranks(1, &start, batches, (&plan, never)).unwrap();
    assert!(bits(&own.checkpoint) == bits(&whole.checkpoint), "resumed");
    assert_eq!(text(&own.record), text(&whole.record), "resumed");
}

#[test]
fn a_batch_or_lanes_that_ranks_cannot_share_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = world(folder.path());
    let split = Arc::new(data.split("train").unwrap());
    let refused = |batch: usize, ranks: usize| {
        let optim = OptimConfig { batch, ..optim(1) };
        let settings = crate::data::BatchSettings {
            batch,
            context: data.meta.context,
            seed: 5,
            augment: optim.augment,
        };
        let sampler = Box::new(Shuffled::new(split.len(), batch, 5).unwrap());
        let split = Arc::clone(&split);
        let batches = Batches::with_sampler(split, &data.tokenizer, settings, sampler);
        let training = Training {
            optim,
            trainable: Trainable::all(&config),
            objective: Objective::default(),
            teacher: None,
        };
        let (backend, alone) = (Backend::Cpu, Arc::new(Alone));
        let plan = Plan { training, backend, scratch: None, ranks: alone };
        let start = init::dense(&config, 1);
        let batches = Arc::new(batches.unwrap());
        on_ranks(ranks, &start, &batches, (&plan, usize::MAX)).unwrap_err().to_string()
    };
    let error = refused(48, 4);
    assert!(error.contains("48 pairs, which 4 ranks cannot share"), "{error}");
    let error = refused(128, 8);
    assert!(error.contains("optim.lanes: found 4, which 8 ranks"), "{error}");
}
