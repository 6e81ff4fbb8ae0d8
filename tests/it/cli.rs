//! The binaries as a person meets them: exit codes, one-line errors, closed pipes.

use std::io::Read as _;
use std::process::{Command, Output, Stdio};

use upcycle::stage;

const INSPECT: &str = env!("CARGO_BIN_EXE_upcycle-inspect");
const CLUSTER: &str = env!("CARGO_BIN_EXE_upcycle-cluster");

fn run(program: &str, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(program)
        .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml")])
        .args(args)
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_and_configuration_exit_with_2() {
    for args in [
        &["--nonsense"][..],
        &["--set", "train.balanse=1"],
        &["--set", "moe.top_k=9"],
        &["--set", "inits.sparse.method=many"],
        &["--set", "inits.drop.ratio=-1.5"],
        &["--profile", "nowhere"],
        &["--threads", "0"],
        &["--only", "nowhere"],
        &["--config", "missing.yaml"],
    ] {
        let output = run(CLUSTER, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let text = errors(&output);
        assert!(text.starts_with("error: ") && !text.contains("panicked"), "{text}");
    }

    let text = errors(&run(CLUSTER, &["--set", "train.balanse=1"]));
    assert!(text.contains("did you mean balance?"), "{text}");
}

#[test]
fn every_assignment_of_makes_set_is_taken() {
    let set = "train.balance=0.5 report.title='My study' seeds=[1, 1]";
    let text = errors(&run(CLUSTER, &["--assignments", set, "--dry-run"]));
    assert!(text.contains("seeds: found [1, 1], expected every entry once"), "{text}");
    let set = "report.title='My study' seeds=[7, 8]";
    let output = run(CLUSTER, &["--assignments", set, "--dry-run"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("s7") && !text.contains("s1"), "{text}");
}

#[test]
fn only_lists_the_runs_or_says_that_there_are_none() {
    let text = errors(&run(CLUSTER, &["--only", "s9"]));
    assert!(text.contains("cluster has no such run; there are: s1"), "{text}");
    let dataset = env!("CARGO_BIN_EXE_upcycle-dataset");
    let text = errors(&run(dataset, &["--only", "s1"]));
    assert!(text.contains("the stage dataset has no runs"), "{text}");
}

#[test]
fn the_help_of_the_stage_upcycle_lists_every_method() {
    let output = run(env!("CARGO_BIN_EXE_upcycle-upcycle"), &["--help"]);
    // Long lines are wrapped.
    let text = String::from_utf8_lossy(&output.stdout);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for method in upcycle::upcycle::methods() {
        let line = format!("{} {}", method.name(), method.describe());
        assert!(text.contains(&line), "{line}: {text}");
    }
    let other = run(CLUSTER, &["--help"]);
    assert!(!String::from_utf8_lossy(&other.stdout).contains("drop-svd"));
}

#[test]
fn help_begins_with_what_the_program_does() {
    for (program, about) in [
        (INSPECT, "Looks at the pipeline and its results without running anything."),
        (
            env!("CARGO_BIN_EXE_upcycle-import"),
            "Turns a published dense CLIP into a checkpoint of ours.",
        ),
        (CLUSTER, stage::cluster::STAGE.about),
    ] {
        let output = run(program, &["--help"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.lines().next(), Some(about), "{text}");
    }
}

#[test]
fn a_stage_before_its_turn_says_what_to_make_first() {
    let output = run(CLUSTER, &["--profile", "smoke"]);
    assert_eq!(output.status.code(), Some(1));
    let text = errors(&output);
    assert!(text.contains("`make cluster`") && text.lines().count() <= 2, "{text}");
}

#[test]
fn a_check_of_an_empty_store_exits_with_1_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(CLUSTER)
        .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml")])
        .args(["--check", "--quiet"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_closed_standard_output_ends_quietly_with_141() {
    for (program, args) in [(INSPECT, vec!["status"]), (CLUSTER, vec!["--dry-run"])] {
        let mut child = Command::new("bash")
            .args(["-c", "\"$0\" \"$@\" | true; echo ${PIPESTATUS[0]}", program])
            .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml")])
            .args(&args)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut code, mut errors) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut code).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        child.wait().unwrap();

        // The reader may also have been slower than we are: then all is well.
        assert!(["0", "141"].contains(&code.trim()), "{code}");
        assert!(!errors.contains("panicked") && !errors.contains("error"), "{errors}");
    }
}

#[test]
fn a_reader_that_is_already_gone_gives_141_every_time() {
    for (program, args) in [
        (INSPECT, &["status"][..]),
        (INSPECT, &["dag"]),
        (INSPECT, &["why", "--json"]),
        (CLUSTER, &["--dry-run"]),
        (CLUSTER, &["--help"]),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);

        let output = Command::new(program)
            .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml")])
            .args(args)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(output.status.code(), Some(141), "{args:?}: {}", errors(&output));
        assert_eq!(errors(&output), "", "{args:?}");
    }
}

#[test]
fn inspect_answers_in_lines_and_in_json() {
    let output = run(INSPECT, &["status", "--profile", "smoke"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("dataset") && text.contains("first run"), "{text}");

    for ask in [&["status"][..], &["why"], &["dag"], &["verify"], &["gc"]] {
        let output = run(INSPECT, &[ask, &["--json", "--profile", "smoke"]].concat());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(value.is_array() || value.is_object(), "{ask:?}");
    }
    for format in ["ascii", "dot", "mermaid"] {
        assert!(run(INSPECT, &["dag", "--format", format]).status.success());
    }

    let output = run(INSPECT, &["show", "trian/sparse-s1"]);
    assert!(errors(&output).contains("did you mean train/sparse-s1?"), "{output:?}");
}

#[test]
fn the_speed_of_a_training_step_can_be_asked_for() {
    let ask = ["speed", "--steps", "1", "--profile", "smoke", "--json", "--threads", "1"];
    let output = run(INSPECT, &ask);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = value["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|r| r["variant"].as_str().unwrap()).collect();
    assert_eq!(names, ["dense", "moe", "moe-eesd"]);
    assert!(rows.iter().all(|row| row["median_ms"].as_f64().unwrap() > 0.0));
    assert!(value["peak_bytes"].as_u64().unwrap() > 1 << 20);

    let output = run(INSPECT, &["speed", "--steps", "0"]);
    assert!(errors(&output).contains("--steps must be positive"), "{output:?}");
}

#[test]
fn a_study_is_exported_as_far_as_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let small = "seeds=[1] pretrain.optim.steps=7 pretrain.optim.warmup=1 \
                 pretrain.optim.validate_every=7 pretrain.optim.checkpoint_every=7";
    let with = |program: &str, args: &[&str], set: &str| {
        let output = Command::new(program)
            .args(args)
            .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml")])
            .args(["--profile", "smoke", "--assignments", set])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let run = |program: &str, args: &[&str]| with(program, args, small);
    let table = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join("study").join(name));
        text.unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let export = ["study", "--out", "study", "--every", "4"];

    let said = run(INSPECT, &export);
    assert!(
        said.contains("no result of this configuration yet: dataset, pretrain/s1"),
        "{said}"
    );
    assert_eq!(table("log.csv").len(), 1, "the names of the columns");

    run(env!("CARGO_BIN_EXE_upcycle-dataset"), &[]);
    run(env!("CARGO_BIN_EXE_upcycle-pretrain"), &[]);
    let said = run(INSPECT, &export);
    assert!(
        said.contains("no result of this configuration yet: activations/s1"),
        "{said}"
    );

    let log = table("log.csv");
    assert!(log[0].starts_with("run,seed,step,samples,learning_rate,loss,clip"));
    assert_eq!(log.len(), 1 + 2, "seven steps in rows of four");
    assert!(log[1].starts_with("pretrain,1,3,128,"), "{}", log[1]);
    assert!(log[2].starts_with("pretrain,1,6,224,"), "{}", log[2]);
    let validation = table("validation.csv");
    assert_eq!(validation[0], "run,seed,step,metric,value");
    assert!(validation[1..].iter().all(|row| row.starts_with("pretrain,1,")));
    assert!(validation.iter().any(|row| row.contains(",7,concept/acc1,")));

    let about: serde_json::Value =
        serde_json::from_str(&table("study.json").join("\n")).unwrap();
    assert_eq!(about["config"]["pretrain"]["optim"]["steps"], 7);
    let results = about["results"].as_object().unwrap();
    assert_eq!(results.keys().collect::<Vec<_>>(), ["dataset", "pretrain/s1"]);
    assert!(!about.to_string().contains(&*folder.path().to_string_lossy()));

    // What is there was made with other parameters, itself or by way of what it reads.
    for other in ["pretrain.optim.weight_decay=0.3", "dataset.shapes=500"] {
        let said = with(INSPECT, &export, &format!("{small} {other}"));
        assert!(said.contains("pretrain/s1, activations/s1"), "{said}");
        assert_eq!(table("log.csv").len(), 1, "the names of the columns");
    }
}
