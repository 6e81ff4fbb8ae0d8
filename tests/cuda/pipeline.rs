//! The whole pipeline on a card, beside the one on processors.
//!
//! The real stage binaries run with `device: cuda:0`. They load the libraries of NVIDIA by
//! name, so `LD_LIBRARY_PATH` leads them to the emulated ones, or to those of a card.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::emulator::{Session, libraries, session};

const STAGES: [(&str, &str); 10] = [
    ("dataset", env!("CARGO_BIN_EXE_upcycle-dataset")),
    ("pretrain", env!("CARGO_BIN_EXE_upcycle-pretrain")),
    ("activations", env!("CARGO_BIN_EXE_upcycle-activations")),
    ("cluster", env!("CARGO_BIN_EXE_upcycle-cluster")),
    ("subspaces", env!("CARGO_BIN_EXE_upcycle-subspaces")),
    ("upcycle", env!("CARGO_BIN_EXE_upcycle-upcycle")),
    ("train", env!("CARGO_BIN_EXE_upcycle-train")),
    ("evaluate", env!("CARGO_BIN_EXE_upcycle-evaluate")),
    ("analyze", env!("CARGO_BIN_EXE_upcycle-analyze")),
    ("report", env!("CARGO_BIN_EXE_upcycle-report")),
];

/// The smoke profile with fewer steps and pictures: an emulated card is slow. Dense, an exact
/// copy, the method with distillation, and experts of low rank.
const SMALL: [&str; 14] = [
    "seeds=[1]",
    "dataset.shapes=240",
    "pretrain.bases=shared",
    "pretrain.optim.steps=6",
    "pretrain.optim.batch=16",
    "pretrain.optim.validate_every=6",
    "pretrain.optim.augment=crop",
    "activations.samples=48",
    "train.optim.steps=4",
    "train.optim.batch=16",
    "train.optim.validate_every=4",
    "evaluate.probe_draws=1",
    "report.examples=0",
    "report.ablation=[]",
];

/// A pipeline's folder, and how its models run.
struct World<'a> {
    folder: tempfile::TempDir,
    compute: &'static [&'static str],
    session: &'a Session,
}

impl World<'_> {
    fn artifacts(&self) -> PathBuf {
        self.folder.path().join("artifacts")
    }

    /// Runs a program of the pipeline in this world.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(program);
        command.args(arguments).arg("--config").arg(root.join("pipeline.yaml"));
        command.args(["--profile", "smoke", "--artifacts"]).arg(self.artifacts());
        for set in SMALL.iter().chain(self.compute) {
            command.args(["--set", set]);
        }
        // Four runs of the profile: the others would cost time and show nothing new.
        command.args(["--set", RUNS]);
        if let Some(folder) = libraries(self.session) {
            command.env("LD_LIBRARY_PATH", folder);
        }
        command.env("HOME", self.folder.path());
        command.output().unwrap()
    }

    fn all(&self) {
        for (stage, program) in STAGES {
            let output = self.run(program, &["--quiet"]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stage}: {error}");
        }
    }

    /// The manifests of all results by stage and run.
    fn manifests(&self) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.artifacts()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if path.ends_with("manifest.json") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let manifest: Value = serde_json::from_str(&text).unwrap();
                    let name = format!("{} {}", manifest["stage"], manifest["run"]);
                    found.insert(name.replace('"', ""), manifest);
                }
            }
        }
        found
    }
}

const RUNS: &str = "runs={dense: {init: dense}, sparse: {init: sparse}, \
                    cluster-aware-eesd: {init: cluster-aware, eesd: 0.1}, \
                    ders-lm: {init: ders-lm}}";

/// Stages whose bytes depend on what runs the models.
const MODELS: [&str; 5] = ["pretrain", "activations", "train", "evaluate", "analyze"];

#[test]
fn the_pipeline_on_a_card_agrees_with_the_one_on_processors() {
    let Some(session) = session() else { return };
    let world = |compute| World {
        folder: tempfile::tempdir().unwrap(),
        compute,
        session: &session,
    };
    let cpu = world(&["device=cpu"]);
    let card = world(&["device=cuda:0"]);
    cpu.all();
    card.all();

    let (truth, found) = (cpu.manifests(), card.manifests());
    assert_eq!(truth.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, truth) in &truth {
        let found = &found[name];
        let models = MODELS.iter().any(|stage| name.starts_with(stage));
        if models {
            assert_ne!(truth["key"], found["key"], "{name}");
            assert_eq!(found["key_preimage"]["backend"], "cuda-f32", "{name}");
            assert_eq!(truth["key_preimage"]["backend"], "cpu-f32", "{name}");
        }
        let metrics =
            |own: &Value| own["metrics"].as_object().cloned().unwrap_or_default();
        let (truth, found) = (metrics(truth), metrics(found));
        assert!(truth.keys().eq(found.keys()), "{name}");
        for (metric, value) in &truth {
            let Some((a, b)) = value.as_f64().zip(found[metric].as_f64()) else {
                continue;
            };
            println!("{name} {metric}: {a} {b}");
            if metric == "loss" {
                assert!((a - b).abs() < 1e-3 * a.abs(), "{name} {metric}: {a} {b}");
            }
        }
    }
    let losses = truth.values().filter(|own| own["metrics"]["loss"].is_number());
    assert_eq!(losses.count(), 5, "the dense model's and that of four runs");

    // People see what ran, and a card that is not there stops before any stage.
    let status = card.run(env!("CARGO_BIN_EXE_upcycle-inspect"), &["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("cuda-f32"), "{status}");
}
