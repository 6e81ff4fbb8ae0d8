//! The whole engine against the CPU engine on tiny models.

use upcycle::config::{EesdTarget, OptimConfig};
use upcycle::engine::cpu::clip::{Clip, Engine as CpuEngine, Pairs as CpuPairs};
use upcycle::engine::cuda::{Cuda, Precision};
use upcycle::engine::{
    Engine as _, Losses, Objective, Pairs, TeacherPlan, TowerInput, Trainable, Training,
};
use upcycle::model::params::Layout;
use upcycle::model::{ClipConfig, Tower};
use upcycle::train::{Distiller, Stepper};

use crate::emulator::{Order, session, session_in};
use crate::models::{config, pairs, values};
use crate::truth::gap;

const WEIGHTS: (f64, f64, f64) = (0.5, 0.3, 0.7);

fn optim() -> OptimConfig {
    OptimConfig {
        steps: 3,
        batch: 40,
        learning_rate: 1e-2,
        final_learning_rate: 0.0,
        warmup: 0,
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-6,
        weight_decay: 0.2,
        clip_norm: 1.0,
        augment: upcycle::config::Augment::None,
        validate_every: 0,
        checkpoint_every: 0,
    }
}

fn training(config: &ClipConfig, target: Option<EesdTarget>) -> Training {
    let decays = |decay| Trainable::Train { decay };
    let layout = Layout::new(config);
    let (balance, router_z, eesd) = WEIGHTS;
    Training {
        optim: optim(),
        trainable: layout.iter().map(|(p, _)| decays(p.role.decays())).collect(),
        objective: Objective { balance, router_z, eesd, label_smoothing: 0.0 },
        teacher: target.map(|target| TeacherPlan { target, share: 0.4, decay: 0.9 }),
    }
}

/// A CUDA engine at `values`, with a teacher at `taught`.
fn open(
    config: &ClipConfig,
    precision: Precision,
    (values, taught): (&[f32], &[f32]),
    target: Option<EesdTarget>,
) -> Cuda {
    let mut engine = Cuda::open(config, 0, precision).unwrap();
    engine.load(taught).unwrap();
    engine.start_training(&training(config, target)).unwrap();
    engine.load(values).unwrap();
    engine
}

fn step(engine: &mut Cuda, (pixels, ids): &(Vec<f32>, Vec<u32>)) -> (Losses, Vec<f32>) {
    let losses = engine.step(Pairs { pixels, ids }).unwrap();
    (losses, engine.gradient().unwrap())
}

