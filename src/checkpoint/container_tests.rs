//! PyTorch's containers, the marks of wrappers, and what is not a CLIP.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::config::Activation;
use crate::io::tensors::{self, Tensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/containers").join(name)
}

fn hints() -> Hints {
    Hints {
        activation: Some(Activation::Gelu),
        heads: Some(2),
        text_heads: Some(1),
        config: None,
    }
}

fn plain() -> (ClipConfig, Tensors) {
    import(&fixture("plain.safetensors"), &hints()).unwrap()
}

fn refusal(path: &Path) -> String {
    import(path, &hints()).unwrap_err().chain()
}

/// Gives the names of a checkpoint another form.
type Rename = Box<dyn Fn(&str) -> String>;

#[test]
fn every_container_of_pytorch_holds_the_same_model() {
    let plain = plain();
    assert_eq!((plain.0.vision.image_size, plain.0.text.vocabulary), (4, 12));
    for file in [
        "legacy.pt",
        "key_model.pt",
        "key_model_state_dict.pt",
        "nested.pt",
        "views.pt",
        "views_legacy.pt",
    ] {
        assert!(import(&fixture(file), &hints()).unwrap() == plain, "{file}");
    }
    // Half precision, with an optimizer, a random state and an average beside the model.
    for file in ["training.pt", "training_legacy.pt"] {
        let (config, tensors) = import(&fixture(file), &hints()).unwrap();
        assert_eq!(config, plain.0);
        for (name, tensor) in &tensors {
            let gaps = tensor.data.iter().zip(&plain.1[name].data);
            let worst = gaps.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-3, "{file} {name}: {worst}");
        }
    }
}

#[test]
fn a_container_that_is_not_read_says_what_to_do() {
    for (file, advice) in [
        ("protocol4.pt", "torch.save(torch.load(path, weights_only=False), path)"),
        ("scripted.pt", "torch.save(torch.jit.load(path).state_dict(), new_path)"),
        ("two.pt", "several dicts (student, teacher)"),
    ] {
        let error = refusal(&fixture(file));
        assert!(error.contains(advice), "{file}: {error}");
    }
}

/// An older file that is cut or changed ends in a sentence or in a model of the right shape.
#[test]
fn damaged_older_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    let bytes = fs::read(fixture("training_legacy.pt")).unwrap();
    for cut in (0..bytes.len()).step_by(101) {
        fs::write(&path, &bytes[..cut]).unwrap();
        // What follows the last storage that is read may be missing.
        let read = import(&path, &hints());
        assert!(read.is_err() || cut * 10 > bytes.len() * 4, "{cut}");
    }
    for at in (0..bytes.len()).step_by(13) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x5a;
        fs::write(&path, &flipped).unwrap();
        let _ = import(&path, &hints());
    }
}

/// Writes the fixture's tensors under other names and reads them back.
fn renamed(rename: impl Fn(&str) -> Vec<String>) -> Result<(ClipConfig, Tensors)> {
    let mut named = Tensors::new();
    for (name, tensor) in tensors::read(&fixture("plain.safetensors")).unwrap() {
        for name in rename(&name) {
            named.insert(name, tensor.clone());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    tensors::write(&path, &named).unwrap();
    import(&path, &hints())
}

#[test]
fn marks_of_wrappers_are_taken_off_wherever_they_stand() {
    let plain = plain();
    let inside = |mark: &'static str| {
        move |name: &str| name.replace(".resblocks.0.", &format!(".resblocks.0.{mark}."))
    };
    let text = |name: &str| {
        let own = name.starts_with("visual.") || name == "logit_scale";
        if own { name.to_owned() } else { format!("text.{name}") }
    };
    let renames: Vec<(&str, Rename)> = vec![
        ("compiled tower", Box::new(|n| n.replace("visual.", "visual._orig_mod."))),
        ("compiled blocks", Box::new(inside("_orig_mod"))),
        ("checkpointed blocks", Box::new(inside("_checkpoint_wrapped_module"))),
        (
            "fsdp",
            Box::new(move |n| {
                let name = inside("_fsdp_wrapped_module")(n);
                format!("_fsdp_wrapped_module.{name}")
            }),
        ),
        ("lightning", Box::new(|n| format!("model.{n}"))),
        ("lightning around ddp", Box::new(|n| format!("student.clip.module.{n}"))),
        ("custom text", Box::new(move |n| format!("module._orig_mod.{}", text(n)))),
        ("custom text in lightning", Box::new(move |n| format!("net.{}", text(n)))),
        ("a tower in ddp", Box::new(|n| n.replace("visual.", "visual.module."))),
    ];
    for (what, rename) in renames {
        assert!(renamed(|n| vec![rename(n)]).unwrap() == plain, "{what}");
    }
    let two = renamed(|n| vec![format!("teacher.{n}"), format!("student.{n}")]);
    let error = two.unwrap_err().chain();
    assert!(error.contains("several models, whose names begin with student., teacher."));
    let twice = renamed(|n| vec![n.to_owned(), format!("module.{n}")]);
    assert!(twice.unwrap_err().chain().contains("is there twice"));
}

#[test]
fn what_is_not_a_clip_is_called_by_what_it_is() {
    let only = |begins: &'static str| {
        renamed(
            move |n| {
                if n.starts_with(begins) { vec![n.to_owned()] } else { Vec::new() }
            },
        )
    };
    let error = only("visual.").unwrap_err().chain();
    assert!(error.contains("found an image tower (visual.*) alone"), "{error}");
    let error = only("transformer.").unwrap_err().chain();
    assert!(error.contains("found a text tower (transformer.*) alone"), "{error}");
    let bert = renamed(|n| vec![format!("bert.{}", n.replace("visual", "encoder"))]);
    let error = bert.unwrap_err().chain();
    assert!(error.contains("its tensors begin with bert"), "{error}");

    // The configuration beside it says what it is.
    let folder = tempfile::tempdir().unwrap();
    let mut named = tensors::read(&fixture("plain.safetensors")).unwrap();
    named.retain(|name, _| name.starts_with("visual."));
    let named =
        named.into_iter().map(|(n, t)| (n.replace("visual.", "vision_model."), t));
    let path = folder.path().join("model.safetensors");
    tensors::write(&path, &named.collect()).unwrap();
    let config = json!({"model_type": "clip_vision_model"}).to_string();
    fs::write(folder.path().join("config.json"), config).unwrap();
    let error = refusal(folder.path());
    let said = "model_type is \"clip_vision_model\", expected \"clip\"";
    assert!(error.contains("vision_model.*") && error.contains(said), "{error}");
}

