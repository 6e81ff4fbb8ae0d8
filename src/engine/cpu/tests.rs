//! The engine on processors against the reference, the published fixtures and itself.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::Cpu;
use super::clip::{Clip, Padding};
use super::passes::{Deal, Passes};
use super::step::{Cut, Distillation, Request, Step};
use super::tower::{Flat, MoeMode};
use crate::config::{Activation, EesdTarget};
use crate::engine::candle::{Eesd, Eligible, ReferenceClip, Terms};
use crate::engine::tests::{
    config, fixture_config, optim, random_pairs, random_values, worst,
};
use crate::engine::{Engine, Losses, Objective, Pairs, TeacherPlan, Trainable, Training};
use crate::image::Pixels;
use crate::io::tensors::{self, Tensors};
use crate::model::names::{self, Role};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Tower};
use crate::ranks::Alone;

fn candle(config: &ClipConfig, pixels: &[f32], ids: &[u32]) -> (Tensor, Tensor) {
    let (s, t) = (config.vision.image_size, config.text.context);
    let n = ids.len() / t;
    let pixels = Tensor::from_slice(pixels, (n, 3, s, s), &Device::Cpu).unwrap();
    (pixels, Tensor::from_slice(ids, (n, t), &Device::Cpu).unwrap())
}

/// A teacher of other weights than the student's.
type Teacher<'a> = Option<(&'a [f32], EesdTarget, f64)>;

/// An engine that is ready for one step at these weights.
fn ready(
    config: &ClipConfig,
    values: &[f32],
    objective: Objective,
    teacher: Teacher<'_>,
) -> Cpu {
    let mut engine = Cpu::new(config);
    engine.load(values).unwrap();
    let plan = |(_, target, fraction)| TeacherPlan { target, fraction, decay: 0.9 };
    let training = Training {
        optim: optim(),
        trainable: Trainable::all(config),
        objective,
        teacher: teacher.map(plan),
    };
    engine.start_training(&training).unwrap();
    let mut state = engine.training_state().unwrap();
    state.average = teacher.map(|(values, _, _)| values.to_vec());
    engine.restore(&state).unwrap();
    engine
}

/// Losses and gradient of one batch.
fn step(engine: &mut Cpu, pairs: Pairs<'_>) -> (Losses, Vec<f32>) {
    let losses = engine.step(pairs).unwrap();
    (losses, engine.gradient().unwrap())
}

