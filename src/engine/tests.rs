//! Both engines on the same models and batches: the seam is real, and the oracle is honest
//! from end to end.

use super::*;
use crate::config::{Activation, Compute, Device, Overrides, Precision, load_default};
use crate::model::names::Role;
use crate::model::{Moe, TextConfig, VisionConfig};
use crate::rng::{self, RngExt};

/// A small model; `moe` turns blocks of both towers into mixtures.
pub(super) fn config(moe: bool) -> ClipConfig {
    let (layers, heads) = (2, 2);
    let vision =
        VisionConfig { image_size: 8, patch: 4, width: 8, layers, heads, hidden: 12 };
    let text =
        TextConfig { context: 6, vocabulary: 20, width: 6, layers, heads, hidden: 10 };
    let moe = moe.then(|| Moe {
        experts: 3,
        top_k: 2,
        rank: None,
        vision_blocks: vec![1],
        text_blocks: vec![0, 1],
    });
    ClipConfig { embed_dim: 5, activation: Activation::Gelu, vision, text, moe }
}

/// The shape of the published fixtures `clip-tiny-gelu` and `clip-tiny-quickgelu`.
pub(super) fn fixture_config(activation: Activation) -> ClipConfig {
    let (layers, heads) = (3, 2);
    let vision =
        VisionConfig { image_size: 32, patch: 8, width: 32, layers, heads, hidden: 128 };
    let text =
        TextConfig { context: 16, vocabulary: 160, width: 24, layers, heads, hidden: 96 };
    ClipConfig { embed_dim: 16, activation, vision, text, moe: None }
}

/// Random weights of a named stream.
pub(super) fn random_values(config: &ClipConfig, name: &str) -> Vec<f32> {
    let layout = Layout::new(config);
    let mut stream = rng::stream(7, name);
    let mut values = vec![0.0; layout.len()];
    for (parameter, range) in layout.iter() {
        let gain = parameter.role == Role::Norm && parameter.name.ends_with("weight");
        let scale = if parameter.role == Role::Bias { 0.2 } else { 0.8 };
        for value in &mut values[range] {
            let offset = if gain { 1.0 } else { 0.0 };
            *value = offset + scale * (2.0 * stream.random::<f32>() - 1.0);
        }
    }
    values
}

/// `n` random pictures and captions of random lengths.
pub(super) fn random_pairs(
    config: &ClipConfig,
    n: usize,
    name: &str,
) -> (Vec<f32>, Vec<u32>) {
    let mut stream = rng::stream(11, name);
    let (picture, context) = (3 * config.vision.image_size.pow(2), config.text.context);
    let pixels = (0..n * picture).map(|_| 2.0 * stream.random::<f32>() - 1.0).collect();
    let last = crate::num::index_u32(config.text.vocabulary - 1);
    let mut ids = vec![0; n * context];
    for caption in ids.chunks_exact_mut(context) {
        let end = stream.random_range(1..context);
        caption[0] = last - 1;
        caption[1..end].fill_with(|| stream.random_range(1..last - 1));
        caption[end] = last;
    }
    (pixels, ids)
}

/// The optimizer's settings of the shipped configuration.
pub(super) fn optim() -> OptimConfig {
    load_default(&Overrides::default()).unwrap().train.optim
}

