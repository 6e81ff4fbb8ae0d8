//! The Makefile: the same graph as the plan, and flags that reach the stages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use upcycle::pipeline::Reach;
use upcycle::stage::ALL;

use crate::plan::{MULTIPLET, nodes};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_makefile_has_the_graph_of_the_plan() {
    let mut planned: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // A run that needs every stage.
    for node in nodes(&[MULTIPLET]) {
        let reads = planned.entry(node.stage.to_owned()).or_default();
        reads.extend(node.inputs.iter().map(|upstream| upstream.place.stage.clone()));
    }

    let text = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut written: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        let Some((stage, reads)) = line.split_once(':') else { continue };
        if ALL.iter().any(|known| known.name == stage) && !reads.contains('|') {
            let reads = reads.split_whitespace().map(str::to_owned);
            written.entry(stage.to_owned()).or_default().extend(reads);
        }
    }
    assert_eq!(written, planned);
}

/// Runs make over binaries that only say how they were called.
fn make(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    // Arguments are shown with bars between them, so that blanks inside of one can be told. A
    // line is written at once: two stages that `make -j` runs side by side share one pipe.
    let script = "#!/bin/sh\ncase \"$*\" in *--missing-packages*) exit 0;; esac\n\
                  line=\"${0##*/} $*\"; for part; do line=\"$line |$part\"; done\n\
                  printf '%s\\n' \"$line\"\n";
    for name in ALL.iter().map(|stage| stage.name).chain(["inspect"]) {
        let path = folder.path().join(format!("upcycle-{name}"));
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // The stamp says that the build is newer than its sources.
    let stamp = folder.path().join(".upcycle-built");
    fs::write(&stamp, "").unwrap();

    Command::new("make")
        .arg("-C")
        .arg(root())
        .arg(format!("BIN={}", folder.path().display()))
        .arg("--no-print-directory")
        .args(args)
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env_remove("MFLAGS")
        .output()
        .unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    // A dry run shows the recipes too.
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter(|line| line.starts_with("upcycle-")).map(str::to_owned).collect()
}

#[test]
fn make_runs_every_stage_once_in_order() {
    let output = make(&[]);
    assert!(output.status.success(), "{output:?}");
    let stages: Vec<String> =
        lines(&output).iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
    let expected: Vec<String> =
        ALL.iter().map(|s| format!("upcycle-{}", s.name)).collect();
    assert_eq!(stages, expected);
    assert_eq!(lines(&make(&["-j4"])).len(), ALL.len());
}

#[test]
fn flags_of_make_become_flags_of_the_stages() {
    for (flag, mark) in [("-n", "--dry-run"), ("-q", "--check --quiet")] {
        for more in [vec![], vec!["-j2"], vec!["-k"], vec!["PROFILE=no"]] {
            let output = make(&[vec![flag], more.clone()].concat());
            let lines = lines(&output);
            assert_eq!(lines.len(), ALL.len(), "{flag} {more:?}: {output:?}");
            assert!(
                lines.iter().all(|line| line.contains(mark)),
                "{flag} {more:?}: {lines:?}"
            );
        }
    }

    for plain in [vec![], vec!["-k"], vec!["-s"], vec!["THREADS=2"], vec!["SET=a.n=q"]] {
        let lines = lines(&make(&plain));
        let clean = |l: &String| !l.contains("--dry-run") && !l.contains("--check");
        assert!(lines.iter().all(clean), "{plain:?}: {lines:?}");
    }
}

/// Whoever asks for the data set alone may use it for something else.
#[test]
fn later_stages_are_looked_at_where_they_are_asked_for() {
    let is_ahead = |goals: &[&str]| {
        let lines = lines(&make(goals));
        let ahead = lines.iter().filter(|line| line.contains("--ahead"));
        let of: Vec<&str> = ahead.map(|line| line.split(' ').next().unwrap()).collect();
        assert!(of.is_empty() || of == ["upcycle-dataset"], "{lines:?}");
        !of.is_empty()
    };
    assert!(
        is_ahead(&[]) && is_ahead(&["train"]) && is_ahead(&["-n", "dataset", "train"])
    );
    assert!(!is_ahead(&["dataset"]));
}

#[test]
fn touching_is_refused() {
    let output = make(&["-t"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("make -t is not supported"), "{text}");
}

#[test]
fn variables_reach_the_stages_they_name() {
    let lines = lines(&make(&[
        "FORCE=train",
        "PROFILE=smoke",
        "SET=a.b=c d.e=[1]",
        "DEVICE=cuda:1",
        "THREADS=3",
    ]));
    for line in &lines {
        let mark = line
            .contains("--profile smoke --assignments a.b=c d.e=[1] --set device=cuda:1");
        assert!(mark && line.contains("--threads 3"), "{line}");
        assert_eq!(
            line.contains("--force"),
            line.starts_with("upcycle-train "),
            "{line}"
        );
    }
}

/// The stages that the Makefile starts with a launcher are those that several processes run; a
/// plan needs one process.
#[test]
fn ranks_reach_the_stages_that_several_processes_run() {
    let spread = |line: &String| {
        let name = line.split(' ').next().unwrap().trim_start_matches("upcycle-");
        ALL.iter().any(|stage| stage.name == name && stage.reach == Reach::Ranks)
    };
    let launched = lines(&make(&["RANKS=2", "LAUNCH=env"]));
    assert_eq!(launched.len(), ALL.len());
    assert!(launched.iter().any(spread));
    for line in &launched {
        assert_eq!(line.contains("--ranks 2"), spread(line), "{line}");
    }
    let refused = make(&["RANKS=2", "LAUNCH=no-such-launcher -np 2"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && lines(&refused).is_empty(), "{refused:?}");
    assert!(error.contains("RANKS needs no-such-launcher, which is missing"), "{error}");

    let planned = lines(&make(&["-n", "RANKS=2", "LAUNCH=false"]));
    assert_eq!(planned.len(), ALL.len());
    assert!(planned.iter().all(|line| !line.contains("--ranks")), "{planned:?}");
}

#[test]
fn only_what_runs_ranks_waits_for_the_program_with_mpi() {
    let folder = |args: &[&str]| -> String {
        let command = Command::new("make")
            .arg("-C")
            .arg(root())
            .args(["--no-print-directory", "--eval", "where: ; +@echo $(BIN)", "where"])
            .args(args)
            .env_remove("MAKEFLAGS")
            .env("CARGO_TARGET_DIR", "T")
            .output()
            .unwrap();
        // A dry run shows the command as well.
        let text = String::from_utf8(command.stdout).unwrap();
        text.lines().last().unwrap_or_default().to_owned()
    };
    assert_eq!(folder(&[]), "T/release");
    assert_eq!(folder(&["RANKS=2"]), "T/mpi/release");
    assert_eq!(folder(&["-n", "RANKS=2"]), "T/release");
    assert_eq!(folder(&["RANKS=2", "MAKECMDGOALS=status"]), "T/release");
    assert_eq!(folder(&["RANKS=2", "MAKECMDGOALS=build"]), "T/mpi/release");
}

/// Quotes, blanks and commas of a value pass make and the shell as they were typed.
#[test]
fn a_value_with_blanks_reaches_the_stages_unchanged() {
    for set in [
        "report.title='My study'",
        "report.title=\"My, own; study\" seeds=[1, 2]",
        "report.title='It''s mine' train.balance=0.5",
    ] {
        let output = make(&[&format!("SET={set}")]);
        let lines = lines(&output);
        assert_eq!(lines.len(), ALL.len(), "{output:?}");
        for line in lines {
            assert!(line.contains(&format!("|--assignments |{set}")), "{line}");
        }
    }
}
