//! The reference against what others computed: `open_clip` and Hugging Face for the dense
//! model, torch for the MoE layer, and finite differences for what no fixture holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;

use super::moe::indicator;
use super::{Eesd, Eligible, Experts, Outputs, Pooling, ReferenceClip, Terms};
use crate::config::Activation;
use crate::engine::tests::{config, fixture_config, random_pairs, random_values};
use crate::io::tensors::{self, Tensors};
use crate::model::names::{self, ParameterId, Part};
use crate::model::params::Layout;
use crate::model::{ClipConfig, Moe, Tower};

const FIXTURES: [&str; 2] = ["clip-tiny-gelu", "clip-tiny-quickgelu"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(name: &str) -> BTreeMap<String, Tensor> {
    let path = fixture(name).join("expected.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn golden(name: &str, dtype: DType) -> ReferenceClip {
    let activation = if name.ends_with("quickgelu") {
        Activation::QuickGelu
    } else {
        Activation::Gelu
    };
    let path = fixture(name).join("open_clip/open_clip_model.safetensors");
    let tensors = tensors::read(&path).unwrap();
    ReferenceClip::new(&fixture_config(activation), &tensors, dtype, &Device::Cpu)
        .unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Largest difference, absolute.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let pairs = values(found).into_iter().zip(values(expected));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Largest difference over max(1, largest entry).
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = values(expected).into_iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    difference(found, expected) / largest
}

fn dense_loss(model: &ReferenceClip, outputs: &Outputs) -> Tensor {
    let images = outputs.image_embeds.dim(0).unwrap();
    let eligible = Eligible::new(&model.config, images, &outputs.pooled);
    model.loss(outputs, &eligible, &Terms::default()).unwrap().total
}

/// Tolerances of the fixtures' README for f32; in f64 what rounding the expected values to
/// f32 leaves.
#[test]
fn the_dense_model_computes_what_open_clip_and_hugging_face_compute() {
    for name in FIXTURES {
        let expected = load(name);
        for (dtype, scale) in [(DType::F32, 1.0), (DType::F64, 0.01)] {
            let model = golden(name, dtype);
            let out =
                model.forward(&expected["pixel_values"], &expected["input_ids"]).unwrap();
            let check = |key: &str, found: &Tensor, tolerance: f64| {
                let error = relative(found, &expected[key]);
                assert!(error < tolerance * scale, "{name} {dtype:?} {key}: {error:e}");
            };
            check("image_embeds_raw", &out.image_embeds_raw, 1e-4);
            check("text_embeds_raw", &out.text_embeds_raw, 1e-4);
            check("image_embeds", &out.image_embeds, 2e-5);
            check("text_embeds", &out.text_embeds, 2e-5);
            check("logits_per_image", &out.logits_per_image, 1e-4);
            check("loss", &dense_loss(&model, &out), 1e-4);
            assert_eq!(out.ffn_in.len(), 6);
            for ((tower, layer), found) in &out.ffn_in {
                check(&format!("{}.layers.{layer}.ffn_in", tower.name()), found, 2e-5);
            }
        }
    }
}

/// The gradients the fixtures hold, under Hugging Face's names.
#[test]
fn dense_gradients_are_those_of_hugging_face() {
    for name in FIXTURES {
        let expected = load(name);
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F64, 2e-7)] {
            let model = golden(name, dtype);
            let out =
                model.forward(&expected["pixel_values"], &expected["input_ids"]).unwrap();
            let gradients = model.gradient_tensors(&dense_loss(&model, &out)).unwrap();
            let of = |id: ParameterId| gradients[&id.name()].clone();
            let query = of(ParameterId::Block(Tower::Text, 0, Part::InProjWeight));
            let found = [
                (
                    "vision_model.encoder.layers.1.mlp.fc1.weight",
                    of(ParameterId::Block(Tower::Vision, 1, Part::FcWeight)),
                ),
                (
                    "text_model.encoder.layers.0.self_attn.q_proj.weight",
                    query.narrow(0, 0, 24).unwrap(),
                ),
                (
                    "visual_projection.weight",
                    of(ParameterId::Projection(Tower::Vision)).t().unwrap(),
                ),
                (
                    "vision_model.embeddings.patch_embedding.weight",
                    of(ParameterId::PatchEmbedding),
                ),
                (
                    "text_model.embeddings.token_embedding.weight",
                    of(ParameterId::TokenEmbedding),
                ),
                ("logit_scale", of(ParameterId::LogitScale)),
            ];
            let stored = expected.keys().filter(|key| key.starts_with("grad.")).count();
            assert_eq!(stored, found.len());
            for (key, gradient) in found {
                let error = relative(&gradient, &expected[&format!("grad.{key}")]);
                assert!(error < tolerance, "{name} {dtype:?} {key}: {error:e}");
            }
        }
    }
}

