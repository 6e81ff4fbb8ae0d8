//! From a checkpoint and pictures to a configuration that runs: `upcycle-init` and what the
//! first stage refuses.

use std::fs;
use std::path::Path;

use upcycle::checkpoint::{self, Preprocessing};
use upcycle::config::Activation;
use upcycle::image::{self, Picture};
use upcycle::model::{ClipConfig, init};

use crate::interop::{bad, fixture, good, run, toy};

const INIT: &str = env!("CARGO_BIN_EXE_upcycle-init");
const DATASET: &str = env!("CARGO_BIN_EXE_upcycle-dataset");
const EVALUATE: &str = env!("CARGO_BIN_EXE_upcycle-evaluate");
const PRETRAIN: &str = env!("CARGO_BIN_EXE_upcycle-pretrain");
const UPCYCLE: &str = env!("CARGO_BIN_EXE_upcycle-upcycle");
const TRAIN: &str = env!("CARGO_BIN_EXE_upcycle-train");
const REPORT: &str = env!("CARGO_BIN_EXE_upcycle-report");

/// A published model with its own tokenizer and pictures, in either layout.
fn published(folder: &Path, layout: &str) {
    publish(folder, layout, Activation::QuickGelu);
}

fn publish(folder: &Path, layout: &str, activation: Activation) {
    let model = init::dense(&ClipConfig { activation, ..toy() }, 3);
    let pictures = Preprocessing::new([0.5; 3], [0.25; 3]);
    let (config, tensors) = (&model.config, model.tensors());
    match layout {
        "hf" => {
            checkpoint::export_hugging_face(folder, config, &tensors, &pictures, None)
        }
        _ => checkpoint::export_open_clip(folder, config, &tensors, &pictures),
    }
    .unwrap();
    let vocabulary = fixture("tokenizer/toy_bpe.txt.gz");
    fs::copy(vocabulary, folder.join("bpe_simple_vocab_16e6.txt.gz")).unwrap();
}

/// `n` pictures with captions, of which `different` are told apart.
fn pictures(folder: &Path, n: usize, different: usize) {
    fs::create_dir_all(folder).unwrap();
    let mut table = vec!["filepath,caption".to_owned()];
    for i in 0..n {
        let level = |k: usize| u8::try_from((k * (3 + i) + 31 * i) % 256).unwrap();
        let rgb = (0..20 * 20 * 3).map(level).collect();
        let png = image::encode_png(&Picture { width: 20, height: 20, rgb }).unwrap();
        fs::write(folder.join(format!("{i}.png")), png).unwrap();
        table.push(format!("{i}.png,thing {}", i % different));
    }
    fs::write(folder.join("captions.csv"), table.join("\n")).unwrap();
}

#[test]
fn without_arguments_the_default_configuration_is_written_once() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let (code, error) = bad(here, DATASET, &["--dry-run"]);
    assert!(code == 2 && error.contains("write one with upcycle-init"), "{error}");

    good(here, INIT, &[]);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline.yaml");
    let written = fs::read_to_string(here.join("pipeline.yaml")).unwrap();
    assert_eq!(written, fs::read_to_string(shipped).unwrap());
    assert!(run(here, DATASET, &["--dry-run", "--profile", "smoke"]).status.success());

    let (code, error) = bad(here, INIT, &[]);
    assert!(code == 2 && error.contains("nothing is overwritten"), "{error}");
}

