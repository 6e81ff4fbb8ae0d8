//! Ranks that train together, each a thread with a card of its own: the number of ranks changes
//! no bit.
#![expect(unsafe_code, reason = "a library is looked for by name")]

use std::sync::Arc;

use libloading::Library;
use upcycle::config::{EesdTarget, Precision};
use upcycle::engine::cpu::Cpu;
use upcycle::engine::cuda::{self, Cuda};
use upcycle::engine::{Backend, Engine, Pairs, StateBuffer, Training, TrainingState};
use upcycle::error::Result;
use upcycle::image::Pixels;
use upcycle::model::ClipConfig;
use upcycle::ranks::{Ranks, Threads};

use crate::emulator::{Late, Order, on_card, session, session_in};
use crate::engine::{distance, low_rank, optim, start, training};
use crate::models::{config, pairs, values};

/// Pairs of a micro-batch, the leaves of the tree of gradients.
const MICRO: usize = 16;

const STEPS: usize = 2;

/// What is trained, and how.
#[derive(Debug, Clone)]
struct Case {
    name: &'static str,
    config: ClipConfig,
    plan: Training,
}

impl Case {
    fn new(
        name: &'static str,
        config: ClipConfig,
        target: Option<EesdTarget>,
        micro_batches: usize,
    ) -> Self {
        let mut plan = training(&config, target);
        plan.optim.batch = MICRO * micro_batches;
        plan.optim.micro_batch = MICRO;
        Self { name, config, plan }
    }

    /// A dense model, mixtures with balance, z and both kinds of distillation, and experts of
    /// low rank.
    fn all() -> [Self; 4] {
        let (layer, embedding) = (EesdTarget::Layer, EesdTarget::Embedding);
        [
            Self::new("dense", config(false), None, 4),
            Self::new("layers distilled", config(true), Some(layer), 4),
            Self::new("embeddings distilled", config(true), Some(embedding), 4),
            Self::new("low rank", low_rank(), Some(layer), 4),
        ]
    }

    /// The batches of all steps, one behind the other.
    fn batches(&self) -> (Vec<f32>, Vec<u32>) {
        pairs(&self.config, STEPS * self.plan.optim.batch)
    }

    /// Makes an engine ready for the first step.
    fn start(&self, engine: &mut dyn Engine) {
        let [student, teacher] =
            ["student", "teacher"].map(|name| values(&self.config, name));
        start(engine, &self.plan, (&student, &teacher));
    }
}

/// Everything that a training leaves behind, as text and bits: losses, statistics, norms,
/// gradients, weights, moments and teacher.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    told: Vec<String>,
    totals: Vec<f64>,
    norms: Vec<f64>,
    gradients: Vec<Vec<u32>>,
    state: TrainingState,
    bits: Vec<Vec<u32>>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Some steps of an engine that is ready, with part `rank` of `count` of every batch.
fn advance(
    engine: &mut dyn Engine,
    case: &Case,
    (rank, count): (usize, usize),
    steps: std::ops::Range<usize>,
) -> Outcome {
    let (pixels, ids) = case.batches();
    let batch = case.plan.optim.batch;
    let (picture, caption) = (pixels.len() / STEPS / batch, ids.len() / STEPS / batch);
    let (mut told, mut totals, mut norms) = (Vec::new(), Vec::new(), Vec::new());
    let mut gradients = Vec::new();
    for step in steps {
        let first = step * batch + rank * batch / count;
        let last = first + batch / count;
        let pixels = Pixels::Values(&pixels[first * picture..last * picture]);
        let pairs = Pairs { pixels, ids: &ids[first * caption..last * caption] };
        let losses = engine.step(pairs).unwrap();

        // The text of a float has all its digits.
        told.push(format!("{losses:?}"));
        totals.push(losses.total);
        gradients.push(bits(&engine.gradient().unwrap()));
        norms.push(engine.update(1e-2).unwrap());
    }

    let state = engine.training_state().unwrap();
    let average = state.average.clone().unwrap_or_default();
    let all = [&state.values, &state.first, &state.second, &average];
    let bits = all.map(|values| bits(values)).into();
    Outcome { told, totals, norms, gradients, state, bits }
}