/// Losses and gradient of the CPU engine.
fn reference(
    config: &ClipConfig,
    (values, taught): (&[f32], &[f32]),
    target: Option<EesdTarget>,
    (pixels, ids): &(Vec<f32>, Vec<u32>),
) -> (upcycle::train::Losses, Vec<f32>) {
    let mut stepper = Stepper::new(CpuEngine::new(Clip::new(config)));
    let mut gradient = vec![0.0; values.len()];
    let (balance, router_z, eesd) = WEIGHTS;
    let objective = upcycle::train::Objective { balance, router_z, eesd };
    let distiller = match target {
        None => Distiller::None,
        Some(EesdTarget::Layer) => Distiller::Layers(taught, 0.4),
        Some(EesdTarget::Embedding) => Distiller::Embeddings(taught),
    };
    let own = CpuPairs { pixels, ids };
    let losses = stepper.run((values, &mut gradient), own, &objective, distiller);
    (losses, gradient)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Largest gap of any tensor's gradient, relative to the tensor's largest value.
fn worst(config: &ClipConfig, found: &[f32], truth: &[f32]) -> (f64, String) {
    let layout = Layout::new(config);
    let each = layout.iter().map(|(parameter, range)| {
        let truth = wide(&truth[range.clone()]);
        (gap(&found[range], &truth), parameter.name.clone())
    });
    each.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// |found - truth| / |truth| over all values.
fn distance(found: &[f32], truth: &[f32]) -> f64 {
    let square =
        |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let pairs = found.iter().zip(truth);
    let gaps = square(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (gaps / square(&mut truth.iter().map(|v| f64::from(*v)))).sqrt()
}

const KINDS: [(bool, Option<EesdTarget>); 4] = [
    (false, None),
    (true, None),
    (true, Some(EesdTarget::Layer)),
    (true, Some(EesdTarget::Embedding)),
];

#[test]
fn losses_and_every_gradient_equal_the_cpu_in_f32() {
    let Some(_session) = session() else { return };
    for (moe, target) in KINDS {
        let config = config(moe);
        let (student, teacher) = (values(&config, "student"), values(&config, "teacher"));
        let weights = (student.as_slice(), teacher.as_slice());
        let batch = pairs(&config, 37);
        let (expected, truth) = reference(&config, weights, target, &batch);
        let mut engine = open(&config, Precision::F32, weights, target);
        let (losses, gradient) = step(&mut engine, &batch);
        let near = |what: &str, a: f64, b: f64| {
            assert!(
                (a - b).abs() < 2e-5 * (1.0 + b.abs()),
                "{moe} {target:?} {what}: {a} {b}"
            );
        };
        near("clip", losses.clip, expected.clip);
        near("balance", losses.balance, expected.balance);
        near("router z", losses.router_z, expected.router_z);
        near("eesd", losses.eesd, expected.eesd);
        near("total", losses.total, expected.total);
        for (own, other) in losses.layers.iter().zip(&expected.layers) {
            assert_eq!((own.0, own.1), (other.0, other.1));
            assert_eq!(own.2.counts, other.2.counts);
            near("rows", own.2.rows, other.2.rows);
            near("entropy", own.2.entropy, other.2.entropy);
        }
        assert_eq!(losses.layers.len(), expected.layers.len());
        let (off, name) = worst(&config, &gradient, &truth);
        assert!(off < 5e-5, "{moe} {target:?} {name}: off by {off:.2e}");
    }
}

#[test]
fn losses_and_gradients_are_near_the_cpu_in_bf16() {
    let Some(_session) = session() else { return };
    for (moe, target) in KINDS {
        let config = config(moe);
        let (student, teacher) = (values(&config, "student"), values(&config, "teacher"));
        let weights = (student.as_slice(), teacher.as_slice());
        let batch = pairs(&config, 37);
        let (expected, truth) = reference(&config, weights, target, &batch);
        let mut engine = open(&config, Precision::Bf16, weights, target);
        let (losses, gradient) = step(&mut engine, &batch);
        let off = (losses.total - expected.total).abs() / expected.total;
        assert!(off < 0.02, "{moe} {target:?}: {} {}", losses.total, expected.total);
        let off = distance(&gradient, &truth);
        println!("bf16 {moe} {target:?}: gradient off by {off:.3}");
        assert!(off < 0.08, "{moe} {target:?}: gradient off by {off:.3}");
    }
}

#[test]
fn micro_batches_have_the_gradient_of_the_whole_batch() {
    let Some(_session) = session() else { return };
    for (moe, target) in KINDS {
        let config = config(moe);
        let (student, teacher) = (values(&config, "student"), values(&config, "teacher"));
        let weights = (student.as_slice(), teacher.as_slice());
        let batch = pairs(&config, 37);
        let mut engine = open(&config, Precision::F32, weights, target);
        let (whole, truth) = step(&mut engine, &batch);
        engine.set_micro_batch(Some(16));
        let (losses, gradient) = step(&mut engine, &batch);
        assert!((whole.total - losses.total).abs() < 1e-5 * (1.0 + whole.total));
        let (off, name) = worst(&config, &gradient, &truth);
        assert!(off < 2e-5, "{moe} {target:?} {name}: off by {off:.2e}");
    }
}

#[test]
fn encoding_recording_and_routing_equal_the_cpu() {
    let Some(_session) = session() else { return };
    let config = config(true);
    let weights = values(&config, "student");
    let (pixels, ids) = pairs(&config, 21);
    let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
    engine.load(&weights).unwrap();
    assert_eq!(engine.values().unwrap(), weights);
    let clip = Clip::new(&config);
    let images = engine.encode_images(&pixels).unwrap();
    assert!(gap(&images, &wide(&clip.encode_images(&weights, &pixels))) < 1e-5);
    let texts = engine.encode_texts(&ids).unwrap();
    assert!(gap(&texts, &wide(&clip.encode_texts(&weights, &ids))) < 1e-5);

    let mut cpu = CpuEngine::new(clip);
    let pairs = CpuPairs { pixels: &pixels, ids: &ids };
    cpu.forward(&weights, pairs, upcycle::engine::cpu::tower::Teacher::None);
    for (tower, input) in [
        (Tower::Vision, TowerInput::Pixels(&pixels)),
        (Tower::Text, TowerInput::Ids(&ids)),
    ] {
        let inputs = engine.ffn_inputs(input, &[0, 2]).unwrap();
        assert_eq!(inputs.rows.keys().copied().collect::<Vec<_>>(), [0, 2]);
        let groups = cpu.groups();
        let counted: Vec<bool> =
            groups.iter().flat_map(|g| g.tower(tower).counted.clone()).collect();
        assert_eq!(inputs.counted, counted);
        assert_eq!(inputs.starts.len(), 22);
        for (block, rows) in &inputs.rows {
            let truth: Vec<f32> = groups
                .iter()
                .flat_map(|g| g.tower(tower).blocks[*block].ffn_input.clone())
                .collect();
            assert!(gap(rows, &wide(&truth)) < 1e-5, "{tower:?} {block}");
        }
        let layers = engine.routing(input).unwrap();
        let blocks: Vec<usize> = layers.iter().map(|layer| layer.block).collect();
        assert_eq!(blocks, config.moe_blocks(tower));
        for layer in layers {
            let state = |g: &'_ upcycle::engine::cpu::clip::GroupState| {
                let state = g.tower(tower);
                let routing = state.blocks[layer.block].ffn.routing.clone();
                (routing, state.counted.clone())
            };
            let (mut p, mut chosen) = (Vec::new(), Vec::new());
            for (routing, counted) in groups.iter().map(state) {
                for (row, _) in counted.iter().enumerate().filter(|(_, own)| **own) {
                    p.extend_from_slice(&routing.probabilities[row * 3..row * 3 + 3]);
                    chosen.extend_from_slice(&routing.chosen[row * 2..row * 2 + 2]);
                }
            }
            assert!(gap(&layer.probabilities, &wide(&p)) < 1e-5);
            assert_eq!(layer.chosen, chosen);
            assert_eq!(layer.inputs.len() / config.tower(tower).width, chosen.len() / 2);
        }
    }
}

/// Three steps of training: gradients' norms, weights, moments and the teacher.
fn trained(
    precision: Precision,
    target: Option<EesdTarget>,
) -> (Vec<f64>, Vec<Vec<f32>>) {
    let config = config(true);
    let weights = values(&config, "student");
    let mut engine = open(&config, precision, (&weights, &weights), target);
    let (pixels, ids) = pairs(&config, 40);
    let mut numbers = Vec::new();
    for _ in 0..3 {
        numbers.push(engine.step(Pairs { pixels: &pixels, ids: &ids }).unwrap().total);
        numbers.push(engine.update(1e-2).unwrap());
    }
    let state = engine.training_state().unwrap();
    assert_eq!(state.steps, 3);
    let average = state.average.unwrap_or_default();
    (numbers, vec![state.values, state.first, state.second, average])
}

#[test]
fn three_steps_equal_those_of_the_cpu() {
    use upcycle::engine::cpu::optim::AdamW;
    let Some(_session) = session() else { return };
    let (numbers, state) = trained(Precision::F32, None);
    let config = config(true);
    let (mut weights, batch) = (values(&config, "student"), pairs(&config, 40));
    let layout = Layout::new(&config);
    let mut adam = AdamW::new(layout.iter().map(|(p, r)| (r, p.role.decays())).collect());
    for step in 0..3 {
        let (losses, gradient) = reference(&config, (&weights, &weights), None, &batch);
        assert!((losses.total - numbers[2 * step]).abs() < 1e-3, "{step}");
        let norm = adam.step(&mut weights, &gradient, 1e-2, &optim());
        assert!((norm / numbers[2 * step + 1] - 1.0).abs() < 1e-3, "{step}");
    }
    assert!(distance(&state[0], &weights) < 1e-3);
}

#[test]
fn two_runs_give_the_same_bits() {
    let Some(_session) = session() else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        let one = trained(precision, Some(EesdTarget::Layer));
        assert!(one == trained(precision, Some(EesdTarget::Layer)), "{precision:?}");
    }
}

/// Four orders of threads, and work that runs as late as it may.
#[test]
fn no_order_of_threads_changes_a_bit() {
    let late = |threads| Order { threads, late: true };
    let orders = [1, 7, 12].map(|threads| Order { threads, late: false });
    let run = |order| {
        session_in(order)
            .map(|_session| trained(Precision::Bf16, Some(EesdTarget::Layer)))
    };
    let Some(one) = run(Order { threads: 0, late: false }) else { return };
    for order in orders.into_iter().chain([late(0), late(1)]) {
        assert!(run(order).as_ref() == Some(&one), "{order:?}");
    }
}

#[test]
fn frozen_tensors_keep_their_values_and_have_no_gradient() {
    let Some(_session) = session() else { return };
    let config = config(true);
    let weights = values(&config, "student");
    let mut plan = training(&config, None);
    for own in plan.trainable.iter_mut().step_by(2) {
        *own = Trainable::Frozen;
    }
    let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
    engine.load(&weights).unwrap();
    engine.start_training(&plan).unwrap();
    let (_, gradient) = step(&mut engine, &pairs(&config, 16));
    engine.update(1e-2).unwrap();
    let moved = engine.values().unwrap();
    for (index, (parameter, range)) in Layout::new(&config).iter().enumerate() {
        let changed = moved[range.clone()] != weights[range.clone()];
        let zero = gradient[range].iter().all(|g| *g == 0.0);
        let frozen = index % 2 == 0;
        assert_eq!((changed, zero), (!frozen, frozen), "{}", parameter.name);
    }
}

#[test]
fn a_checkpoint_goes_on_as_if_nothing_had_happened() {
    let Some(_session) = session() else { return };
    let config = config(true);
    let weights = values(&config, "student");
    let (pixels, ids) = pairs(&config, 20);
    let batch = Pairs { pixels: &pixels, ids: &ids };
    let target = Some(EesdTarget::Embedding);
    let mut whole = open(&config, Precision::Bf16, (&weights, &weights), target);
    whole.step(batch).unwrap();
    whole.update(1e-2).unwrap();
    let state = whole.training_state().unwrap();
    whole.step(batch).unwrap();
    whole.update(1e-2).unwrap();
    let mut other = open(&config, Precision::Bf16, (&weights, &weights), target);
    other.restore(&state).unwrap();
    other.step(batch).unwrap();
    other.update(1e-2).unwrap();
    assert!(whole.training_state().unwrap() == other.training_state().unwrap());
}
