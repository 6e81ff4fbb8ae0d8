//! Foreign checkpoints: three layouts of the same weights, and everything that is refused.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::config::Activation;
use crate::engine::candle::ReferenceClip;
use crate::image::Convention;
use crate::io::tensors::Tensor;
use crate::model::names::{self, ParameterId, Part};
use crate::model::{Moe, TextConfig, Tower, VisionConfig};

const FIXTURES: [(&str, Activation); 2] = [
    ("clip-tiny-gelu", Activation::Gelu),
    ("clip-tiny-quickgelu", Activation::QuickGelu),
];

fn fixture(name: &str, folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).join(folder)
}

fn hints(activation: Option<Activation>) -> Hints {
    Hints { activation, ..Hints::default() }
}

fn import(path: &Path, activation: Option<Activation>) -> Result<(ClipConfig, Tensors)> {
    super::import(path, &hints(activation))
}

/// A writable copy of a fixture's folder.
fn copy(name: &str, folder: &str) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name, folder)).unwrap() {
        let entry = entry.unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        fs::write(target.path().join(entry.file_name()), bytes).unwrap();
    }
    target
}

/// The whole chain of messages of the error.
fn refusal(path: &Path, activation: Option<Activation>) -> String {
    format!("{:?}", import(path, activation).unwrap_err())
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// Foreign tensors as (name, type, shape, bytes), to write files of any type.
type Raw = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn read_raw(path: &Path) -> Raw {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, view): (String, TensorView<'_>)| {
        (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    file.tensors().into_iter().map(own).collect()
}

fn write_raw(path: &Path, raw: &[(String, Dtype, Vec<usize>, Vec<u8>)]) {
    let view = |(name, dtype, shape, bytes): &'_ (String, Dtype, Vec<usize>, Vec<u8>)| {
        (name.clone(), *dtype, shape.clone(), bytes.clone())
    };
    let owned: Raw = raw.iter().map(view).collect();
    let views = owned.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn three_layouts_of_the_same_weights_are_the_same_model() {
    for (name, activation) in FIXTURES {
        let (config, tensors) = import(&fixture(name, "open_clip"), None).unwrap();
        assert_eq!(config.activation, activation);
        assert_eq!((config.vision.heads, config.text.hidden), (2, 96));
        names::check(&config, tensors.iter().map(|(n, t)| (&**n, &*t.shape))).unwrap();
        let other = import(&fixture(name, "hf"), None).unwrap();
        assert!(other == (config.clone(), tensors.clone()), "{name}");
        let file = fixture(name, "hf").join("model.safetensors");
        assert!(import(&file, None).unwrap() == other, "{name}");
        // Asking for what the configuration says is fine.
        assert!(import(&file, Some(activation)).is_ok());
    }
    let checkpoint = fixture("clip-tiny-gelu", "open_clip").join("checkpoint.pt");
    let open_clip = import(&fixture("clip-tiny-gelu", "open_clip"), None).unwrap();
    assert!(import(&checkpoint, None).unwrap() == open_clip);
}

/// Outputs of the imported models, within the fixtures' tolerance.
#[test]
fn imported_models_compute_the_published_embeddings() {
    for (name, _) in FIXTURES {
        let path = fixture(name, "expected.safetensors");
        let expected = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        for layout in ["hf", "open_clip", "open_clip/checkpoint.pt"] {
            let path = fixture(name, layout);
            if !path.exists() {
                continue;
            }
            let (config, tensors) = import(&path, None).unwrap();
            let model =
                ReferenceClip::new(&config, &tensors, DType::F32, &Device::Cpu).unwrap();
            let out =
                model.forward(&expected["pixel_values"], &expected["input_ids"]).unwrap();
            for (key, found) in
                [("image_embeds", &out.image_embeds), ("text_embeds", &out.text_embeds)]
            {
                let error = (found - &expected[key]).unwrap().abs().unwrap();
                let error = error.max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(error < 2e-5, "{name} {layout} {key}: {error}");
            }
        }
    }
}

#[test]
fn a_contradicted_or_unknown_activation_is_refused() {
    let (gelu, quick) = (Some(Activation::Gelu), Some(Activation::QuickGelu));
    let hf = fixture("clip-tiny-gelu", "hf");
    let message = refusal(&hf, quick);
    assert!(
        message.contains("says activation gelu, but quick_gelu was asked for"),
        "{message}"
    );
    let named = fixture("clip-tiny-quickgelu", "open_clip");
    assert!(refusal(&named, gelu).contains("asked for"));
    // open_clip's default is not named in the file: a request wins over it.
    let silent = fixture("clip-tiny-gelu", "open_clip");
    assert_eq!(import(&silent, quick).unwrap().0.activation, Activation::QuickGelu);

    let folder = copy("clip-tiny-gelu", "hf");
    let path = folder.path().join("config.json");
    edit(&path, |json| json["text_config"]["hidden_act"] = json!("gelu_new"));
    assert!(
        refusal(folder.path(), None)
            .contains("hidden_act is \"gelu_new\", expected gelu")
    );
    edit(&path, |json| json["text_config"]["hidden_act"] = json!("quick_gelu"));
    assert!(refusal(folder.path(), None).contains("expected the image tower's"));
}

/// A checkpoint without configuration needs the activation and the heads.
#[test]
fn shapes_are_read_off_the_tensors_but_activation_and_heads_are_not() {
    let folder = copy("clip-tiny-gelu", "open_clip");
    fs::remove_file(folder.path().join("open_clip_config.json")).unwrap();
    let checkpoint = folder.path().join("checkpoint.pt");
    let message = refusal(&checkpoint, None);
    let wanted = "give --activation (quick_gelu for OpenAI's models) and --heads (of the \
                  image tower, whose width is 32) and --text-heads (of the text tower, whose \
                  width is 24), or --config";
    assert!(message.contains(wanted), "{message}");
    let message = refusal(&checkpoint, Some(Activation::Gelu));
    assert!(message.contains("give --heads") && !message.contains("--act"), "{message}");
    let message = refusal(folder.path(), None);
    assert!(message.contains("holds no checkpoint"), "{message}");
    assert!(message.contains("found open_clip_model.safetensors"), "{message}");

    let config = ClipConfig {
        embed_dim: 8,
        activation: Activation::QuickGelu,
        vision: VisionConfig {
            image_size: 12,
            patch: 4,
            width: 128,
            layers: 2,
            heads: 2,
            hidden: 48,
        },
        text: TextConfig {
            context: 5,
            vocabulary: 30,
            width: 64,
            layers: 1,
            heads: 1,
            hidden: 40,
        },
        moe: None,
    };
    let filled = |shape: &[usize]| {
        let data = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        Tensor::new(shape.to_vec(), data).unwrap()
    };
    let tensors: Tensors = names::parameters(&config)
        .into_iter()
        .map(|p| (p.name, filled(&p.shape)))
        .collect();
    let target = tempfile::tempdir().unwrap();
    let pictures = Preprocessing::OPENAI;
    export_open_clip(target.path(), &config, &tensors, &pictures).unwrap();
    let beside = import(target.path(), None).unwrap();
    assert!(beside == (config.clone(), tensors.clone()));
    fs::remove_file(target.path().join("open_clip_config.json")).unwrap();
    let weights = target.path().join("open_clip_model.safetensors");
    let activation = Some(Activation::QuickGelu);
    let (heads, text_heads) = (Some(2), Some(1));
    let said = Hints { activation, heads, text_heads, config: None };
    let alone = super::import(&weights, &said).unwrap();
    assert!(alone == (config.clone(), tensors));
    // Nothing is guessed from 64 values of a head: another number is taken as it is said.
    let other = super::import(&weights, &Hints { heads: Some(4), ..said }).unwrap();
    assert_eq!(other.0.vision.heads, 4);
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let folder = copy("clip-tiny-gelu", "hf");
    let path = folder.path().join("model.safetensors");
    let mut raw = read_raw(&path);
    raw.retain(|(name, ..)| name != "text_model.encoder.layers.1.self_attn.k_proj.bias");
    for (name, _, shape, _) in &mut raw {
        if name == "visual_projection.weight" {
            shape.reverse();
        }
        if name == "vision_model.pre_layrnorm.weight" {
            *name = "vision_model.pre_layernorm.weight".to_owned();
        }
    }
    write_raw(&path, &raw);
    let message = refusal(folder.path(), None);
    for part in [
        "2 missing: vision_model.pre_layrnorm.weight, \
         text_model.encoder.layers.1.self_attn.k_proj.bias;",
        "1 unexpected: vision_model.pre_layernorm.weight;",
        "1 of another shape: visual_projection.weight is [32, 16], not [16, 32]",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn half_precision_and_foreign_buffers_are_read() {
    let (config, exact) = import(&fixture("clip-tiny-gelu", "hf"), None).unwrap();
    for (dtype, kind) in
        [(Dtype::F16, DType::F16), (Dtype::BF16, DType::BF16), (Dtype::F64, DType::F64)]
    {
        let convert = |values: &[f32]| {
            candle_core::Tensor::new(values, &Device::Cpu)
                .unwrap()
                .to_dtype(kind)
                .unwrap()
        };
        let folder = copy("clip-tiny-gelu", "hf");
        let path = folder.path().join("model.safetensors");
        let mut raw = read_raw(&path);
        for (_, dtype_of, _, bytes) in &mut raw {
            let values: Vec<f32> =
                bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            *dtype_of = dtype;
            bytes.clear();
            convert(&values).write_bytes(bytes).unwrap();
        }
        let positions: Vec<u8> = (0..16_i64).flat_map(i64::to_le_bytes).collect();
        let buffer =
            |name: &str| (name.to_owned(), Dtype::I64, vec![1, 16], positions.clone());
        raw.push(buffer("text_model.embeddings.position_ids"));
        raw.push(buffer("vision_model.embeddings.position_ids"));
        write_raw(&path, &raw);
        let (same, rounded) = import(folder.path(), None).unwrap();
        assert_eq!(same, config);
        for (name, tensor) in &rounded {
            let expected = convert(&exact[name].data).to_dtype(DType::F32).unwrap();
            let expected: Vec<f32> = expected.to_vec1().unwrap();
            assert!(tensor.data == expected, "{dtype:?} {name}");
        }
        raw.push(buffer("step"));
        write_raw(&path, &raw);
        assert!(refusal(folder.path(), None).contains("tensor step has type I64"));
    }
}

#[test]
fn prefixes_of_wrappers_are_taken_off_once() {
    let folder = copy("clip-tiny-quickgelu", "open_clip");
    let path = folder.path().join("open_clip_model.safetensors");
    let raw = read_raw(&path);
    let mut wrapped = raw.clone();
    for (name, ..) in &mut wrapped {
        let text = !name.starts_with("visual.") && name != "logit_scale";
        *name = format!("module.{}{name}", if text { "text." } else { "" });
    }
    let entry = |name: &str, values: &[f32]| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        (name.to_owned(), Dtype::F32, vec![values.len()], bytes)
    };
    wrapped.push(entry("input_resolution", &[32.0]));
    write_raw(&path, &wrapped);
    let plain = import(&fixture("clip-tiny-quickgelu", "open_clip"), None).unwrap();
    assert!(import(folder.path(), None).unwrap() == plain);
    // The logit scale may be a vector of one.
    let (_, _, shape, _) =
        wrapped.iter_mut().find(|t| t.0 == "module.logit_scale").unwrap();
    shape.push(1);
    write_raw(&path, &wrapped);
    assert!(import(folder.path(), None).unwrap() == plain);

    let mut twice = raw.clone();
    twice.push(entry("module.logit_scale", &[1.0]));
    write_raw(&path, &twice);
    assert!(refusal(folder.path(), None).contains("tensor logit_scale is there twice"));
    let mut bad = raw;
    let (_, _, _, bytes) = &mut bad[0];
    bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    write_raw(&path, &bad);
    assert!(refusal(folder.path(), None).contains("holds NaN"));
}

#[test]
fn shards_are_joined_and_must_agree_with_their_index() {
    let folder = copy("clip-tiny-gelu", "hf");
    let whole = folder.path().join("model.safetensors");
    let raw = read_raw(&whole);
    fs::remove_file(&whole).unwrap();
    let (left, right) = raw.split_at(raw.len() / 2);
    write_raw(&folder.path().join("a.safetensors"), left);
    write_raw(&folder.path().join("b.safetensors"), right);
    let index = folder.path().join("model.safetensors.index.json");
    let mut map = serde_json::Map::new();
    for (shard, part) in [("a.safetensors", left), ("b.safetensors", right)] {
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(shard))));
    }
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let one = import(&fixture("clip-tiny-gelu", "hf"), None).unwrap();
    assert!(import(folder.path(), None).unwrap() == one);
    edit(&index, |json| json["weight_map"]["extra"] = json!("a.safetensors"));
    assert!(refusal(folder.path(), None).contains("disagree about extra"));
    edit(&index, |json| json["weight_map"]["extra"] = json!("../a.safetensors"));
    assert!(refusal(folder.path(), None).contains("is not a plain file name"));
    fs::remove_file(folder.path().join("a.safetensors")).unwrap();
    edit(&index, |json| json["weight_map"]["extra"] = json!("b.safetensors"));
    assert!(refusal(folder.path(), None).contains("a.safetensors"));
}