/// Largest difference over max(1, largest entry).
pub(super) fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
    found.iter().zip(expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

const BACKENDS: [Backend; 2] = [Backend::Cpu, Backend::Candle];

/// Pairs of a training step: one group of samples, in which both engines distill alike.
const BATCH: usize = 16;

/// One way to train.
struct Case {
    name: &'static str,
    config: ClipConfig,
    training: Training,
}

fn cases() -> Vec<Case> {
    let make = |name, config: ClipConfig, objective, teacher| {
        let trainable = Trainable::all(&config);
        let training = Training { optim: optim(), trainable, objective, teacher };
        Case { name, config, training }
    };
    let plain = Objective::default();
    let all = Objective { balance: 0.1, router_z: 0.01, eesd: 0.5, label_smoothing: 0.0 };
    let teacher = |target| Some(TeacherPlan { target, fraction: 1.0, decay: 0.9 });
    let smooth = Objective { label_smoothing: 0.1, ..plain };
    let mut low_rank = config(true);
    if let Some(moe) = &mut low_rank.moe {
        moe.rank = Some(2);
    }

    // CLIP-MoE's fine-tuning: the FFNs train, at a constant logit scale.
    let mut frozen = make("frozen tensors", config(false), smooth, None);
    let layout = Layout::new(&frozen.config);
    for ((parameter, _), trainable) in layout.iter().zip(&mut frozen.training.trainable) {
        if !parameter.name.contains(".mlp.") {
            *trainable = Trainable::Frozen;
        }
    }
    vec![
        make("dense", config(false), plain, None),
        make("mixture", config(true), all, teacher(EesdTarget::Layer)),
        make("embeddings", config(true), all, teacher(EesdTarget::Embedding)),
        make("low rank", low_rank, all, teacher(EesdTarget::Layer)),
        make("label smoothing", config(false), smooth, None),
        frozen,
    ]
}

/// An engine at random weights, ready to train.
fn started(case: &Case, backend: Backend) -> Box<dyn Engine> {
    let mut engine = open(&case.config, backend).unwrap();
    engine.load(&random_values(&case.config, "student")).unwrap();
    engine.start_training(&case.training).unwrap();
    engine
}

/// Twenty steps on twenty batches: losses and norms of each step, and the weights.
fn train(case: &Case, backend: Backend) -> (Vec<Losses>, Vec<f64>, Box<dyn Engine>) {
    let mut engine = started(case, backend);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for index in 0..20 {
        let (pixels, ids) = random_pairs(&case.config, BATCH, &format!("batch {index}"));
        losses.push(
            engine.step(Pairs { pixels: Pixels::Values(&pixels), ids: &ids }).unwrap(),
        );
        norms.push(engine.update(1e-3).unwrap());
    }
    (losses, norms, engine)
}

/// f32 against f64 over twenty steps: losses within 2e-5, norms of gradients within 1e-4 of
/// their size, weights and teacher within 1e-4 where the largest step is 2e-2 in all.
#[test]
fn both_engines_train_alike() {
    for case in cases() {
        let name = case.name;
        let (own, own_norms, cpu) = train(&case, Backend::Cpu);
        let (expected, norms, candle) = train(&case, Backend::Candle);
        for (step, (own, expected)) in own.iter().zip(&expected).enumerate() {
            for (what, found, expected) in [
                ("total", own.total, expected.total),
                ("clip", own.clip, expected.clip),
                ("balance", own.balance, expected.balance),
                ("router_z", own.router_z, expected.router_z),
                ("eesd", own.eesd, expected.eesd),
                ("logit scale", own.logit_scale, expected.logit_scale),
            ] {
                let off = (found - expected).abs() / expected.abs().max(1.0);
                assert!(off < 2e-5, "{name}, step {step}: {what} {found} {expected}");
            }
            let off = (own_norms[step] - norms[step]).abs() / norms[step];
            assert!(off < 1e-4, "{name}, step {step}: norm off by {off:e}");

            assert_eq!(own.layers.len(), expected.layers.len());
            for (own, expected) in own.layers.iter().zip(&expected.layers) {
                assert_eq!((own.0, own.1), (expected.0, expected.1), "{name}");
                assert_eq!(own.2.counts, expected.2.counts, "{name}, step {step}");
                for (found, expected) in [
                    (own.2.rows, expected.2.rows),
                    (own.2.entropy, expected.2.entropy),
                    (own.2.log_sum_square, expected.2.log_sum_square),
                    (own.2.distance, expected.2.distance),
                    (own.2.target_square, expected.2.target_square),
                ] {
                    let off = (found - expected).abs() / expected.abs().max(1.0);
                    assert!(off < 1e-4, "{name}, step {step}: {found} {expected}");
                }
            }
        }

        let (own, expected) =
            (cpu.training_state().unwrap(), candle.training_state().unwrap());
        assert_eq!((own.steps, expected.steps), (20, 20));
        for (parameter, range) in Layout::new(&case.config).iter() {
            let off = worst(&own.values[range.clone()], &expected.values[range]);
            assert!(off < 1e-4, "{name}: {} off by {off:e}", parameter.name);
        }
        assert!(worst(&own.first, &expected.first) < 1e-4, "{name}");
        assert!(worst(&own.second, &expected.second) < 1e-4, "{name}");
        assert_eq!(own.average.is_some(), case.training.teacher.is_some());
        if let (Some(own), Some(expected)) = (&own.average, &expected.average) {
            assert!(worst(own, expected) < 1e-4, "{name}: the teachers differ");
        }
    }
}

/// A loss over pictures that is no sum over them: `½ |Σ_n a_n z_n|²` with
/// `a_n` = 1, 2, 3 and so on.
fn quadratic(width: usize) -> impl Fn(&[f32]) -> crate::error::Result<(f64, Vec<f32>)> {
    move |unit: &[f32]| {
        let mut sum = vec![0.0_f64; width];
        for (index, row) in unit.chunks_exact(width).enumerate() {
            let factor = (index + 1) as f64;
            sum.iter_mut().zip(row).for_each(|(s, z)| *s += factor * f64::from(*z));
        }
        let rows = 0..unit.len() / width;
        let gradient = rows.flat_map(|index| {
            let factor = (index + 1) as f64;
            sum.iter().map(move |s| crate::num::round_f32(factor * s)).collect::<Vec<_>>()
        });
        Ok((0.5 * sum.iter().map(|s| s * s).sum::<f64>(), gradient.collect()))
    }
}

/// The gradient of a loss over pictures: f32 by hand against f64 by autograd, and against
/// the loss itself at two points on a line; two groups of samples.
#[test]
fn both_engines_differentiate_a_loss_over_pictures_alike() {
    for case in cases() {
        let (pixels, _) = random_pairs(&case.config, 19, "pictures");
        let mut loss = quadratic(case.config.embed_dim);
        let found = BACKENDS.map(|backend| {
            let mut engine = started(&case, backend);
            let value = engine.image_step(Pixels::Values(&pixels), &mut loss).unwrap();
            (value, engine.gradient().unwrap())
        });
        let [(own, gradient), (expected, reference)] = &found;
        assert!(
            (*own - *expected).abs() < 1e-4 * expected.abs().max(1.0),
            "{}",
            case.name
        );
        let largest = reference.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        assert!(largest > 0.0, "{}", case.name);
        for (parameter, range) in Layout::new(&case.config).iter() {
            let pairs = gradient[range.clone()].iter().zip(&reference[range]);
            let off = pairs.fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(
                off < 1e-4 * largest,
                "{}: {} off by {off:e}",
                case.name,
                parameter.name
            );
        }

        // Along the gradient the loss changes by the square of its length.
        let mut engine = started(&case, Backend::Candle);
        let values = engine.values().unwrap();
        let length: f64 = reference.iter().map(|g| f64::from(*g).powi(2)).sum();
        let step = 1e-3 / length.sqrt();
        let mut at = |sign: f64| {
            let moved = values.iter().zip(reference.iter()).map(|(v, g)| {
                crate::num::round_f32(f64::from(*v) + sign * step * f64::from(*g))
            });
            engine.load(&moved.collect::<Vec<_>>()).unwrap();
            let unit = engine.encode_images(Pixels::Values(&pixels)).unwrap();
            loss(&unit).unwrap().0
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
        assert!((slope / length - 1.0).abs() < 2e-2, "{}: {slope} {length}", case.name);
    }
}

/// A mixture that distills a fraction of the tokens of each layer.
fn distilling(fraction: f64) -> Case {
    let config = config(true);
    let target = EesdTarget::Layer;
    let training = Training {
        optim: optim(),
        trainable: Trainable::all(&config),
        objective: Objective { eesd: 0.5, ..Objective::default() },
        teacher: Some(TeacherPlan { target, fraction, decay: 0.9 }),
    };
    Case { name: "distilling", config, training }
}

/// Beyond 16 samples: the sums of a batch are those of its groups of 16, and those of the
/// reference, which chooses by the same rule.
#[test]
fn distilled_tokens_are_chosen_within_groups_of_sixteen_samples() {
    let case = distilling(0.3);
    let (pixels, ids) = random_pairs(&case.config, 40, "groups");
    let (picture, caption) = (pixels.len() / 40, ids.len() / 40);
    let distances = |backend: Backend, range: std::ops::Range<usize>| -> Vec<f64> {
        let own = Pairs {
            pixels: Pixels::Values(&pixels[range.start * picture..range.end * picture]),
            ids: &ids[range.start * caption..range.end * caption],
        };
        let losses = started(&case, backend).step(own).unwrap();
        losses.layers.iter().map(|(_, _, sums)| sums.distance).collect()
    };

    let whole = distances(Backend::Cpu, 0..40);
    let groups = [0..16, 16..32, 32..40].map(|range| distances(Backend::Cpu, range));
    assert!(!whole.is_empty());
    for (layer, found) in whole.iter().enumerate() {
        let expected: f64 = groups.iter().map(|group| group[layer]).sum();
        assert!(*found > 0.0);
        assert!((found - expected).abs() < 1e-9 * expected, "{found} {expected}");
    }
    let reference = distances(Backend::Candle, 0..40);
    for (own, reference) in whole.iter().zip(&reference) {
        assert!((own / reference - 1.0).abs() < 1e-4, "{whole:?} {reference:?}");
    }
}

/// The gradient of all losses is that of the distillation and that of the others, so that a
/// weight of nothing takes the distillation away and a tenfold one makes it tenfold.
#[test]
fn another_objective_weighs_the_losses_anew() {
    let case = distilling(1.0);
    let (pixels, ids) = random_pairs(&case.config, BATCH, "objective");
    for backend in BACKENDS {
        let mut engine = started(&case, backend);
        let mut gradient = |eesd: f64| {
            engine.set_objective(Objective { eesd, ..case.training.objective }).unwrap();
            assert!(engine.gradient().is_err(), "the old gradient is of no use");
            engine.step(Pairs { pixels: Pixels::Values(&pixels), ids: &ids }).unwrap();
            engine.gradient().unwrap()
        };
        let (none, once, tenfold) = (gradient(0.0), gradient(0.1), gradient(1.0));
        let pull: Vec<f32> =
            once.iter().zip(&none).map(|(a, b)| 10.0 * (a - b)).collect();
        let expected: Vec<f32> = tenfold.iter().zip(&none).map(|(a, b)| a - b).collect();
        assert!(expected.iter().any(|v| v.abs() > 1e-4));
        assert!(worst(&pull, &expected) < 1e-3);
    }
}

#[test]
fn both_engines_see_alike() {
    for case in cases() {
        let (pixels, ids) = random_pairs(&case.config, 21, "pairs");
        let sides = [TowerInput::Pixels(Pixels::Values(&pixels)), TowerInput::Ids(&ids)];
        let [mut cpu, mut candle] = BACKENDS.map(|backend| started(&case, backend));
        let images = cpu.encode_images(Pixels::Values(&pixels)).unwrap();
        assert!(
            worst(&images, &candle.encode_images(Pixels::Values(&pixels)).unwrap())
                < 1e-5
        );
        let texts = cpu.encode_texts(&ids).unwrap();
        assert!(worst(&texts, &candle.encode_texts(&ids).unwrap()) < 1e-5);

        for input in sides {
            let own = cpu.ffn_inputs(input, &[1, 0]).unwrap();
            let expected = candle.ffn_inputs(input, &[1, 0]).unwrap();
            assert_eq!(own.starts, expected.starts);
            assert_eq!(own.counted, expected.counted);
            assert_eq!(own.starts.len(), 22);
            for (block, rows) in &own.rows {
                assert!(worst(rows, &expected.rows[block]) < 1e-5, "{}", case.name);
            }
            let error = cpu.ffn_inputs(input, &[2]).unwrap_err().to_string();
            assert!(error.contains("no block 2"), "{error}");

            let own = cpu.routing(input).unwrap();
            let expected = candle.routing(input).unwrap();
            assert_eq!(own.len(), expected.len());
            for (own, expected) in own.iter().zip(&expected) {
                assert_eq!(own.block, expected.block);
                assert_eq!(own.chosen, expected.chosen);
                assert!(worst(&own.inputs, &expected.inputs) < 1e-5);
                assert!(worst(&own.probabilities, &expected.probabilities) < 1e-5);
            }
        }
    }
}

/// A frozen tensor has no part in the gradient, the moments, the decay or the step.
#[test]
fn frozen_tensors_keep_their_bits() {
    let case = cases().pop().unwrap();
    let start = random_values(&case.config, "student");
    for backend in BACKENDS {
        let (_, _, mut engine) = train(&case, backend);
        let (pixels, ids) = random_pairs(&case.config, BATCH, "pairs");
        engine.step(Pairs { pixels: Pixels::Values(&pixels), ids: &ids }).unwrap();
        let gradient = engine.gradient().unwrap();
        let squares: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
        let norm = engine.update(1e-3).unwrap();
        assert!((norm - squares.sqrt()).abs() < 1e-6 * norm);

        let state = engine.training_state().unwrap();
        let layout = Layout::new(&case.config);
        for ((p, range), trainable) in layout.iter().zip(&case.training.trainable) {
            let moved = state.values[range.clone()] != start[range.clone()];
            let zero = |values: &[f32]| values.iter().all(|v| v.to_bits() == 0);
            let own = |buffer: &Vec<f32>| zero(&buffer[range.clone()]);
            if *trainable == Trainable::Frozen {
                assert!(!moved, "{} moved", p.name);
                assert!(own(&gradient) && own(&state.first) && own(&state.second));
            } else {
                assert!(moved, "{} did not train", p.name);
                assert!(!own(&gradient) && !own(&state.first));
            }
        }
    }
}

/// What a checkpoint keeps is enough to go on with the same bits in another engine.
#[test]
fn a_restored_run_goes_on_with_the_same_bits() {
    for case in cases() {
        for backend in BACKENDS {
            let (_, _, mut one) = train(&case, backend);
            let state = one.training_state().unwrap();
            let empty = Vec::new();
            for (buffer, expected) in [
                (StateBuffer::Values, &state.values),
                (StateBuffer::First, &state.first),
                (StateBuffer::Second, &state.second),
                (StateBuffer::Average, state.average.as_ref().unwrap_or(&empty)),
            ] {
                assert_eq!(&*one.state_buffer(buffer).unwrap(), expected, "{buffer:?}");
            }

            let mut other = started(&case, backend);
            other.restore(&state).unwrap();
            assert_eq!(other.training_state().unwrap(), state);
            // The reference keeps more digits than a checkpoint does.
            if backend == Backend::Candle {
                continue;
            }
            let (pixels, ids) = random_pairs(&case.config, BATCH, "another");
            let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
            for engine in [&mut one, &mut other] {
                engine.step(pairs).unwrap();
                engine.update(1e-3).unwrap();
            }
            assert_eq!(one.training_state().unwrap(), other.training_state().unwrap());
            assert_eq!(one.into_values().unwrap(), other.values().unwrap());
        }
    }
}

#[test]
fn calls_in_the_wrong_order_are_refused_with_a_sentence() {
    let case = cases().remove(1);
    let (pixels, ids) = random_pairs(&case.config, 2, "pairs");
    let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
    for backend in BACKENDS {
        let mut engine = open(&case.config, backend).unwrap();
        let message = |error: crate::error::Error| error.to_string();
        for error in [
            engine.encode_images(Pixels::Values(&pixels)).unwrap_err(),
            engine.values().unwrap_err(),
            engine.start_training(&case.training).unwrap_err(),
        ] {
            assert!(message(error).contains("no weights yet"));
        }
        let error = message(engine.load(&[0.0; 3]).unwrap_err());
        assert!(error.contains("3 weights, expected"), "{error}");

        engine.load(&random_values(&case.config, "student")).unwrap();
        assert!(message(engine.step(pairs).unwrap_err()).contains("does not train yet"));
        engine.start_training(&case.training).unwrap();
        assert!(message(engine.update(0.1).unwrap_err()).contains("call step first"));
        assert!(message(engine.gradient().unwrap_err()).contains("call step first"));
    }
}

#[test]
fn device_and_precision_choose_the_engine_or_say_why_not() {
    let choose = |device, precision| Backend::choose(Compute { device, precision });
    let card = cuda::available();
    for device in [Device::Auto, Device::Cpu] {
        if device == Device::Auto && card {
            assert_eq!(choose(device, Precision::F32).unwrap().name(), "cuda-f32");
            assert_eq!(choose(device, Precision::Bf16).unwrap().name(), "cuda-bf16");
            continue;
        }
        assert_eq!(choose(device, Precision::F32).unwrap().name(), "cpu-f32");
        let error = choose(device, Precision::Bf16).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
        assert!(error.to_string().contains("set `precision: f32`"), "{error}");
    }

    // No machine has as many cards.
    let error = choose(Device::Cuda(999), Precision::F32).unwrap_err().to_string();
    assert!(error.contains("cuda:999") && error.contains("set `device: cpu`"), "{error}");
}