/// What `work` returns on each of `count` ranks, which have an engine each.
fn on<T: Send>(
    count: usize,
    (config, precision): (&ClipConfig, Precision),
    work: impl Fn(&mut Cuda, &dyn Ranks) -> T + Sync,
) -> Vec<T> {
    let work = |ranks: Arc<dyn Ranks>| {
        let mut engine = Cuda::open(config, ranks.neighbor(), precision).unwrap();
        engine.join(Arc::clone(&ranks)).unwrap();
        work(&mut engine, &*ranks)
    };
    let work = &work;
    std::thread::scope(|scope| {
        let start = |ranks: Threads| scope.spawn(move || work(Arc::new(ranks)));
        let all: Vec<_> = Threads::new(count).into_iter().map(start).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A whole training on some ranks, all of which must have the same.
fn train(count: usize, case: &Case, precision: Precision) -> Outcome {
    let mut all = on(count, (&case.config, precision), |engine, ranks| {
        case.start(engine);
        advance(engine, case, (ranks.rank(), count), 0..STEPS)
    });
    let first = all.swap_remove(0);
    for other in &all {
        assert!(*other == first, "{}: ranks of {count} differ", case.name);
    }
    first
}

/// Whether the machine has as many cards; the emulated one has eight.
fn cards(count: usize) -> bool {
    let there = !on_card() || cuda::require(count - 1).is_ok();
    if !there {
        println!("skipped: {count} ranks need as many cards");
    }
    there
}

#[test]
fn the_number_of_ranks_changes_no_bit() {
    let Some(_session) = session() else { return };
    for case in Case::all() {
        // The tree over ranks does not know the precision: in bf16 its deepest form will do.
        let all = [(Precision::F32, &[2, 4][..]), (Precision::Bf16, &[4][..])];
        for (precision, counts) in all {
            let one = train(1, &case, precision);
            for count in counts.iter().copied().filter(|count| cards(*count)) {
                let other = train(count, &case, precision);
                let name = format!("{} on {count} ranks in {precision:?}", case.name);
                assert_eq!(other.told, one.told, "{name}");
                assert_eq!(other.norms, one.norms, "{name}");
                assert!(other.gradients == one.gradients, "gradients, {name}");
                assert!(other == one, "{name}");
            }
        }
    }
}

/// Three micro-batches for each of two ranks, and six for one.
#[test]
fn ranks_may_have_an_odd_number_of_micro_batches() {
    let Some(_session) = session() else { return };
    let case = Case::new("six micro-batches", config(true), Some(EesdTarget::Layer), 6);
    if cards(2) {
        let one = train(1, &case, Precision::F32);
        assert!(train(2, &case, Precision::F32) == one);
    }
}

/// A vocabulary so large that a rank's part of the gradient goes in two pieces, the second
/// shorter.
#[test]
fn a_large_gradient_travels_in_pieces() {
    let Some(_session) = session() else { return };
    let mut large = config(false);
    large.text.vocabulary = 140_000;
    let case = Case::new("large", large, None, 2);
    let run = |count| {
        let mut all = on(count, (&case.config, Precision::F32), |engine, ranks| {
            engine.load(&values(&case.config, "student")).unwrap();
            engine.start_training(&case.plan).unwrap();
            let own = advance(engine, &case, (ranks.rank(), count), 0..1);
            (own.told, own.norms, own.bits)
        });
        let first = all.swap_remove(0);
        assert!(all.iter().all(|other| *other == first));
        first
    };
    if cards(2) {
        assert!(run(1) == run(2));
    }
}

#[test]
fn ranks_train_as_the_cpu_does() {
    let Some(_session) = session() else { return };
    for case in Case::all().into_iter().filter(|_| cards(4)) {
        let found = train(4, &case, Precision::F32);
        let mut cpu = Cpu::new(&case.config);
        case.start(&mut cpu);
        let truth = advance(&mut cpu, &case, (0, 1), 0..STEPS);

        let name = case.name;
        for step in 0..STEPS {
            let gap = (found.totals[step] - truth.totals[step]).abs();
            assert!(gap < 1e-3, "{name}, step {step}: off by {gap:.1e}");
            let ratio = found.norms[step] / truth.norms[step];
            assert!((ratio - 1.0).abs() < 1e-3, "{name}, step {step}: {ratio}");
        }
        let (found, truth) = (&found.state, &truth.state);
        let off = distance(&found.values, &truth.values);
        assert!(off < 1e-3, "{name}: weights off by {off:.1e}");
        let off = distance(&found.first, &truth.first);
        assert!(off < 2e-3, "{name}: moments off by {off:.1e}");
        if let (Some(found), Some(truth)) = (&found.average, &truth.average) {
            let off = distance(found, truth);
            assert!(off < 1e-3, "{name}: teacher off by {off:.1e}");
        }
    }
}

/// Work that runs as late as it may, on every rank, and threads in another order.
#[test]
fn ranks_may_work_as_late_as_they_like() {
    let case = Case::new("late", config(true), Some(EesdTarget::Embedding), 4);
    let run = |threads, late, count| {
        let _session = session_in(Order { threads, late })?;
        cards(count).then(|| train(count, &case, Precision::Bf16))
    };
    let Some(one) = run(0, Late::Nothing, 1) else { return };
    for (threads, late, count) in
        [(0, Late::Everything, 2), (7, Late::Everything, 4), (0, Late::Kernels, 2)]
    {
        let Some(other) = run(threads, late, count) else { return };
        assert!(other == one, "{late:?} on {count} ranks");
    }
}

/// A checkpoint does not know how many ranks wrote it, and rank 0 alone writes it.
#[test]
fn a_checkpoint_goes_on_with_another_number_of_ranks() {
    let Some(_session) = session() else { return };
    if !cards(4) {
        return;
    }
    let case = Case::new("resumed", config(true), Some(EesdTarget::Layer), 4);
    let whole = train(1, &case, Precision::F32);

    let mut kept = None;
    let mut last = None;
    for (step, count) in [4, 2].into_iter().enumerate() {
        let all = on(count, (&case.config, Precision::F32), |engine, ranks| {
            case.start(engine);
            if let Some(state) = &kept {
                engine.restore(state).unwrap();
            }
            let own = advance(engine, &case, (ranks.rank(), count), step..step + 1);
            let mut streamed = Vec::new();
            let mut put = |piece: &[f32]| {
                streamed.extend_from_slice(piece);
                Ok(())
            };
            engine.stream_state(StateBuffer::First, &mut put).unwrap();
            let expected = if ranks.leads() { own.state.first.clone() } else { vec![] };
            assert!(streamed == expected, "rank {}", ranks.rank());
            own
        });
        kept = Some(all[0].state.clone());
        last = all.into_iter().next();
    }
    assert!(last.unwrap().bits == whole.bits);
}

/// The error of a call on every one of two ranks.
fn refusals(
    case: &Case,
    call: impl Fn(&mut Cuda, &ClipConfig) -> Result<()> + Sync,
) -> Vec<String> {
    on(2, (&case.config, Precision::F32), |engine, _| {
        engine.load(&values(&case.config, "student")).unwrap();
        call(engine, &case.config).unwrap_err().to_string()
    })
}

#[test]
fn what_ranks_cannot_share_is_refused_in_a_sentence() {
    let Some(_session) = session() else { return };
    if !cards(2) {
        return;
    }
    let case = Case::new("refused", config(false), None, 2);
    let mut whole = case.plan.clone();
    whole.optim.micro_batch = 0;
    for error in refusals(&case, |engine, _| engine.start_training(&whole)) {
        assert!(error.contains("optim.micro_batch: found 0"), "{error}");
        assert!(
            error.contains("a batch of 32 pairs into 1 micro-batch that 2"),
            "{error}"
        );
        assert!(error.contains("set `optim.micro_batch=16`"), "{error}");
    }

    // A part of a batch that is no whole number of micro-batches.
    for error in refusals(&case, |engine, config| {
        engine.start_training(&case.plan).unwrap();
        let (pixels, ids) = pairs(config, 20);
        engine.step(Pairs { pixels: Pixels::Values(&pixels), ids: &ids }).map(|_| ())
    }) {
        assert!(error.contains("20 pairs in micro-batches of 16"), "{error}");
    }
    for error in refusals(&case, |engine, config| {
        engine.start_training(&case.plan).unwrap();
        let (pixels, _) = pairs(config, 16);
        engine.image_step(Pixels::Values(&pixels), &mut |_| Ok((0.0, vec![]))).map(|_| ())
    }) {
        assert!(error.contains("fine-tuning runs on one rank"), "{error}");
    }
}

#[test]
fn batches_are_checked_before_an_engine_is_opened() {
    let card = Backend::Cuda { ordinal: 0, precision: Precision::F32 };
    let check = |micro_batch, batch, ranks| {
        let optim =
            upcycle::config::OptimConfig { micro_batch, batch, lanes: 4, ..optim() };
        card.check_share(&optim, ranks).map_err(|error| error.to_string())
    };
    // Lanes are the CPU engine's: eight cards need none.
    for (micro_batch, batch, ranks) in
        [(0, 64, 1), (48, 64, 1), (32, 256, 8), (16, 96, 2)]
    {
        assert_eq!(check(micro_batch, batch, ranks), Ok(()));
    }
    for (micro_batch, batch, ranks) in
        [(0, 64, 2), (64, 64, 2), (32, 64, 4), (48, 192, 8)]
    {
        let error = check(micro_batch, batch, ranks).unwrap_err();
        let remedy = format!("set `optim.micro_batch={}`", batch / ranks);
        assert!(error.contains(&remedy), "{error}");
    }
    let processor = Backend::Cpu;
    assert!(
        processor.check_share(&optim(), 8).unwrap_err().to_string().contains("lanes")
    );
}

/// NCCL wants a card for every rank; so does the choice of cards, before NCCL is asked.
#[test]
fn two_ranks_on_one_card_are_refused() {
    let Some(_session) = session() else { return };
    if on_card() {
        return;
    }
    let config = config(false);
    let join = |ranks: Threads| {
        let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
        engine.join(Arc::new(ranks)).unwrap_err().to_string()
    };
    let join = &join;
    std::thread::scope(|scope| {
        let all: Vec<_> = Threads::new(2)
            .into_iter()
            .map(|ranks| scope.spawn(move || join(ranks)))
            .collect();
        for rank in all {
            let error = rank.join().unwrap();
            assert!(error.contains("NCCL says invalid usage (5)"), "{error}");
        }
    });
}

#[test]
fn every_rank_takes_the_next_card_of_its_machine() {
    let Some(_session) = session() else { return };
    if on_card() {
        return;
    }
    let backend = |ordinal| Backend::Cuda { ordinal, precision: Precision::Bf16 };
    let ranks = Threads::new(4);
    for (rank, own) in ranks.iter().enumerate() {
        assert_eq!(backend(0).on_rank(own).unwrap(), backend(rank));
        assert_eq!(backend(3).on_rank(own).unwrap(), backend(3 + rank));
        assert_eq!(Backend::Cpu.on_rank(own).unwrap(), Backend::Cpu);
    }
    assert_eq!(backend(6).on_rank(&ranks[1]).unwrap(), backend(7));
    let error = backend(6).on_rank(&ranks[2]).unwrap_err().to_string();
    assert!(
        error.contains("rank 2, number 3 on its machine, found no card cuda:8"),
        "{error}"
    );
    assert!(error.contains("as many ranks on a machine as it has cards"), "{error}");
    assert_eq!(backend(6).on_rank(&upcycle::ranks::Alone).unwrap(), backend(6));
}

/// Set for the process in which the emulated NCCL is hidden.
const HIDDEN: &str = "UPCYCLE_EMULATOR_HIDES";

/// What is loaded stays loaded, so a process of its own does without NCCL.
#[test]
fn a_missing_library_is_named_with_what_to_install() {
    let Some(_session) = session() else { return };
    if on_card() {
        return;
    }
    if std::env::var_os(HIDDEN).is_none() {
        let own = "ranks::a_missing_library_is_named_with_what_to_install";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", own, "--nocapture"]).env(HIDDEN, "libnccl.so");
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}{error}");
        return;
    }

    let names = ["libnccl.so", "libnccl.so.2"];
    // SAFETY: the initializers of NCCL have no preconditions.
    let found = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    if let Some(found) = found {
        // SAFETY: the symbol is asked for, and not called.
        let real = unsafe { found.get::<extern "C" fn()>(b"ncclGetVersion") }.is_ok();
        assert!(real, "the emulated library is not hidden");
        println!("skipped: this machine has NCCL itself");
        return;
    }

    let config = config(false);
    let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
    let ranks = Threads::new(2).swap_remove(0);
    let error = engine.join(Arc::new(ranks)).unwrap_err().to_string();
    for part in ["NCCL (libnccl.so.2) was not found", "libnccl2", "nvidia-nccl-cu13"] {
        assert!(error.contains(part), "{error}");
    }
}