#[test]
fn padding_with_the_end_of_text_changes_nothing() {
    for name in FIXTURES {
        let expected = load(name);
        let pixels = &expected["pixel_values"];
        let padded = &expected["input_ids_eot_padded"];
        let model = golden(name, DType::F32);
        let out = model.forward(pixels, padded).unwrap();
        assert!(difference(&out.text_embeds, &expected["text_embeds"]) < 2e-5);
        let model = model.with_pooling(Pooling::hugging_face(159));
        let same = model.forward(pixels, padded).unwrap();
        assert_eq!(values(&same.text_embeds), values(&out.text_embeds));
        assert_eq!(Pooling::hugging_face(2), Pooling::FirstMaximum);
    }
}

fn moe_fixture(dtype: DType) -> (BTreeMap<String, Tensor>, Value, Experts, Var) {
    let expected = load("moe");
    let text = std::fs::read_to_string(fixture("moe").join("expected.json")).unwrap();
    let var = |name: &str| {
        let tensor = expected[&format!("in.{name}")].to_dtype(dtype).unwrap();
        Var::from_tensor(&tensor).unwrap()
    };
    let part = |name: &str| var(name).as_tensor().clone();
    let experts = Experts {
        router: part("router.weight"),
        fc_weight: part("c_fc.weight"),
        fc_bias: part("c_fc.bias"),
        proj_weight: part("c_proj.weight"),
        proj_bias: part("c_proj.bias"),
    };
    let x = var("x");
    (expected, serde_json::from_str(&text).unwrap(), experts, x)
}

#[test]
fn the_moe_layer_computes_what_torch_computes() {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 2e-7)] {
        let (expected, scalars, experts, x) = moe_fixture(dtype);
        let act = Activation::Gelu;
        let routing = experts.forward(&x, 2, act).unwrap();
        let rows: Vec<usize> = (0..50).collect();
        let chosen: Vec<i64> =
            routing.chosen.iter().flatten().map(|&e| i64::try_from(e).unwrap()).collect();
        let indices: Vec<i64> =
            expected["out.topk_index"].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(chosen, indices);
        let indices = &expected["out.topk_index"];
        let ensemble = experts.ensemble(&x, act).unwrap();
        let kept = &routing.probs * indicator(&routing.chosen, &routing.probs).unwrap();
        let plain = experts.mix(&x, &kept.unwrap(), act).unwrap();
        let entropies = Tensor::new(routing.entropies().unwrap(), &Device::Cpu).unwrap();
        for (key, found) in [
            ("logits", &routing.logits),
            ("probs", &routing.probs),
            ("topk_weight", &routing.weights.gather(indices, 1).unwrap()),
            ("out", &routing.out),
            ("out_not_renormalised", &plain),
            ("dense_out", &ensemble),
            ("mean_probs", &routing.probs.mean(0).unwrap()),
            ("entropy_per_token", &entropies),
        ] {
            // In f64 the rounding of the stored values is what is left.
            let measure = if dtype == DType::F32 { difference } else { relative };
            let error = measure(found, &expected[&format!("out.{key}")]);
            assert!(error < tolerance, "{dtype:?} {key}: {error:e}");
        }
        let mut counts = vec![0; 4];
        routing.chosen.iter().flatten().for_each(|&e| counts[e] += 1);
        assert_eq!(counts, expected["out.counts"].to_vec1::<i64>().unwrap());
        for (key, found) in [
            ("lb", routing.balance(&rows).unwrap()),
            ("z", routing.router_z(&rows).unwrap()),
            ("eesd_relative", routing.distance(&ensemble, &rows).unwrap()),
            ("entropy", entropies.mean_all().unwrap()),
        ] {
            let error = (values(&found)[0] - scalars[key].as_f64().unwrap()).abs();
            assert!(error < tolerance, "{dtype:?} {key}: {error:e}");
        }
    }
}

