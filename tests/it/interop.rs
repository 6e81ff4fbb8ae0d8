//! Other people's checkpoints, tokenizers and pictures, through the binaries.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use upcycle::checkpoint::{self, Hints, Preprocessing};
use upcycle::config::Activation;
use upcycle::image::Fit;
use upcycle::io::foreign::{self, Values};
use upcycle::io::tensors;
use upcycle::model::{ClipConfig, TextConfig, VisionConfig, init};

const IMPORT: &str = env!("CARGO_BIN_EXE_upcycle-import");
const EXPORT: &str = env!("CARGO_BIN_EXE_upcycle-export");
const INSPECT: &str = env!("CARGO_BIN_EXE_upcycle-inspect");

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Runs a program in a folder.
pub(crate) fn run(folder: &Path, program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).current_dir(folder).output().unwrap()
}

/// Its standard output, if it went well.
pub(crate) fn good(folder: &Path, program: &str, args: &[&str]) -> String {
    let output = run(folder, program, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Its exit code and its error.
pub(crate) fn bad(folder: &Path, program: &str, args: &[&str]) -> (i32, String) {
    let output = run(folder, program, args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.starts_with("error: ") && !errors.contains("panicked"), "{errors}");
    (output.status.code().unwrap(), errors)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name();
    let mut names: Vec<String> =
        entries.map(name).map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// `pixel_values` and `input_ids` of a fixture in a file of their own.
fn inputs(folder: &Path, fixture_name: &str) {
    let bytes = fs::read(fixture(fixture_name).join("expected.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let views =
        ["pixel_values", "input_ids"].map(|name| (name, file.tensor(name).unwrap()));
    let path = folder.join("inputs.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

#[test]
fn a_published_model_computes_its_numbers_through_the_binaries() {
    for name in ["clip-tiny-gelu", "clip-tiny-quickgelu"] {
        let base = tempfile::tempdir().unwrap();
        let here = base.path();
        inputs(here, name);
        let expected =
            foreign::read(&fixture(name).join("expected.safetensors")).unwrap();
        for (index, layout) in
            ["hf", "open_clip", "open_clip/checkpoint.pt"].iter().enumerate()
        {
            let from = fixture(name).join(layout);
            if !from.exists() {
                continue;
            }
            let (from, out) = (from.to_str().unwrap(), format!("dense{index}"));
            let lines = good(here, IMPORT, &["--from", from, "--out", &out]);
            assert!(lines.contains("71801 parameters"), "{lines}");
            assert!(!names(here).iter().any(|name| name.starts_with('.')), "scratch");
            let forward =
                ["forward", "--inputs", "inputs.safetensors", "--output", "out"];
            good(here, INSPECT, &[&forward[..], &["--checkpoint", &out]].concat());
            let outputs = tensors::read(&here.join("out")).unwrap();
            assert_eq!(outputs.len(), 9);
            for (key, tensor) in outputs {
                let Values::Floats(truth) = &expected[&key].values else { panic!() };
                let gaps = tensor.data.iter().zip(truth).map(|(a, b)| (a - b).abs());
                let worst = gaps.fold(0.0, f32::max);
                let tolerance = if key.starts_with("logits") { 1e-4 } else { 2e-5 };
                assert!(worst < tolerance, "{name} {layout} {key}: {worst}");
            }
        }
    }
}

/// Heads and activation of a bare file are said, by flags, a file or a name.
#[test]
fn a_bare_file_of_weights_is_read_with_what_it_does_not_say() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let legacy = fixture("containers/legacy.pt");
    let legacy = legacy.to_str().unwrap();
    let flags = ["--activation", "gelu", "--heads", "2", "--text-heads", "1"];
    let args = ["--from", legacy, "--preprocess", "openai", "--out", "dense"];
    let lines = good(here, IMPORT, &[&args[..], &flags].concat());
    assert!(lines.contains("width 8, 2 heads"), "{lines}");

    // The configuration says all of it, pictures included.
    let config = serde_json::json!({
        "model_cfg": {
            "embed_dim": 4,
            "vision_cfg": {"image_size": 4, "patch_size": 2, "width": 8, "layers": 1,
                           "head_width": 4, "mlp_ratio": 1.25},
            "text_cfg": {"context_length": 5, "vocab_size": 12, "width": 6, "heads": 1,
                         "layers": 1, "mlp_ratio": 1.7}},
        "preprocess_cfg": {"mean": 0.5, "std": 0.5, "resize_mode": "squash"},
    });
    fs::write(here.join("said.json"), config.to_string()).unwrap();
    let args = ["--from", legacy, "--config", "said.json", "--out", "same"];
    good(here, IMPORT, &args);
    let read =
        |name: &str| checkpoint::read(&here.join(name), &Hints::default()).unwrap();
    assert!(read("dense") == read("same"));
    let pictures = Preprocessing::of_checkpoint(&here.join("same")).unwrap().unwrap();
    assert_eq!((pictures.mean, pictures.size), ([0.5; 3], Some(4)));
    assert_eq!(pictures.resize_mode, Fit::Squash);
}

#[test]
fn what_goes_out_comes_back() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let from = fixture("clip-tiny-quickgelu/hf");
    let from = from.to_str().unwrap();
    let (config, weights) =
        checkpoint::import(Path::new(from), &Hints::default()).unwrap();
    for (layout, more) in
        [("hf", &["--shard-size", "50kB"][..]), ("hf", &[]), ("open_clip", &[])]
    {
        let out = format!("{layout}{}", more.len());
        let args = ["--checkpoint", from, "--layout", layout, "--out", &out];
        // The fixture does not say how pictures are prepared, and nobody guesses.
        let (code, error) = bad(here, EXPORT, &[&args[..], more].concat());
        assert!(error.contains("give --preprocess") && code == 2, "{error}");
        let args = [&args[..], &["--preprocess", "openai"]].concat();
        good(here, EXPORT, &[&args[..], more].concat());
        assert!(
            checkpoint::import(&here.join(&out), &Hints::default()).unwrap()
                == (config.clone(), weights.clone())
        );
        let own = format!("own-{out}");
        good(here, IMPORT, &["--from", &out, "--out", &own]);
        assert!(
            checkpoint::import(&here.join(&own), &Hints::default()).unwrap().1 == weights
        );
    }
}

/// Its folder is to need nothing else, and the fixture has no tokenizer.
#[test]
fn a_package_without_a_tokenizer_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let from = fixture("clip-tiny-quickgelu/hf");
    let from = from.to_str().unwrap();
    let args = ["--checkpoint", from, "--layout", "upcycle", "--preprocess", "openai"];
    let (code, error) = bad(here, EXPORT, &[&args[..], &["--out", "x"]].concat());
    assert!(error.contains("give --tokenizer") && code == 2, "{error}");
    let toy = fixture("tokenizer/toy_bpe.txt.gz");
    let other = ["--tokenizer", toy.to_str().unwrap(), "--out", "x"];
    let (code, error) = bad(here, EXPORT, &[&args[..], &other].concat());
    assert!(error.contains("661 entries, the model expects 160"), "{error}");
    assert!(code == 2 && !here.join("x").exists());
}

#[test]
fn refusals_write_nothing_and_name_what_is_wrong() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let weights = fixture("clip-tiny-gelu/open_clip/open_clip_model.safetensors");
    fs::copy(&weights, here.join("bare.safetensors")).unwrap();
    let (code, error) = bad(here, IMPORT, &["--from", "bare.safetensors", "--out", "x"]);
    assert_eq!(code, 2);
    assert!(error.contains("give --activation"), "{error}");
    let hf = fixture("clip-tiny-gelu/hf");
    let hf = hf.to_str().unwrap();
    let quick = ["--from", hf, "--activation", "quick_gelu", "--out", "x"];
    assert!(bad(here, IMPORT, &quick).1.contains("asked for"));
    let odd = ["--from", hf, "--image-size", "33", "--out", "x"];
    assert!(bad(here, IMPORT, &odd).1.contains("patches of 8"));
    let sharded = ["--checkpoint", hf, "--layout", "open_clip", "--out", "x"];
    let sharded = [&sharded[..], &["--shard-size", "1MB"]].concat();
    assert!(bad(here, EXPORT, &sharded).1.contains("one file only"));
    assert_eq!(names(here), ["bare.safetensors"]);
    // One error for all tensors that do not fit.
    let mut tensors = checkpoint::import(Path::new(hf), &Hints::default()).unwrap().1;
    tensors.remove("visual.proj");
    tensors.remove("ln_final.bias");
    tensors.insert("surplus".to_owned(), tensors["logit_scale"].clone());
    tensors::write(&here.join("bare.safetensors"), &tensors).unwrap();
    let config = fixture("clip-tiny-gelu/open_clip/open_clip_config.json");
    fs::copy(config, here.join("open_clip_config.json")).unwrap();
    let (_, error) = bad(here, IMPORT, &["--from", "bare.safetensors", "--out", "x"]);
    for word in ["visual.proj", "ln_final.bias", "surplus", "2 missing", "1 unexpected"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(!here.join("x").exists());
}

#[test]
fn texts_become_ids_on_lines_of_json() {
    let here = tempfile::tempdir().unwrap();
    let vocabulary = fixture("tokenizer/bpe_simple_vocab_16e6.txt.gz");
    let args = ["tokenize", "--tokenizer", vocabulary.to_str().unwrap()];
    let texts = ["a photo of a cat", "A  Photo of&nbsp;a CAT"];
    let lines = good(here.path(), INSPECT, &[&args[..], &texts].concat());
    let row = "[49406,320,1125,539,320,2368,49407]";
    assert_eq!(lines, format!("{row}\n{row}\n"));
    let padded = [&args[..], &["--context", "9", "--pad", "--json", "cat"]].concat();
    let json: Vec<Vec<u32>> =
        serde_json::from_str(&good(here.path(), INSPECT, &padded)).unwrap();
    assert_eq!(json, [[49406, 2368, 49407, 0, 0, 0, 0, 0, 0]]);
}

#[test]
fn pictures_become_the_tensor_open_clip_makes() {
    let here = tempfile::tempdir().unwrap();
    let (rgba, thin) =
        (fixture("preprocess/images/rgba.png"), fixture("preprocess/images/thin.png"));
    let args = ["preprocess", "--size", "32", "--output", "p.safetensors"];
    let images = ["--image", rgba.to_str().unwrap(), "--image", thin.to_str().unwrap()];
    good(here.path(), INSPECT, &[&args[..], &images].concat());
    let found = tensors::read(&here.path().join("p.safetensors")).unwrap();
    let found = &found["pixel_values"];
    assert_eq!(found.shape, [2, 3, 32, 32]);
    let expected = foreign::read(&fixture("preprocess/expected.safetensors")).unwrap();
    let of = |name: &str| match &expected[&format!("{name}.f32_32")].values {
        Values::Floats(values) => values.clone(),
        Values::Integers(_) => panic!("integers"),
    };
    assert!(found.data == [of("rgba.png"), of("thin.png")].concat());
}

/// A CLIP with the toy vocabulary and the smoke profile's towers.
pub(crate) fn toy() -> ClipConfig {
    let (width, layers, heads, hidden) = (32, 2, 2, 64);
    ClipConfig {
        embed_dim: 32,
        activation: Activation::QuickGelu,
        vision: VisionConfig { image_size: 16, patch: 4, width, layers, heads, hidden },
        text: TextConfig { context: 16, vocabulary: 661, width, layers, heads, hidden },
        moe: None,
    }
}

/// From an `open_clip` folder and its vocabulary to an upcycled model, stage by stage.
#[test]
fn an_imported_model_goes_through_the_pipeline() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let model = init::dense(&toy(), 3);
    let pictures = Preprocessing::new([0.5; 3], [0.25; 3]);
    let published = here.join("published");
    checkpoint::export_open_clip(&published, &model.config, &model.tensors(), &pictures)
        .unwrap();
    let vocabulary = fixture("tokenizer/toy_bpe.txt.gz");
    let vocabulary = vocabulary.to_str().unwrap();
    let args = ["--from", "published", "--tokenizer", vocabulary, "--out", "dense"];
    good(here, IMPORT, &args);
    assert_eq!(
        names(&here.join("dense")),
        ["config.json", "model.safetensors", "preprocess.json", "tokenizer.json"]
    );
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml");
    let mut flags = vec!["--config", config, "--profile", "smoke"];
    for set in [
        "pretrain.checkpoint=dense",
        "dataset.like=dense",
        "model.activation=quick_gelu",
        "seeds=[1]",
    ] {
        flags.extend(["--set", set]);
    }
    let upcycle = env!("CARGO_BIN_EXE_upcycle-upcycle");
    let plan = good(here, upcycle, &[&flags[..], &["--dry-run"]].concat());
    assert!(plan.contains("active (2 of 4 experts)"), "{plan}");
    assert!(plan.contains("vision.1: moe.router.weight [4, 32]"), "{plan}");
    for program in [
        env!("CARGO_BIN_EXE_upcycle-dataset"),
        env!("CARGO_BIN_EXE_upcycle-pretrain"),
        env!("CARGO_BIN_EXE_upcycle-activations"),
        env!("CARGO_BIN_EXE_upcycle-cluster"),
        env!("CARGO_BIN_EXE_upcycle-subspaces"),
        env!("CARGO_BIN_EXE_upcycle-multiplet"),
        upcycle,
    ] {
        good(here, program, &[&flags[..], &["--quiet"]].concat());
    }
    let dataset = fs::read(here.join("artifacts/dataset/current/dataset.json")).unwrap();
    let dataset: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&dataset).unwrap();
    assert_eq!(dataset["vocabulary"], 661);
    assert_eq!(dataset["mean"], serde_json::json!([0.5, 0.5, 0.5]));
    let taken =
        checkpoint::read(&here.join("artifacts/pretrain/s1/current"), &Hints::default())
            .unwrap();
    assert!(taken == model);
    // An export says what the data set says that the checkpoint was trained on.
    let dense = "artifacts/pretrain/s1/current";
    good(here, EXPORT, &["--checkpoint", dense, "--layout", "hf", "--out", "dense-hf"]);
    let exported = Preprocessing::of_checkpoint(&here.join("dense-hf")).unwrap().unwrap();
    assert_eq!((exported.mean, exported.std), ([0.5; 3], [0.25; 3]));
    assert_eq!(exported.size, Some(16));
    // The mixture runs through the same doors as a dense model.
    let moe = "artifacts/upcycle/cluster-aware-s1/current";
    let args = ["--checkpoint", moe, "--layout", "upcycle", "--out", "moe"];
    good(here, EXPORT, &[&args[..], &["--shard-size", "100kB"]].concat());
    assert!(here.join("moe/model.safetensors.index.json").exists());
    good(here, IMPORT, &["--from", "moe", "--out", "back"]);
    let [kept, back] = [moe, "back"]
        .map(|at| checkpoint::read(&here.join(at), &Hints::default()).unwrap());
    assert!(kept == back && here.join("back/tokenizer.json").exists());
    let of_moe = Preprocessing::of_checkpoint(&here.join("moe")).unwrap().unwrap();
    assert_eq!((of_moe.mean, of_moe.std), ([0.5; 3], [0.25; 3]));
    let (code, error) =
        bad(here, EXPORT, &["--checkpoint", moe, "--layout", "hf", "--out", "hf"]);
    assert!(code == 2 && error.contains("MoE layers"), "{error}");
    // An edit of the imported folder is seen.
    let edited = pictures.json().unwrap().replace("0.5", "0.4");
    fs::write(here.join("dense/preprocess.json"), edited).unwrap();
    let check = [&flags[..], &["--check"]].concat();
    let stale = run(here, env!("CARGO_BIN_EXE_upcycle-dataset"), &check);
    assert_eq!(stale.status.code(), Some(1), "{stale:?}");
    let other = [&flags[..], &["--set", "model.text.layers=1", "--check"]].concat();
    assert!(bad(here, upcycle, &other).1.contains("set: model.text.layers=2"));
}
