//! The whole pipeline on a card, beside the one on processors, as `make gpu-check` runs it.
//!
//! The real stage binaries load the libraries of NVIDIA by name, so `LD_LIBRARY_PATH` leads
//! them to the emulated ones, or to those of a card.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::emulator::{Session, libraries, session};

/// A program of this project: beside the test's own where binaries were carried to a machine
/// with a card (`UPCYCLE_BIN`), else where cargo built it.
fn program(name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_upcycle-inspect"));
    let folder = std::env::var_os("UPCYCLE_BIN").map(PathBuf::from);
    folder.unwrap_or_else(|| built.parent().unwrap().to_owned()).join(name)
}

fn run(session: &Session, name: &str, home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program(name));
    command.args(arguments).env("HOME", home);
    if let Some(folder) = libraries(session) {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn the_pipeline_on_a_card_agrees_with_the_one_on_processors() {
    let Some(session) = session() else { return };
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let (scratch, out) = (home.join("scratch"), home.join("numbers.json"));
    let [scratch_text, out_text] = [&scratch, &out].map(|path| path.to_str().unwrap());
    let arguments = ["--only", "pipeline", "--scratch", scratch_text, "--out", out_text];
    let output = run(&session, "upcycle-gpu-check", home, &arguments);
    println!("{}", said(&output));
    assert!(output.status.success());

    // The dense model and four runs, in both precisions, with the card in their keys.
    let numbers: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    let rows = numbers["rows"].as_array().unwrap();
    let seen: BTreeSet<String> = rows
        .iter()
        .map(|row| format!("{} {}", row["pipeline"], row["backend"]).replace('"', ""))
        .collect();
    assert_eq!(seen.len(), 10, "{seen:?}");
    assert!(seen.contains("train ders-lm-s1 cuda-f32"), "{seen:?}");
    assert!(seen.contains("train cluster-aware-eesd-s1 cuda-bf16"), "{seen:?}");

    // Everything is fresh for whoever asks again with the same device, and only then.
    let config = scratch.join("pipeline.yaml");
    let artifacts = scratch.join("cuda-bf16");
    let mut arguments = vec!["status", "--config", config.to_str().unwrap()];
    arguments.extend(["--artifacts", artifacts.to_str().unwrap()]);
    arguments.extend(["--set", "device=cuda:0"]);
    let other = said(&run(&session, "upcycle-inspect", home, &arguments));
    arguments.extend(["--set", "precision=bf16"]);
    let own = said(&run(&session, "upcycle-inspect", home, &arguments));
    assert!(own.contains("train          4 of   4 fresh   cuda-bf16"), "{own}");
    assert!(other.contains("train          0 of   4 fresh   cuda-f32"), "{other}");
}

/// A card is there, but no kernel for this model: `auto` says in a line that processors run it,
/// and the card is refused before any stage works.
#[test]
fn a_model_without_kernels_runs_on_processors_and_says_so() {
    let Some(session) = session() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (home, artifacts) = (folder.path(), folder.path().join("artifacts"));
    let pretrain = |device: &str| {
        let mut own =
            vec!["--profile", "smoke", "--artifacts", artifacts.to_str().unwrap()];
        for set in ["model.vision.heads=4", "pretrain.optim.steps=2", "seeds=[1]", device]
        {
            own.extend(["--set", set]);
        }
        let dataset = run(&session, "upcycle-dataset", home, &own);
        let pretrain = run(&session, "upcycle-pretrain", home, &own);
        (dataset.status.success(), pretrain.status.success(), said(&pretrain))
    };

    let (_, works, text) = pretrain("device=cuda:0");
    assert!(!works && text.contains("heads of 8 values"), "{text}");
    assert!(!artifacts.join("pretrain").exists());

    let (drawn, works, text) = pretrain("device=auto");
    assert!(drawn && works, "{text}");
    let line =
        "runs on processors: the engine on cards has no kernels for a model of this";
    assert_eq!(text.matches(line).count(), 1, "{text}");
}