#[test]
fn moe_gradients_are_those_of_torch() {
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F64, 2e-7)] {
        let (expected, _, experts, x) = moe_fixture(dtype);
        let act = Activation::Gelu;
        let routing = experts.forward(&x, 2, act).unwrap();
        let rows: Vec<usize> = (0..50).collect();
        let projected =
            (&routing.out * expected["in.r"].to_dtype(dtype).unwrap()).unwrap();
        let balance = routing.balance(&rows).unwrap();
        let z = routing.router_z(&rows).unwrap();
        let target = experts.ensemble(&x, act).unwrap();
        let total = ((projected.sum_all().unwrap() + (&balance * 0.1).unwrap()).unwrap()
            + (&z * 0.01).unwrap())
        .unwrap();
        let eesd = routing.distance(&target, &rows).unwrap();
        let inputs = [("router.weight", &experts.router), ("x", x.as_tensor())];
        let all = [
            ("c_fc.weight", &experts.fc_weight),
            ("c_fc.bias", &experts.fc_bias),
            ("c_proj.weight", &experts.proj_weight),
            ("c_proj.bias", &experts.proj_bias),
        ];
        let mut compared = 0;
        for (prefix, scalar, tensors) in [
            ("grad", &total, [&inputs[..], &all[..]].concat()),
            ("grad_lb", &balance, inputs.to_vec()),
            ("grad_z", &z, inputs.to_vec()),
            ("grad_eesd", &eesd, inputs.to_vec()),
        ] {
            let gradients = scalar.backward().unwrap();
            for (name, tensor) in tensors {
                let found = gradients.get(tensor).unwrap();
                let error = relative(found, &expected[&format!("{prefix}.{name}")]);
                assert!(error < tolerance, "{dtype:?} {prefix}.{name}: {error:e}");
                compared += 1;
            }
        }
        assert_eq!(
            compared,
            expected.keys().filter(|key| key.starts_with("grad")).count()
        );
    }
}

/// A small MoE model with random weights, and its inputs: pictures, and captions that end at
/// different positions.
fn random_moe() -> (ClipConfig, Tensors, Tensor, Tensor) {
    let config = config(true);
    let tensors = Layout::new(&config).unflatten(&random_values(&config, "reference"));
    let (pixels, _) = random_pairs(&config, 4, "reference");
    let pixels = Tensor::from_vec(pixels, (4, 3, 8, 8), &Device::Cpu);
    let ids = [
        [18_u32, 3, 4, 19, 0, 0],
        [18, 5, 19, 19, 19, 19],
        [18, 7, 3, 9, 11, 19],
        [18, 19, 0, 0, 0, 0],
    ];
    (config, tensors, pixels.unwrap(), Tensor::new(&ids, &Device::Cpu).unwrap())
}

fn shifted(tensors: &Tensors, name: &str, index: usize, by: f32) -> (Tensors, f32) {
    let mut tensors = tensors.clone();
    let value = &mut tensors.get_mut(name).unwrap().data[index];
    let before = *value;
    *value += by;
    let exact = *value - before;
    (tensors, exact)
}

