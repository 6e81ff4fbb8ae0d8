//! What a rank of a test does.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use upcycle::config::{Activation, EesdTarget, OptimConfig, Overrides, load_default};
use upcycle::data::{BatchSettings, Batches, Dataset, Shuffled};
use upcycle::engine::{Backend, Engine, Objective, TeacherPlan, Trainable, Training};
use upcycle::error::Result;
use upcycle::model::{ClipConfig, Moe, TextConfig, VisionConfig, init};
use upcycle::ranks::mpi::Session;
use upcycle::ranks::{Alone, Ranks, Shards};
use upcycle::train::{self, Plan, Watcher};

/// Runs a scenario as one of `count` ranks; files are in `folder`.
pub(crate) fn run(scenario: &str, count: &str, folder: &str) -> ExitCode {
    let count: usize = count.parse().expect("a number of ranks");
    if count == 1 {
        return act(scenario, Arc::new(Alone), Path::new(folder));
    }

    let patience = Duration::from_secs(if scenario == "hang" { 2 } else { 60 });
    let say = |text: &str| eprintln!("{text}");
    match Session::join(count, patience, Box::new(say)) {
        Ok(session) => act(scenario, session.ranks(), Path::new(folder)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn act(scenario: &str, ranks: Arc<dyn Ranks>, folder: &Path) -> ExitCode {
    match scenario {
        "collectives" => collectives(&*ranks),
        "panic" => {
            assert!(ranks.rank() != 1, "rank 1 panics");
            ranks.gather(&[1.0], &mut vec![0.0; ranks.count()]).expect("a gather");
        }
        "hang" => {
            if ranks.rank() == 1 {
                std::thread::sleep(Duration::from_mins(10));
            }
            ranks.enter("step 7");
            ranks.gather(&[1.0], &mut vec![0.0; ranks.count()]).expect("a gather");
        }
        "train" => training(ranks, folder).expect("a training"),
        other => panic!("there is no scenario {other}"),
    }
    ExitCode::SUCCESS
}

/// Every collective, with blocks larger than what MPI sends eagerly.
fn collectives(ranks: &dyn Ranks) {
    let (rank, count) = (ranks.rank(), ranks.count());
    let value = |rank: usize, i: usize| ((rank * 7919 + i * 13) % 1009) as f32 * 0.37;
    let len = 300_000;

    let own: Vec<f32> = (0..len).map(|i| value(rank, i)).collect();
    let mut all = vec![0.0; len * count];
    ranks.gather(&own, &mut all).expect("a gather");
    let expected = |from: usize| (0..len).map(move |i| value(from, i).to_bits());
    let found = all.iter().map(|v| v.to_bits());
    assert!(found.eq((0..count).flat_map(expected)));

    let sent: Vec<u64> = (0..count).map(|to| (100 * rank + to) as u64).collect();
    let mut received = vec![0; count];
    ranks.exchange(&sent, &mut received).expect("an exchange");
    assert!(received.into_iter().eq((0..count).map(|from| (100 * from + rank) as u64)));

    // A block that does not fill its last round, with a gap.
    let shards = Shards::new(&[5..1000, 2000..2_900_001], ranks);
    let mut buffer: Vec<f32> = (0..2_900_001).map(|i| value(rank, i)).collect();
    shards.sum(ranks, &mut buffer).expect("a sum");
    shards.share(ranks, &mut buffer).expect("a share");
    for (i, found) in buffer.iter().enumerate() {
        let mut sums: Vec<f32> = (0..count).map(|rank| value(rank, i)).collect();
        while sums.len() > 1 {
            sums = sums.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
        }
        let gap = i < 5 || (1000..2000).contains(&i);
        let expected = if gap { value(rank, i) } else { sums[0] };
        assert_eq!(found.to_bits(), expected.to_bits(), "{i}");
    }
    assert_eq!(
        ranks.tell(&"é".repeat(rank)).expect("texts")[count - 1].chars().count(),
        count - 1
    );
}

struct Quiet;

impl Watcher for Quiet {
    fn resumed(&mut self, done: usize) {
        println!("resumed {done}");
    }

    fn stepped(&mut self, _done: usize, _loss: f64) {}

    fn validate(&mut self, _engine: &mut dyn Engine) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }
}

/// Trains a small mixture on the data set in `folder`, with checkpoints there, and prints the
/// digest of the model and its record.
fn training(ranks: Arc<dyn Ranks>, folder: &Path) -> Result<()> {
    println!("rank {} is process {}", ranks.rank(), std::process::id());
    let data = Dataset::open(&folder.join("dataset"))?;
    let split = Arc::new(data.split("train")?);
    let smoke = Overrides { profile: Some("smoke".to_owned()), set: vec![] };
    let (batch, seed) = (64, 3);
    let optim = OptimConfig {
        steps: 60,
        batch,
        checkpoint_every: 5,
        validate_every: 0,
        ..load_default(&smoke)?.train.optim
    };
    let context = data.meta.context;
    let settings = BatchSettings { batch, context, seed, augment: optim.augment };
    let sampler = Box::new(Shuffled::new(split.len(), batch, seed)?);
    let batches = Batches::with_sampler(split, &data.tokenizer, settings, sampler)?;

    let config = shape(context, data.meta.vocabulary);
    let training = Training {
        optim,
        trainable: Trainable::all(&config),
        objective: Objective {
            balance: 0.1,
            router_z: 0.01,
            eesd: 0.1,
            label_smoothing: 0.0,
        },
        teacher: Some(TeacherPlan {
            target: EesdTarget::Layer,
            fraction: 0.3,
            decay: 0.9,
        }),
    };
    let leads = ranks.leads();
    let (backend, scratch) = (Backend::Cpu, Some(folder.join("scratch")));
    let plan = Plan { training, backend, scratch, ranks };
    let trained =
        train::train(init::dense(&config, 1), &Arc::new(batches), &plan, &mut Quiet)?;

    let mut digest = blake3::Hasher::new();
    for value in &trained.checkpoint.values {
        digest.update(&value.to_le_bytes());
    }
    digest.update(&serde_json::to_vec(&trained.record).expect("a record"));
    if leads {
        println!("digest {}", digest.finalize());
    }
    Ok(())
}

fn shape(context: usize, vocabulary: usize) -> ClipConfig {
    let (layers, heads, hidden, width) = (2, 2, 64, 32);
    ClipConfig {
        embed_dim: 32,
        activation: Activation::Gelu,
        vision: VisionConfig { image_size: 16, patch: 4, width, layers, heads, hidden },
        text: TextConfig { context, vocabulary, width, layers, heads, hidden },
        moe: Some(Moe {
            experts: 4,
            top_k: 2,
            rank: None,
            vision_blocks: vec![1],
            text_blocks: vec![1],
        }),
    }
}
