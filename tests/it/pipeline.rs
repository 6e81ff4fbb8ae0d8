//! The real pipeline on drawn shapes: same bytes for any thread count, size of batch and
//! place, and nothing to do the second time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// Every stage binary in the order of the pipeline.
pub(crate) const STAGES: [(&str, &str); 11] = [
    ("dataset", env!("CARGO_BIN_EXE_upcycle-dataset")),
    ("pretrain", env!("CARGO_BIN_EXE_upcycle-pretrain")),
    ("activations", env!("CARGO_BIN_EXE_upcycle-activations")),
    ("cluster", env!("CARGO_BIN_EXE_upcycle-cluster")),
    ("subspaces", env!("CARGO_BIN_EXE_upcycle-subspaces")),
    ("multiplet", env!("CARGO_BIN_EXE_upcycle-multiplet")),
    ("upcycle", env!("CARGO_BIN_EXE_upcycle-upcycle")),
    ("train", env!("CARGO_BIN_EXE_upcycle-train")),
    ("evaluate", env!("CARGO_BIN_EXE_upcycle-evaluate")),
    ("analyze", env!("CARGO_BIN_EXE_upcycle-analyze")),
    ("report", env!("CARGO_BIN_EXE_upcycle-report")),
];

/// Runs the smoke profile, shortened; what the stages said comes back.
fn run(artifacts: &Path, threads: usize) -> String {
    run_with(artifacts, threads, &[])
}

fn run_with(artifacts: &Path, threads: usize, set: &[&str]) -> String {
    run_in(Path::new(env!("CARGO_MANIFEST_DIR")), artifacts, threads, set)
}

/// As if the repository were cloned to `home`.
fn run_in(home: &Path, artifacts: &Path, threads: usize, set: &[&str]) -> String {
    let mut said = String::new();
    for (stage, binary) in STAGES {
        said.push_str(&finish(
            stage,
            command(binary, artifacts, set)
                .current_dir(home)
                .env("HOME", home)
                .env("TZ", if threads == 1 { "UTC" } else { "Asia/Kathmandu" })
                .args(["--threads", &threads.to_string()]),
        ));
    }
    said
}

/// A stage of the shortened smoke profile.
fn command(binary: &str, artifacts: &Path, set: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["--profile", "smoke"])
        .args(["--set", "pretrain.optim.steps=60", "--set", "train.optim.steps=12"])
        .args(set.iter().flat_map(|set| ["--set", set]))
        .arg("--artifacts")
        .arg(artifacts);
    command
}

/// Runs a stage that must succeed; what it said comes back.
fn finish(stage: &str, command: &mut Command) -> String {
    let output = command.output().expect(stage);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stage}: {text}");
    text
}

/// The tree digest of every present result, by stage and run.
fn digests(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // Folders named by a key are reached through the link alone.
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

    let clone = tempfile::tempdir().unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml");
    std::fs::copy(shipped, clone.path().join("pipeline.yaml")).unwrap();
    run_in(clone.path(), two.path(), 2, &[]);
    let (a, b) = (digests(one.path()), digests(two.path()));
    assert!(a.len() > 100, "only {} results", a.len());
    // The report prints how long the training took, and nothing else that may differ.
    let without_report = |found: &BTreeMap<String, String>| {
        let mut found = found.clone();
        found.remove("report").expect("a report");
        found
    };
    assert_eq!(without_report(&a), without_report(&b));
    assert_eq!(report(one.path()), report(two.path()));
    crate::tables::are_as_documented(one.path());
    crate::clip_moe::is_what_it_says(one.path());

    let again = run(one.path(), 2);
    assert!(!again.contains("runs"), "{again}");
    sizes_of_batches_change_no_bytes(one.path(), &a);

    let report = one.path().join("report/current/report.html");
    let html = std::fs::read_to_string(report).unwrap();
    assert!(html.contains("cluster-aware"));
    assert_eq!(html.matches("<script").count(), 1);
    assert!(html.matches("class=\"n measured\"").count() >= 9, "costs are measured");
    assert!(html.contains("class=\"patch e1\"") && html.contains("class=\"token e"));
}