/// In f64, for the largest entry of every parameter's gradient. EESD is left out because its
/// teacher is a constant to autograd but not to a difference; the `moe` fixture holds it.
#[test]
fn gradients_of_an_moe_model_are_finite_differences() {
    let (config, tensors, pixels, ids) = random_moe();
    let terms = Terms { balance: 0.5, router_z: 0.3, ..Terms::default() };
    let run = |tensors: &Tensors| {
        let model =
            ReferenceClip::new(&config, tensors, DType::F64, &Device::Cpu).unwrap();
        let out = model.forward(&pixels, &ids).unwrap();
        let eligible = Eligible::new(&config, 4, &out.pooled);
        let total = model.loss(&out, &eligible, &terms).unwrap().total;
        (model, total)
    };
    let (model, total) = run(&tensors);
    let gradients = model.gradients(&total).unwrap();
    assert_eq!(gradients.len(), tensors.len());
    for (name, gradient) in gradients {
        let largest =
            |a: &usize, b: &usize| gradient[*a].abs().total_cmp(&gradient[*b].abs());
        let index = (0..gradient.len()).max_by(largest).unwrap();
        assert!(gradient[index].abs() > 1e-6, "{name}: no gradient");
        let (up, above) = shifted(&tensors, &name, index, 1e-4);
        let (down, below) = shifted(&tensors, &name, index, -1e-4);
        let rise = values(&run(&up).1)[0] - values(&run(&down).1)[0];
        let expected = rise / f64::from(above - below);
        let found = f64::from(gradient[index]);
        assert!(
            (found - expected).abs() < 2e-6 + 1e-5 * expected.abs(),
            "{name}: {found} {expected}"
        );
    }
}

/// Every trainable tensor is reached, in f32 too, with all losses on.
#[test]
fn every_parameter_gets_a_gradient() {
    let (config, tensors, pixels, ids) = random_moe();
    for dtype in [DType::F32, DType::F64] {
        let model = ReferenceClip::new(&config, &tensors, dtype, &Device::Cpu).unwrap();
        let out = model.forward(&pixels, &ids).unwrap();
        let eligible = Eligible::new(&config, 4, &out.pooled);
        let eesd = Some(Eesd { weight: 0.1, teacher: &tensors, fraction: 0.5 });
        let terms = Terms { balance: 0.01, router_z: 0.001, eesd, ..Terms::default() };
        let losses = model.loss(&out, &eligible, &terms).unwrap();
        let sum = values(&losses.clip)[0]
            + 0.01 * values(&losses.balance)[0]
            + 0.001 * values(&losses.router_z)[0]
            + 0.1 * values(&losses.eesd)[0];
        assert!((values(&losses.total)[0] - sum).abs() < 1e-6);
        assert!(values(&losses.eesd)[0] > 0.0);
        for (name, gradient) in model.gradients(&losses.total).unwrap() {
            assert!(gradient.iter().any(|g| g.abs() > 0.0), "{name}");
            assert!(gradient.iter().all(|g| g.is_finite()), "{name}");
        }
    }
}

/// METHOD §1: with experts that all equal the dense FFN, nothing changes.
#[test]
fn equal_experts_preserve_the_function() {
    let expected = load(FIXTURES[0]);
    let dense = golden(FIXTURES[0], DType::F64);
    let mut config = dense.config.clone();
    let experts = 3;
    config.moe = Some(Moe {
        experts,
        top_k: 2,
        rank: None,
        vision_blocks: vec![1],
        text_blocks: vec![0, 2],
    });
    let path = fixture(FIXTURES[0]).join("open_clip/open_clip_model.safetensors");
    let mut weights = tensors::read(&path).unwrap();
    for (tower, index) in [(Tower::Vision, 1), (Tower::Text, 0), (Tower::Text, 2)] {
        let block = names::block(tower, index);
        for (one, stack) in Part::DENSE.into_iter().zip(&Part::MOE[1..]) {
            let tensor = weights.remove(&block.name(one)).unwrap();
            let shape = [&[experts], tensor.shape.as_slice()].concat();
            let stacked =
                tensors::Tensor::new(shape, tensor.data.repeat(experts)).unwrap();
            weights.insert(block.name(*stack), stacked);
        }
        let width = config.tower(tower).width;
        let logits: Vec<f32> = (0..experts * width).map(|i| (i as f32).sin()).collect();
        let router = tensors::Tensor::new(vec![experts, width], logits).unwrap();
        weights.insert(block.name(Part::Router), router);
    }
    let moe = ReferenceClip::new(&config, &weights, DType::F64, &Device::Cpu).unwrap();
    let (pixels, ids) = (&expected["pixel_values"], &expected["input_ids"]);
    let (a, b) = (dense.forward(pixels, ids).unwrap(), moe.forward(pixels, ids).unwrap());
    assert!(difference(&a.image_embeds, &b.image_embeds) < 1e-12);
    assert!(difference(&a.text_embeds, &b.text_embeds) < 1e-12);
    assert_eq!(b.routing.len(), 3);
}