#[test]
fn losses_and_all_gradients_equal_the_references() {
    let objective =
        Objective { balance: 0.5, router_z: 0.3, eesd: 0.7, label_smoothing: 0.1 };
    for (moe, n) in [(false, 5), (true, 5), (true, 16), (true, 40)] {
        let config = config(moe);
        let values = random_values(&config, "student");
        let teacher = random_values(&config, "teacher");
        let (pixels, ids) = random_pairs(&config, n, "pairs");
        let layout = Layout::new(&config);
        for fraction in [1.0, 0.3] {
            let distilled = Some((teacher.as_slice(), EesdTarget::Layer, fraction));
            let mut engine = ready(&config, &values, objective, distilled);
            let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
            let (losses, gradients) = step(&mut engine, pairs);

            let tensors = layout.unflatten(&values);
            let reference =
                ReferenceClip::new(&config, &tensors, DType::F64, &Device::Cpu).unwrap();
            let (p, i) = candle(&config, &pixels, &ids);
            let outputs = reference.forward(&p, &i).unwrap();
            let eligible = Eligible::new(&config, n, &outputs.pooled);
            let tensors = layout.unflatten(&teacher);
            let eesd = Eesd { weight: 0.7, teacher: &tensors, fraction };
            let terms = Terms {
                balance: 0.5,
                router_z: 0.3,
                label_smoothing: 0.1,
                eesd: Some(eesd),
            };
            let expected = reference.loss(&outputs, &eligible, &terms).unwrap();
            let scalar = |t: &Tensor| t.to_scalar::<f64>().unwrap();
            assert!((losses.clip - scalar(&expected.clip)).abs() < 1e-5);
            assert!((losses.balance - scalar(&expected.balance)).abs() < 1e-5);
            assert!((losses.router_z - scalar(&expected.router_z)).abs() < 1e-4);
            assert!((losses.eesd - scalar(&expected.eesd)).abs() < 1e-4);
            assert!((losses.total - scalar(&expected.total)).abs() < 1e-4);
            let expected = reference.gradients(&expected.total).unwrap();
            for (parameter, range) in layout.iter() {
                let off = worst(&gradients[range], &expected[&parameter.name]);
                assert!(off < 2e-5, "{}: off by {off}", parameter.name);
            }
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    let config = config(true);
    let values = random_values(&config, "student");
    let (pixels, ids) = random_pairs(&config, 40, "pairs");
    let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
    let objective = Objective { balance: 0.1, ..Objective::default() };
    let (_, gradients) = step(&mut ready(&config, &values, objective, None), pairs);
    for (parameter, range) in Layout::new(&config).iter() {
        let norm = gradients[range].iter().map(|g| g.abs()).sum::<f32>();
        assert!(norm > 0.0, "{} gets no gradient", parameter.name);
    }
}

#[test]
fn distilling_embeddings_has_the_gradient_of_finite_differences() {
    let config = config(true);
    let values = random_values(&config, "student");
    let teacher = random_values(&config, "teacher");
    let (pixels, ids) = random_pairs(&config, 6, "pairs");
    let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
    let objective = Objective { eesd: 2.0, ..Objective::default() };
    let run = |values: &[f32]| {
        let teacher = Some((teacher.as_slice(), EesdTarget::Embedding, 1.0));
        let mut engine = ready(&config, values, objective, teacher);
        let (losses, gradients) = step(&mut engine, pairs);
        assert!(losses.eesd > 0.0);
        (losses.total, gradients)
    };
    let (_, gradients) = run(&values);
    for (parameter, range) in Layout::new(&config).iter() {
        let largest = range
            .max_by(|a, b| gradients[*a].abs().total_cmp(&gradients[*b].abs()))
            .unwrap();
        let moved = |by: f32| {
            let mut values = values.clone();
            values[largest] += by;
            values
        };
        let rise = run(&moved(2e-3)).0 - run(&moved(-2e-3)).0;
        let (expected, found) = (rise / 4e-3, f64::from(gradients[largest]));
        let off = (expected - found).abs();
        let name = &parameter.name;
        assert!(off < 2e-3 + 0.02 * expected.abs(), "{name}: {expected} {found}");
    }
}

#[test]
fn the_step_does_not_depend_on_the_number_of_threads() {
    let config = config(true);
    let values = random_values(&config, "student");
    let (pixels, ids) = random_pairs(&config, 100, "pairs");
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
            let objective = Objective {
                balance: 0.1,
                router_z: 0.1,
                eesd: 0.1,
                label_smoothing: 0.1,
            };
            let teacher = Some((values.as_slice(), EesdTarget::Layer, 0.5));
            let mut engine = ready(&config, &values, objective, teacher);
            let (losses, gradients) = step(&mut engine, pairs);
            (losses, gradients.iter().map(|g| g.to_bits()).collect::<Vec<_>>())
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
}

#[test]
fn equal_experts_preserve_the_dense_function() {
    let (dense, moe) = (config(false), config(true));
    let values = random_values(&dense, "student");
    let tensors = Layout::new(&dense).unflatten(&values);
    let mut copied = Tensors::new();
    for parameter in names::parameters(&moe) {
        let name = parameter.name.replace("moe.experts", "mlp");
        let mut tensor = tensors.get(&name).cloned().unwrap_or_default();
        if parameter.name.contains("moe.experts") {
            tensor.data = tensor.data.repeat(3);
        } else if parameter.role == Role::Router {
            tensor.data = (0..parameter.len()).map(|i| (i as f32).sin()).collect();
        }
        tensor.shape = parameter.shape;
        copied.insert(parameter.name, tensor);
    }
    let copied = Layout::new(&moe).flatten(&moe, &copied).unwrap();
    let (pixels, ids) = random_pairs(&dense, 20, "pairs");
    let (a, b) = (Clip::new(&dense), Clip::new(&moe));
    let images = worst(
        &b.encode_images(&copied, Pixels::Values(&pixels)),
        &a.encode_images(&values, Pixels::Values(&pixels)),
    );
    let texts = worst(&b.encode_texts(&copied, &ids), &a.encode_texts(&values, &ids));
    assert!(images < 2e-6 && texts < 2e-6, "{images} {texts}");
}

/// Forward, FFN inputs and loss of both published fixtures; gradients against the
/// reference, which its own tests hold to the fixtures' gradients.
#[test]
fn the_engine_equals_hugging_face_and_open_clip() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (name, activation) in [
        ("clip-tiny-gelu", Activation::Gelu),
        ("clip-tiny-quickgelu", Activation::QuickGelu),
    ] {
        let expected = root.join(name).join("expected.safetensors");
        let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
        let floats = |key: &str| -> Vec<f32> {
            expected[key].flatten_all().unwrap().to_vec1().unwrap()
        };
        let path = root.join(name).join("open_clip/open_clip_model.safetensors");
        let (config, tensors) =
            (fixture_config(activation), tensors::read(&path).unwrap());
        let values = Layout::new(&config).flatten(&config, &tensors).unwrap();
        let ids: Vec<i64> =
            expected["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
        let ids: Vec<u32> =
            ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect();
        let pixels = floats("pixel_values");
        let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
        for padding in [Padding::Skip, Padding::Keep] {
            let clip = Clip::new(&config).with_padding(padding);
            let images = clip.encode_images(&values, Pixels::Values(&pixels));
            let texts = clip.encode_texts(&values, &ids);
            assert!(worst(&images, &floats("image_embeds")) < 2e-5);
            assert!(worst(&texts, &floats("text_embeds")) < 2e-5);
            let mut passes = Passes::default();
            let count = ids.len() / config.text.context;
            let part = Deal::new(count, 1).parts(0).remove(0);
            passes.forward(&clip, &values, (pairs, &part), MoeMode::TopK);
            let (mut raw, mut texts) = (vec![0.0; images.len()], texts);
            passes.embeddings(&part, &mut raw, &mut texts);
            assert!(worst(&raw, &floats("image_embeds_raw")) < 1e-4);
            for tower in Tower::BOTH {
                if padding == Padding::Skip && tower == Tower::Text {
                    continue;
                }
                let state = passes.groups()[0].tower(tower);
                for (layer, block) in state.blocks.iter().enumerate() {
                    let key = format!("{}.layers.{layer}.ffn_in", tower.name());
                    let off = worst(&block.ffn_input, &floats(&key));
                    assert!(off < 2e-5, "{key}: {off}");
                }
            }
            let mut gradients = vec![0.0; values.len()];
            let mut flat = Flat { values: &values, gradients: &mut gradients };
            let request = Request {
                pairs,
                objective: Objective::default(),
                distillation: Distillation::None,
                cut: Cut { lanes: 4, micro_batch: 0 },
            };
            let losses = Step::new().run(&clip, &mut flat, &Alone, &request).unwrap();
            assert!((losses.total - f64::from(floats("loss")[0])).abs() < 1e-4);
            let reference =
                ReferenceClip::new(&config, &tensors, DType::F64, &Device::Cpu).unwrap();
            let inputs = (&expected["pixel_values"], &expected["input_ids"]);
            let outputs = reference.forward(inputs.0, inputs.1).unwrap();
            let eligible = Eligible::new(&config, 4, &outputs.pooled);
            let loss = reference.loss(&outputs, &eligible, &Terms::default()).unwrap();
            let expected = reference.gradients(&loss.total).unwrap();
            for (parameter, range) in Layout::new(&config).iter() {
                let off = worst(&gradients[range], &expected[&parameter.name]);
                assert!(off < 1e-4, "{}: off by {off}", parameter.name);
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// METHOD §4: the contrastive loss is that of the whole batch, however many pairs are in
/// memory at a time, and so is every bit.
#[test]
fn micro_batches_have_the_gradient_of_the_whole_batch() {
    let config = config(true);
    let values = random_values(&config, "student");
    let teacher = random_values(&config, "teacher");
    let (pixels, ids) = random_pairs(&config, 64, "pairs");
    let pairs = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
    let objective =
        Objective { balance: 0.5, router_z: 0.3, eesd: 0.7, label_smoothing: 0.1 };
    for (target, fraction) in [(EesdTarget::Layer, 0.3), (EesdTarget::Embedding, 1.0)] {
        let run = |micro_batch: usize| {
            let teacher = Some((teacher.as_slice(), target, fraction));
            let mut engine = ready(&config, &values, objective, teacher);
            let plan = TeacherPlan { target, fraction, decay: 0.9 };
            let mut optim = optim();
            optim.micro_batch = micro_batch;
            let state = engine.training_state().unwrap();
            let training = Training {
                optim,
                trainable: Trainable::all(&config),
                objective,
                teacher: Some(plan),
            };
            engine.start_training(&training).unwrap();
            engine.restore(&state).unwrap();
            // A second step shows that the first left nothing behind.
            step(&mut engine, pairs);
            step(&mut engine, pairs)
        };
        let (losses, gradient) = run(0);
        // 48 leaves a rest of 16.
        for micro_batch in [64, 48, 32, 16] {
            let (own, found) = run(micro_batch);
            assert!(bits(&found) == bits(&gradient), "{target:?} {micro_batch}");
            assert_eq!(own, losses, "{target:?} {micro_batch}");
        }
    }
}