#[test]
fn a_path_that_is_not_there_says_so_and_a_name_on_the_hub_how_to_fetch_it() {
    let error = refusal(Path::new("openai/clip-vit-base-patch32"));
    assert!(error.contains("does not exist"), "{error}");
    let fetch =
        "hf download openai/clip-vit-base-patch32 --local-dir clip-vit-base-patch32";
    assert!(error.contains(fetch), "{error}");
    for path in ["/nowhere/at/all", "./gone", "runs/epoch_1.pt"] {
        let error = refusal(Path::new(path));
        assert!(error.ends_with("does not exist"), "{error}");
    }
}

#[test]
fn heads_come_from_flags_from_a_configuration_or_from_an_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let shape = json!({"embed_dim": 4,
        "vision_cfg": {"image_size": 4, "patch_size": 2, "width": 8, "layers": 1,
                       "head_width": 4, "mlp_ratio": 1.25},
        "text_cfg": {"context_length": 5, "vocab_size": 12, "width": 6, "heads": 1,
                     "layers": 1, "mlp_ratio": 1.7}});
    // As open_clip's package has it, and as a published folder does.
    for text in [shape.clone(), json!({"model_cfg": shape})] {
        fs::write(&file, text.to_string()).unwrap();
        let said = Hints { config: Some(file.clone()), ..Hints::default() };
        let read = import(&fixture("plain.safetensors"), &said).unwrap();
        assert!(read == plain());
    }
    let said = Hints { config: Some(file), heads: Some(8), ..Hints::default() };
    let error = import(&fixture("plain.safetensors"), &said).unwrap_err().chain();
    assert!(error.contains("--heads 8: the configuration says 2 heads"), "{error}");

    let named = |name: &str| {
        let config = Some(PathBuf::from(name));
        let hints = Hints { config, ..hints() };
        import(&fixture("plain.safetensors"), &hints).unwrap_err().chain()
    };
    // The name decides the shape, and these tensors have another.
    assert!(named("ViT-B-32").contains("--heads 2: the configuration says 12 heads"));
    let said = |activation| {
        let config = Some(PathBuf::from("ViT-B-32"));
        let hints = Hints { activation, config, ..Hints::default() };
        import(&fixture("plain.safetensors"), &hints).unwrap_err().chain()
    };
    assert!(said(Some(Activation::Gelu)).contains("of another shape"));
    assert!(said(None).contains("does not say the activation"));
    let error = named("ViT-B-33");
    assert!(error.contains("did you mean ViT-B-32?"), "{error}");
    assert!(named("gone.json").contains("there is no file gone.json"));
    // Published: 16 heads of 80 values, where the rule of 64 would give 20.
    let huge = open_clip::named(Path::new("ViT-H-14")).unwrap();
    let huge = open_clip::shape(&huge, &Hints::default()).unwrap();
    assert_eq!((huge.vision.heads, huge.text.heads), (16, 16));
}

/// Every entry of the table is a model that can be built.
#[test]
fn every_architecture_of_the_table_is_built() {
    let names: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(include_str!("architectures.json")).unwrap();
    assert!(names.len() > 25 && names.contains_key("ViT-B-16"));
    for name in names.keys() {
        let model = open_clip::named(Path::new(name)).unwrap();
        let quick = open_clip::shape(&model, &Hints::default()).unwrap().activation;
        assert_eq!(name.ends_with("quickgelu"), quick == Activation::QuickGelu, "{name}");
    }
}
