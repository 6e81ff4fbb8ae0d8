//! The engine against the reference model, the published fixtures and itself.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::{Distiller, Objective, Stepper};
use crate::config::Activation;
use crate::engine::candle::{Eesd, Eligible, ReferenceClip, Terms};
use crate::engine::cpu::clip::{Clip, Engine, Padding, Pairs};
use crate::engine::cpu::tower::Teacher;
use crate::io::tensors::{self, Tensors};
use crate::model::names::{self, Role};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Moe, TextConfig, Tower, VisionConfig};
use crate::rng::{self, RngExt};

/// A small model with random weights; `moe` turns blocks of both towers into mixtures.
fn config(moe: bool) -> ClipConfig {
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

fn random_values(config: &ClipConfig, name: &str) -> Vec<f32> {
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
fn random_pairs(config: &ClipConfig, n: usize) -> (Vec<f32>, Vec<u32>) {
    let mut stream = rng::stream(11, "pairs");
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

fn candle(config: &ClipConfig, pixels: &[f32], ids: &[u32]) -> (Tensor, Tensor) {
    let (s, t) = (config.vision.image_size, config.text.context);
    let n = ids.len() / t;
    let pixels = Tensor::from_slice(pixels, (n, 3, s, s), &Device::Cpu).unwrap();
    (pixels, Tensor::from_slice(ids, (n, t), &Device::Cpu).unwrap())
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
    found.iter().zip(expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

#[test]
fn losses_and_all_gradients_equal_the_references() {
    let objective = Objective { balance: 0.5, router_z: 0.3, eesd: 0.7 };
    for (moe, n) in [(false, 5), (true, 5), (true, 16)] {
        let config = config(moe);
        let values = random_values(&config, "student");
        let teacher = random_values(&config, "teacher");
        let (pixels, ids) = random_pairs(&config, n);
        let layout = Layout::new(&config);
        for share in [1.0, 0.3] {
            let clip = Clip::new(&config);
            let mut stepper = Stepper::new(Engine::new(clip));
            let mut gradients = vec![0.0; values.len()];
            let pairs = Pairs { pixels: &pixels, ids: &ids };
            let distiller = Distiller::Layers(&teacher, share);
            let losses =
                stepper.run((&values, &mut gradients), pairs, &objective, distiller);

            let tensors = layout.unflatten(&values);
            let reference =
                ReferenceClip::new(&config, &tensors, DType::F64, &Device::Cpu).unwrap();
            let (p, i) = candle(&config, &pixels, &ids);
            let outputs = reference.forward(&p, &i).unwrap();
            let eligible = Eligible::new(&config, n, &outputs.pooled);
            let taught = layout.unflatten(&teacher);
            let eesd = Eesd { weight: 0.7, teacher: &taught, fraction: share };
            let terms = Terms { balance: 0.5, router_z: 0.3, eesd: Some(eesd) };
            let expected = reference.loss(&outputs, &eligible, &terms).unwrap();
            let scalar = |t: &Tensor| t.to_scalar::<f64>().unwrap();
            assert!((losses.clip - scalar(&expected.clip)).abs() < 1e-5);
            assert!((losses.balance - scalar(&expected.balance)).abs() < 1e-5);
            assert!((losses.router_z - scalar(&expected.router_z)).abs() < 1e-4);
            assert!((losses.eesd - scalar(&expected.eesd)).abs() < 1e-4);
            assert!((losses.total - scalar(&expected.total)).abs() < 1e-4);
            let slopes = reference.gradients(&expected.total).unwrap();
            for (parameter, range) in layout.iter() {
                let off = worst(&gradients[range], &slopes[&parameter.name]);
                assert!(off < 2e-5, "{}: off by {off}", parameter.name);
            }
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    let config = config(true);
    let values = random_values(&config, "student");
    let (pixels, ids) = random_pairs(&config, 40);
    let mut gradients = vec![0.0; values.len()];
    let mut stepper = Stepper::new(Engine::new(Clip::new(&config)));
    let pairs = Pairs { pixels: &pixels, ids: &ids };
    let objective = Objective { balance: 0.1, ..Objective::default() };
    stepper.run((&values, &mut gradients), pairs, &objective, Distiller::None);
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
    let (pixels, ids) = random_pairs(&config, 6);
    let pairs = Pairs { pixels: &pixels, ids: &ids };
    let mut stepper = Stepper::new(Engine::new(Clip::new(&config)));
    let objective = Objective { eesd: 2.0, ..Objective::default() };
    let mut run = |values: &[f32]| {
        let mut gradients = vec![0.0; values.len()];
        let distiller = Distiller::Embeddings(&teacher);
        let losses = stepper.run((values, &mut gradients), pairs, &objective, distiller);
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
        let (slope, found) = (rise / 4e-3, f64::from(gradients[largest]));
        let off = (slope - found).abs();
        assert!(off < 2e-3 + 0.02 * slope.abs(), "{}: {slope} {found}", parameter.name);
    }
}

#[test]
fn the_step_does_not_depend_on_the_number_of_threads() {
    let config = config(true);
    let values = random_values(&config, "student");
    let (pixels, ids) = random_pairs(&config, 100);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut stepper = Stepper::new(Engine::new(Clip::new(&config)));
            let mut gradients = vec![0.0; values.len()];
            let pairs = Pairs { pixels: &pixels, ids: &ids };
            let objective = Objective { balance: 0.1, router_z: 0.1, eesd: 0.1 };
            let distiller = Distiller::Layers(&values, 0.5);
            let losses =
                stepper.run((&values, &mut gradients), pairs, &objective, distiller);
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
    let (pixels, ids) = random_pairs(&dense, 20);
    let (a, b) = (Clip::new(&dense), Clip::new(&moe));
    let images =
        worst(&b.encode_images(&copied, &pixels), &a.encode_images(&values, &pixels));
    let texts = worst(&b.encode_texts(&copied, &ids), &a.encode_texts(&values, &ids));
    assert!(images < 2e-6 && texts < 2e-6, "{images} {texts}");
}

/// The shape of the published fixtures.
fn tiny(activation: Activation) -> ClipConfig {
    let (layers, heads) = (3, 2);
    let vision =
        VisionConfig { image_size: 32, patch: 8, width: 32, layers, heads, hidden: 128 };
    let text =
        TextConfig { context: 16, vocabulary: 160, width: 24, layers, heads, hidden: 96 };
    ClipConfig { embed_dim: 16, activation, vision, text, moe: None }
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
        let (config, tensors) = (tiny(activation), tensors::read(&path).unwrap());
        let values = Layout::new(&config).flatten(&config, &tensors).unwrap();
        let ids: Vec<i64> =
            expected["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
        let ids: Vec<u32> =
            ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect();
        let pixels = floats("pixel_values");
        let pairs = Pairs { pixels: &pixels, ids: &ids };
        for padding in [Padding::Skip, Padding::Keep] {
            let clip = Clip::new(&config).with_padding(padding);
            let images = clip.encode_images(&values, &pixels);
            let texts = clip.encode_texts(&values, &ids);
            assert!(worst(&images, &floats("image_embeds")) < 2e-5);
            assert!(worst(&texts, &floats("text_embeds")) < 2e-5);
            let mut engine = Engine::new(clip);
            let (raw, _) = engine.forward(&values, pairs, Teacher::None);
            assert!(worst(raw, &floats("image_embeds_raw")) < 1e-4);
            for tower in Tower::BOTH {
                if padding == Padding::Skip && tower == Tower::Text {
                    continue;
                }
                let state = engine.groups()[0].tower(tower);
                for (layer, block) in state.blocks.iter().enumerate() {
                    let key = format!("{}.layers.{layer}.ffn_in", tower.name());
                    let off = worst(&block.ffn_input, &floats(&key));
                    assert!(off < 2e-5, "{key}: {off}");
                }
            }
            let mut stepper = Stepper::new(engine);
            let mut gradients = vec![0.0; values.len()];
            let objective = Objective::default();
            let losses = stepper.run(
                (&values, &mut gradients),
                pairs,
                &objective,
                Distiller::None,
            );
            assert!((losses.total - f64::from(floats("loss")[0])).abs() < 1e-4);
            let reference =
                ReferenceClip::new(&config, &tensors, DType::F64, &Device::Cpu).unwrap();
            let inputs = (&expected["pixel_values"], &expected["input_ids"]);
            let outputs = reference.forward(inputs.0, inputs.1).unwrap();
            let eligible = Eligible::new(&config, 4, &outputs.pooled);
            let loss = reference.loss(&outputs, &eligible, &Terms::default()).unwrap();
            let slopes = reference.gradients(&loss.total).unwrap();
            for (parameter, range) in Layout::new(&config).iter() {
                let off = worst(&gradients[range], &slopes[&parameter.name]);
                assert!(off < 1e-4, "{}: off by {off}", parameter.name);
            }
        }
    }
}