/// The report's files but for what was measured, and the bytes of its table.
fn report(artifacts: &Path) -> (String, String, Vec<u8>) {
    let file = |name: &str| std::fs::read(artifacts.join("report/current").join(name));
    let html = String::from_utf8(file("report.html").unwrap()).unwrap();
    let mut parts = html.split("measured\">");
    let mut rest = parts.next().unwrap().to_owned();
    for part in parts {
        rest.push_str(part.split_once("</td>").unwrap().1);
    }
    let configuration = String::from_utf8(file("pipeline.yaml").unwrap()).unwrap();
    (rest, configuration, file("comparison.parquet").unwrap())
}

/// Batches of the stages that only compute forward are a matter of memory; those of
/// `evaluate` in multiples of 16, since a chunk of one row may give other last bits.
fn sizes_of_batches_change_no_bytes(artifacts: &Path, truth: &BTreeMap<String, String>) {
    for (stage, set) in
        [("activations", "activations.batch=37"), ("evaluate", "evaluate.batch=32")]
    {
        let (_, binary) = STAGES.iter().find(|(name, _)| *name == stage).unwrap();
        let run = |set: &[&str]| finish(stage, &mut command(binary, artifacts, set));
        assert!(run(&[set]).contains("runs"), "{set}");
        let other = digests(artifacts);
        assert_eq!(truth, &other, "{set}");
        assert!(!run(&[]).contains("runs"), "{set} and back");
    }
}

/// Sixty-four patterns, each in six colors and as many files, with a table of captions.
fn pictures(folder: &Path) {
    let mut table = String::from("filepath,caption,concept\n");
    for concept in 0..64_u32 {
        for variant in 0..6_u32 {
            let file = format!("{concept:02}-{variant}.png");
            let picture = image::RgbImage::from_fn(20, 20, |x, y| {
                let on = (x / (1 + concept % 8) + y / (1 + concept / 8)) % 2 == 0;
                let shade = u8::try_from(40 * variant).unwrap();
                image::Rgb(if on { [shade, 255 - shade, 90] } else { [255; 3] })
            });
            picture.save(folder.join(&file)).unwrap();

            for caption in ["checks of", "a pattern of"] {
                let (wide, high) = (concept % 8, concept / 8);
                let caption = format!("{caption} width {wide} and height {high}");
                writeln!(table, "{file},{caption},pattern-{concept}").unwrap();
            }
        }
    }
    std::fs::write(folder.join("captions.csv"), table).unwrap();
}

/// Runs what `report.md` says makes it again, with the binaries instead of `make`.
fn the_command_of_the_report_finds_everything_fresh(artifacts: &Path, text: &str) {
    let command = text.lines().find_map(|line| line.strip_prefix("make CONFIG="));
    let file = command.expect("a command").strip_prefix("artifacts/").unwrap();
    for (stage, binary) in STAGES {
        let mut command = Command::new(binary);
        command.arg("--config").arg(artifacts.join(file));
        let said =
            finish(stage, command.arg("--artifacts").arg(artifacts).arg("--check"));
        assert!(!said.contains("runs"), "{said}");
    }
}

#[test]
fn a_folder_of_pictures_and_captions_goes_all_the_way() {
    let (own, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pictures(own.path());
    let folder = format!("dataset.folder={}", own.path().display());
    let set = ["dataset.source=folder", &folder, "seeds=[1]"];
    run_with(results.path(), 2, &set);
    let report = results.path().join("report/current/report.md");
    let text = std::fs::read_to_string(report).unwrap();
    assert!(text.contains("sparse"), "{text}");
    let again = run_with(results.path(), 2, &set);
    assert!(!again.contains("runs"), "{again}");
    the_command_of_the_report_finds_everything_fresh(results.path(), &text);

    std::fs::remove_file(own.path().join("03-2.png")).unwrap();
    let table = own.path().join("captions.csv");
    let output = command(STAGES[0].1, results.path(), &set).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        error.contains("03-2.png") && error.contains(&*table.to_string_lossy()),
        "{error}"
    );
}