#[test]
fn what_is_exported_is_what_was_published() {
    for (name, _) in FIXTURES {
        let (config, tensors) = import(&fixture(name, "hf"), None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (open_clip, hf) = (folder.path().join("open_clip"), folder.path().join("hf"));
        export_open_clip(&open_clip, &config, &tensors, &Preprocessing::OPENAI).unwrap();
        let pictures = &Preprocessing::OPENAI;
        export_hugging_face(&hf, &config, &tensors, pictures, None).unwrap();
        for (mine, theirs, file) in [
            (&open_clip, "open_clip", "open_clip_model.safetensors"),
            (&hf, "hf", "model.safetensors"),
        ] {
            let (mut a, mut b) =
                (read_raw(&mine.join(file)), read_raw(&fixture(name, theirs).join(file)));
            a.sort_by(|x, y| x.0.cmp(&y.0));
            b.sort_by(|x, y| x.0.cmp(&y.0));
            assert!(a == b, "{name} {file}");
            assert!(import(mine, None).unwrap() == (config.clone(), tensors.clone()));
        }
        let bytes = fs::read(hf.join("model.safetensors")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    }
}

#[test]
fn shards_are_the_same_model_and_no_larger_than_asked() {
    let (config, tensors) = import(&fixture("clip-tiny-gelu", "hf"), None).unwrap();
    let base = tempfile::tempdir().unwrap();
    let model = read(&fixture("clip-tiny-gelu", "hf"), &Hints::default()).unwrap();
    let (hf, own) = (base.path().join("hf"), base.path().join("own"));
    let pictures = Preprocessing::new([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]);
    export_hugging_face(&hf, &config, &tensors, &pictures, Some(40_000)).unwrap();
    export_upcycle(&own, &model, None, Some(40_000)).unwrap();
    for folder in [&hf, &own] {
        assert!(!folder.join("model.safetensors").exists());
        assert!(import(folder, None).unwrap() == (config.clone(), tensors.clone()));
        assert_eq!(shape(folder, &Hints::default()).unwrap(), config);
        let sizes =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        assert!(sizes.max().unwrap() < 50_000);
    }
    let found = Preprocessing::of_checkpoint(&hf).unwrap();
    // Hugging Face's processor drops transparency, whoever trained the model.
    let dropped =
        Preprocessing { convention: Convention::HuggingFace, size: Some(32), ..pictures };
    assert_eq!(found, Some(dropped));
    assert_eq!(Preprocessing::of_checkpoint(&own).unwrap(), None);
    let published =
        Preprocessing::of_checkpoint(&fixture("clip-tiny-gelu", "open_clip")).unwrap();
    assert!(published.is_none_or(|found| found == Preprocessing::OPENAI));
}

#[test]
fn models_with_experts_are_not_exported() {
    let (mut config, tensors) = import(&fixture("clip-tiny-gelu", "hf"), None).unwrap();
    let (vision_blocks, text_blocks) = (vec![1], vec![]);
    config.moe =
        Some(Moe { experts: 2, top_k: 2, rank: None, vision_blocks, text_blocks });
    let folder = tempfile::tempdir().unwrap();
    let pictures = &Preprocessing::OPENAI;
    let error = export_hugging_face(folder.path(), &config, &tensors, pictures, None);
    assert!(error.unwrap_err().message().contains("MoE layers"));
}

/// Our own folders, `config.json` beside `model.safetensors`, are checkpoints too.
#[test]
fn our_own_checkpoints_are_read() {
    let (config, tensors) = import(&fixture("clip-tiny-quickgelu", "hf"), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let json = serde_json::to_string(&config).unwrap();
    fs::write(folder.path().join("config.json"), json).unwrap();
    let path = folder.path().join("model.safetensors");
    crate::io::tensors::write(&path, &tensors).unwrap();
    assert!(import(folder.path(), None).unwrap() == (config, tensors));
    assert!(refusal(folder.path(), Some(Activation::Gelu)).contains("asked for"));
}

#[test]
fn unsupported_architectures_are_refused_by_name() {
    let refuse_open_clip = |change: fn(&mut Value), expected: &str| {
        let folder = copy("clip-tiny-gelu", "open_clip");
        edit(&folder.path().join("open_clip_config.json"), change);
        let message = refusal(folder.path(), None);
        assert!(message.contains(expected), "{message}");
    };
    refuse_open_clip(
        |json| json["model_cfg"]["vision_cfg"]["attentional_pool"] = json!(true),
        "attentional_pool = true is not supported; only false is supported",
    );
    refuse_open_clip(
        |json| json["model_cfg"]["vision_cfg"]["layers"] = json!([3, 4, 6, 3]),
        "layers is [3,4,6,3], expected a positive whole number",
    );
    refuse_open_clip(
        |json| json["model_cfg"]["text_cfg"]["pool_type"] = json!("last"),
        "pool_type = \"last\" is not supported; only \"argmax\" is supported",
    );
    refuse_open_clip(
        |json| json["model_cfg"]["vision_cfg"]["head_width"] = json!(64),
        "head_width is 64, expected a divisor of 32",
    );
    refuse_open_clip(
        |json| json["model_cfg"]["vision_cfg"]["patch_size"] = json!(5),
        "patches of 5 do not divide pictures of 32 pixels",
    );
    refuse_open_clip(
        |json| json["model_cfg"]["text_cfg"]["layers"] = json!(4_000_000),
        "4000000 layers",
    );
    let refuse_hf = |change: fn(&mut Value), expected: &str| {
        let folder = copy("clip-tiny-gelu", "hf");
        edit(&folder.path().join("config.json"), change);
        let message = refusal(folder.path(), None);
        assert!(message.contains(expected), "{message}");
    };
    refuse_hf(|json| json["model_type"] = json!("siglip"), "model_type is \"siglip\"");
    refuse_hf(
        |json| json["vision_config"]["layer_norm_eps"] = json!(1e-6),
        "layer_norm_eps",
    );
    refuse_hf(
        |json| json["text_config"]["eos_token_id"] = json!(7),
        "eos_token_id is 7, expected 2 or the last id, 159",
    );
    refuse_hf(
        |json| json["text_config"]["num_attention_heads"] = json!(5),
        "text: 5 heads do not divide the width 24",
    );
}

/// Cut and flipped pickles end in an error or, where the flip is harmless, in a model of the
/// right shape; never in a panic that leaves the function.
#[test]
fn damaged_checkpoints_never_panic() {
    let folder = copy("clip-tiny-gelu", "open_clip");
    let path = folder.path().join("checkpoint.pt");
    let bytes = fs::read(&path).unwrap();
    for cut in (0..bytes.len()).step_by(bytes.len() / 40) {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert!(import(&path, None).is_err(), "{cut}");
    }
    // The pickle comes first in the archive; its opcodes are what candle interprets.
    for at in (0..8000).step_by(53) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x5a;
        fs::write(&path, &flipped).unwrap();
        let _ = import(&path, None);
    }
    fs::write(&path, b"no archive").unwrap();
    assert!(refusal(&path, None).contains("is not a PyTorch checkpoint"));
    let odd = folder.path().join("weights.txt");
    fs::write(&odd, b"").unwrap();
    assert!(refusal(&odd, None).contains("is not a checkpoint"));
    assert!(
        refusal(&folder.path().join("gone.safetensors"), None).contains("does not exist")
    );
}

#[test]
fn the_stacked_projection_is_query_key_value() {
    let (_, tensors) = import(&fixture("clip-tiny-gelu", "hf"), None).unwrap();
    let raw = read_raw(&fixture("clip-tiny-gelu", "hf").join("model.safetensors"));
    let key = "text_model.encoder.layers.2.self_attn.k_proj.weight";
    let (.., bytes) = raw.iter().find(|(name, ..)| name == key).unwrap();
    let id = ParameterId::Block(Tower::Text, 2, Part::InProjWeight);
    let stacked = &tensors[&id.name()];
    assert_eq!(stacked.shape, [72, 24]);
    let part: Vec<u8> =
        stacked.data[24 * 24..2 * 24 * 24].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(part == *bytes);
}

/// Sizes from `open_clip`'s model configurations; counts as published for these models,
/// by `open_clip` (`profile.csv`) and others.
#[test]
fn the_usual_sizes_have_the_published_number_of_parameters() {
    // Width, layers, head width, patch of the image tower; width, heads, layers of the text
    // tower; width of the embedding.
    let sizes = [
        ([768, 12, 64, 32], [512, 8, 12], 512, 151_277_313),
        ([768, 12, 64, 16], [512, 8, 12], 512, 149_620_737),
        ([1024, 24, 64, 14], [768, 12, 12], 768, 427_616_513),
        ([1280, 32, 80, 14], [1024, 16, 24], 1024, 986_109_441),
    ];
    for ([width, layers, head_width, patch], text, embed_dim, count) in sizes {
        let folder = tempfile::tempdir().unwrap();
        let json = json!({"model_cfg": {
            "embed_dim": embed_dim,
            "vision_cfg": {
                "image_size": 224, "layers": layers, "width": width,
                "head_width": head_width, "patch_size": patch,
            },
            "text_cfg": {
                "context_length": 77, "vocab_size": 49408,
                "width": text[0], "heads": text[1], "layers": text[2],
            },
        }});
        let path = folder.path().join("open_clip_config.json");
        fs::write(path, json.to_string()).unwrap();
        let shape = shape(folder.path(), &Hints::default()).unwrap();
        assert_eq!(shape.vision.heads, width / head_width);
        let (total, active) = crate::model::params::parameter_counts(&shape);
        assert_eq!((total, active), (count, count), "patches of {patch}, width {width}");
    }
}