#[test]
fn a_checkpoint_and_pictures_become_a_configuration_that_every_stage_accepts() {
    for layout in ["hf", "open_clip"] {
        let base = tempfile::tempdir().unwrap();
        let here = base.path();
        published(&here.join("clip"), layout);
        pictures(&here.join("data"), 80, 60);
        let args = ["--model", "clip", "--data", "data", "--out", "study"];

        // Without a Makefile, here or beside the program, the stages are named.
        let next = if layout == "hf" {
            fs::write(here.join("Makefile"), "").unwrap();
            "make CONFIG=study/pipeline.yaml ARTIFACTS=study/artifacts"
        } else {
            "upcycle-$stage --config study/pipeline.yaml --artifacts study/artifacts || break"
        };
        let text = good(here, INIT, &args);
        for word in [
            "activation quick_gelu",
            "source folder, because it holds captions.csv",
            "80 pairs",
            "train.optim.batch=16",
            "time: about ",
            next,
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        // Nothing of the model is repeated, and nothing had to be imported.
        let yaml = fs::read_to_string(here.join("study/pipeline.yaml")).unwrap();
        assert!(!yaml.contains("\nmodel:") && !yaml.contains("activation:"), "{yaml}");
        assert!(!here.join("study/dense").exists());

        let place = ["--config", "study/pipeline.yaml", "--artifacts", "study/artifacts"];
        for program in [DATASET, PRETRAIN, UPCYCLE, REPORT] {
            let plan = good(here, program, &[&place[..], &["--dry-run"]].concat());
            assert!(plan.contains("would run") || plan.contains("depends on"), "{plan}");
        }
        let plan = good(here, REPORT, &[&place[..], &["--dry-run"]].concat());
        assert!(plan.contains("time: about "), "{plan}");
        for program in [DATASET, PRETRAIN] {
            good(here, program, &[&place[..], &["--quiet"]].concat());
        }
    }
}

/// `open_clip`'s default ViT-B/32 has GELU, `OpenAI`'s quick GELU: neither is to be said.
#[test]
fn a_configuration_for_a_size_takes_a_checkpoint_of_either_activation() {
    for activation in [Activation::Gelu, Activation::QuickGelu] {
        let base = tempfile::tempdir().unwrap();
        let here = base.path();
        publish(&here.join("dense"), "open_clip", activation);
        for size in ["vit-b-32", "vit-b-16"] {
            let root = env!("CARGO_MANIFEST_DIR");
            let config = format!("{root}/configs/{size}.yaml");
            let args = ["--config", config.as_str(), "--profile", "trial", "--dry-run"];
            for program in [DATASET, PRETRAIN, UPCYCLE] {
                assert_ne!(good(here, program, &args), "");
            }
        }
    }
}

#[test]
fn a_model_that_lacks_something_is_imported_or_refused_with_the_flag() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    pictures(&here.join("data"), 40, 40);
    published(&here.join("clip"), "open_clip");
    fs::remove_file(here.join("clip/bpe_simple_vocab_16e6.txt.gz")).unwrap();
    let args = ["--model", "clip", "--data", "data", "--out", "study"];
    let (code, error) = bad(here, INIT, &args);
    assert!(code == 2 && error.contains("give --tokenizer"), "{error}");
    assert!(!here.join("study").exists());

    let vocabulary = fixture("tokenizer/toy_bpe.txt.gz");
    let told = ["--tokenizer", vocabulary.to_str().unwrap()];
    let text = good(here, INIT, &[&args[..], &told].concat());
    assert!(text.contains("imported to"), "{text}");
    assert!(here.join("study/dense/tokenizer.json").exists());
    let dry = ["--config", "study/pipeline.yaml", "--dry-run"];
    assert!(run(here, DATASET, &dry).status.success());
}

#[test]
fn data_that_cannot_be_trained_on_are_refused_before_anything_is_written() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    published(&here.join("clip"), "hf");
    pictures(&here.join("same"), 30, 1);
    fs::create_dir(here.join("bare")).unwrap();
    fs::write(here.join("bare/a.png"), "x").unwrap();
    fs::write(here.join("odd.csv"), "photo,said\na.png,x\n").unwrap();
    for (data, word) in [
        ("same", "show 1 different things"),
        ("bare", "write"),
        ("odd.csv", "--caption-column"),
        ("nowhere", "does not exist"),
    ] {
        let (_, error) =
            bad(here, INIT, &["--model", "clip", "--data", data, "--out", "study"]);
        assert!(error.contains(word), "{data}: {error}");
    }
    assert!(!here.join("study").exists());
}

#[test]
fn what_cannot_work_is_refused_by_the_first_stage() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    published(&here.join("clip"), "hf");
    pictures(&here.join("data"), 80, 57);
    good(here, INIT, &["--model", "clip", "--data", "data", "--out", "."]);

    for (set, code, word) in [
        ("train.optim.batch=32768", 2, "set train.optim.batch=32"),
        ("evaluate.recall_at=[1, 5000]", 2, "set evaluate.recall_at=[1]"),
        ("evaluate.sets=[nowhere]", 1, "evaluate.sets: nowhere"),
        ("pretrain.checkpoint=nowhere", 2, "nowhere does not exist"),
        ("model.activation=gelu", 2, "set: model.activation=quick_gelu"),
        ("dataset.folder=nowhere", 1, "nowhere does not exist"),
    ] {
        for mode in [&[][..], &["--dry-run"]] {
            let args = [mode, &["--ahead", "--set", set]].concat();
            let (found, error) = bad(here, DATASET, &args);
            assert!(found == code && error.contains(word), "{set} {mode:?}: {error}");
        }
    }
    assert!(!here.join("artifacts/dataset/current").exists());

    // The same once the data set is there, from what it holds.
    good(here, DATASET, &["--quiet"]);
    let large = ["--set", "train.optim.batch=64"];
    let (code, error) = bad(here, DATASET, &[&["--ahead"], &large[..]].concat());
    assert!(code == 2 && error.contains("set train.optim.batch=32"), "{error}");
    // Who wants the data set alone is not told of batches.
    good(here, DATASET, &large);
}

