//! The real pipeline on drawn shapes: same bytes for any thread count, and nothing to do
//! the second time.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Every stage binary in the order of the pipeline.
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

/// Runs the smoke profile, shortened; what the stages said comes back.
fn run(artifacts: &Path, threads: usize) -> String {
    let mut said = String::new();
    for (stage, binary) in STAGES {
        let output = Command::new(binary)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["--profile", "smoke", "--threads", &threads.to_string()])
            .args(["--set", "pretrain.optim.steps=60", "--set", "train.optim.steps=12"])
            .arg("--artifacts")
            .arg(artifacts)
            .output()
            .expect(stage);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stage}: {text}");
        said.push_str(&text);
    }
    said
}

/// The tree digest of every present result, by stage and run.
fn digests(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name == "current") {
                let text = std::fs::read_to_string(path.join("manifest.json")).unwrap();
                let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
                let place = folder.strip_prefix(root).unwrap().display().to_string();
                found.insert(place, manifest["tree"].as_str().unwrap().to_owned());
            } else if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    found
}

#[test]
fn the_pipeline_gives_the_same_bytes_for_any_thread_count_and_rests_when_done() {
    let one = tempfile::tempdir().unwrap();
    let two = tempfile::tempdir().unwrap();
    let first = run(one.path(), 1);
    assert!(first.contains("runs"), "{first}");
    run(two.path(), 2);
    let (a, b) = (digests(one.path()), digests(two.path()));
    assert!(a.len() > 100, "only {} results", a.len());
    assert_eq!(a, b);
    let again = run(one.path(), 2);
    assert!(!again.contains("runs"), "{again}");
    let report = one.path().join("report/current/report.html");
    let html = std::fs::read_to_string(report).unwrap();
    assert!(html.contains("cluster-aware") && !html.contains("<script"));
}