/// Rows that do not count change neither losses nor gradients.
#[test]
fn positions_after_the_end_of_text_do_not_count() {
    let (config, tensors, pixels, ids) = random_moe();
    let other = [
        [18_u32, 3, 4, 19, 7, 2],
        [18, 5, 19, 1, 2, 3],
        [18, 7, 3, 9, 11, 19],
        [18, 19, 9, 8, 7, 6],
    ];
    let other = Tensor::new(&other, &Device::Cpu).unwrap();
    let model = ReferenceClip::new(&config, &tensors, DType::F64, &Device::Cpu).unwrap();
    let eesd = Some(Eesd { weight: 0.1, teacher: &tensors, fraction: 0.3 });
    let terms = Terms { balance: 0.01, router_z: 0.001, eesd, ..Terms::default() };
    let run = |ids: &Tensor| {
        let out = model.forward(&pixels, ids).unwrap();
        assert_eq!(out.pooled, [3, 2, 5, 1]);
        let eligible = Eligible::new(&config, 4, &out.pooled);
        assert_eq!(eligible.rows(Tower::Text).len(), 11);
        values(&model.loss(&out, &eligible, &terms).unwrap().total)[0]
    };
    assert!((run(&ids) - run(&other)).abs() < 1e-12);
}

#[test]
fn ties_go_to_the_lower_index() {
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let stack =
        |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let experts = Experts {
        router: zeros((4, 2)).unwrap(),
        fc_weight: stack((4, 3, 2)).unwrap(),
        fc_bias: zeros((4, 3)).unwrap(),
        proj_weight: stack((4, 2, 3)).unwrap(),
        proj_bias: zeros((4, 2)).unwrap(),
    };
    let routing = experts.forward(&zeros((3, 2)).unwrap(), 2, Activation::Gelu).unwrap();
    assert_eq!(routing.chosen, vec![vec![0, 1]; 3]);
    let entropies = routing.entropies().unwrap();
    // The ceiling of 0.34 × 3 rows is two; each group chooses for itself.
    assert_eq!(super::most_uncertain(&entropies, &[vec![0, 1, 2]], 0.34), [0, 1]);
    assert_eq!(super::most_uncertain(&[1.0, 3.0, 2.0], &[vec![0, 2]], 0.1), [2]);
    let groups = [vec![0], vec![1, 2]];
    assert_eq!(super::most_uncertain(&[1.0, 3.0, 2.0], &groups, 0.5), [0, 1]);
    assert!(super::most_uncertain(&[1.0], &[vec![0]], 0.0).is_empty());
}

#[test]
fn impossible_inputs_are_refused_with_a_sentence() {
    let (config, tensors, pixels, ids) = random_moe();
    let model = ReferenceClip::new(&config, &tensors, DType::F32, &Device::Cpu).unwrap();
    let message = |pixels: &Tensor, ids: &Tensor| {
        model.forward(pixels, ids).unwrap_err().message().to_owned()
    };
    let narrow = ids.narrow(1, 0, 3).unwrap();
    assert_eq!(message(&pixels, &narrow), "ids are [4, 3], expected [B, 6]");
    let large = (&ids + 2.0).unwrap();
    assert_eq!(message(&pixels, &large), "token id 20 is not below 20");
    assert_eq!(message(&narrow, &ids), "pixels are [4, 3], expected [B, 3, 8, 8]");
    let mut fewer = tensors.clone();
    fewer.remove("visual.proj");
    assert!(ReferenceClip::new(&config, &fewer, DType::F32, &Device::Cpu).is_err());
    let out = model.forward(&pixels, &ids).unwrap();
    let eligible = Eligible { vision: vec![true; 20], text: vec![false; 24] };
    assert!(model.loss(&out, &eligible, &Terms::default()).is_err());
}