/// Without a terminal nothing looks dead, and programs are told by events.
#[test]
fn long_work_is_told_of_in_lines_or_in_events() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    good(here, INIT, &[]);
    let smoke = ["--profile", "smoke", "--pulse", "20"];
    good(here, DATASET, &smoke[..2]);
    let longer = ["--set", "pretrain.optim.steps=400"];
    let output = run(here, PRETRAIN, &[&smoke[..], &longer, &["--only", "s1"]].concat());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("pretrain: run 1 of 1, "), "{text}");
    assert!(text.contains(" of 400 steps, loss "), "{text}");

    let json = [&smoke[..], &longer, &["--only", "s2", "--json"]].concat();
    let output = run(here, PRETRAIN, &json);
    assert!(output.status.success(), "{output:?}");
    let mut events = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        events.push(event["event"].as_str().unwrap().to_owned());
    }
    for wanted in ["start", "progress", "overall", "done"] {
        assert!(events.iter().any(|event| event == wanted), "{wanted}: {events:?}");
    }
    assert!(output.stderr.is_empty(), "{:?}", String::from_utf8(output.stderr));

    // A failure is an event as well as an error.
    let failing = run(here, TRAIN, &["--profile", "smoke", "--json"]);
    let text = String::from_utf8(failing.stdout).unwrap();
    assert!(text.lines().last().unwrap().starts_with("{\"event\":\"failed\""), "{text}");
    assert!(!failing.status.success() && !failing.stderr.is_empty());
}

/// Every set of `evaluate.sets` is measured with every run and with the untouched model.
#[test]
fn sets_of_the_configuration_are_planned_and_measured() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    published(&here.join("clip"), "hf");
    pictures(&here.join("data"), 40, 40);
    for i in 0..8 {
        let class = here.join(format!("wds_birds/class{}", i % 2));
        fs::create_dir_all(&class).unwrap();
        fs::copy(here.join(format!("data/{i}.png")), class.join(format!("{i}.png")))
            .unwrap();
    }
    let args = ["--model", "clip", "--data", "data", "--eval", "wds_birds", "--out", "."];
    good(here, INIT, &args);
    let plan = good(here, EVALUATE, &["--dry-run"]);
    assert!(
        plan.contains("evaluate s1.birds") && plan.contains("sparse-s1.birds"),
        "{plan}"
    );

    for program in [DATASET, PRETRAIN] {
        good(here, program, &["--quiet"]);
    }
    good(here, EVALUATE, &["--quiet", "--only", "s1.birds"]);
    let folder = here.join("artifacts/evaluate/s1.birds/current");
    let rows: Vec<upcycle::tables::SetMetricRow> =
        upcycle::tables::read(&folder).unwrap();
    let acc1 = rows.iter().find(|row| row.metric == "acc1").unwrap();
    assert_eq!((acc1.n, acc1.set.as_str()), (8, "birds"));
    let resamples: Vec<upcycle::tables::SetResampleRow> =
        upcycle::tables::read(&folder).unwrap();
    assert_eq!(resamples.iter().filter(|row| row.metric == "acc1").count(), 1000);

    // The same numbers as the tool beside the pipeline, and several models in a table.
    let out = ["--set", "wds_birds", "--out", "out", "--bootstrap", "10"];
    let pretrain = "artifacts/pretrain/s1/current";
    let told = ["--tokenizer", "clip", "--preprocess", "clip/preprocessor_config.json"];
    let on = [&["on", "--checkpoint", "clip", pretrain][..], &told, &out].concat();
    let text = good(here, EVALUATE, &on);
    let line = text.lines().find(|line| line.starts_with("birds  acc1")).unwrap();
    let value = format!("{:.4}", acc1.value);
    assert_eq!(line.matches(&value).count(), 2, "{text}");

    // Another picture in the set makes its results stale, and nothing else.
    fs::copy(here.join("data/9.png"), here.join("wds_birds/class0/9.png")).unwrap();
    let plan = good(here, EVALUATE, &["--dry-run", "--only", "s1.birds"]);
    assert!(plan.contains("would run"), "{plan}");
    assert_eq!(good(here, PRETRAIN, &["--dry-run"]), "");
}
