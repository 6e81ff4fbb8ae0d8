//! What an installation puts in place, and that it works in any folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::pipeline::STAGES;

/// The binaries beside those of stages.
const TOOLS: [(&str, &str); 3] = [
    ("export", env!("CARGO_BIN_EXE_upcycle-export")),
    ("init", env!("CARGO_BIN_EXE_upcycle-init")),
    ("inspect", env!("CARGO_BIN_EXE_upcycle-inspect")),
];

/// The binaries of all stages, and the tools.
fn binaries() -> impl Iterator<Item = (&'static str, &'static str)> {
    STAGES.into_iter().chain(TOOLS)
}

/// `make install` out of a folder with links to these binaries.
fn install(prefix: &Path) {
    let built = tempfile::tempdir().unwrap();
    for (name, path) in binaries() {
        let place = built.path().join(format!("upcycle-{name}"));
        std::os::unix::fs::symlink(path, place).unwrap();
    }
    // The stamp says that the build is newer than its sources.
    fs::write(built.path().join(".upcycle-built"), "").unwrap();
    let output = Command::new("make")
        .arg("-C")
        .arg(env!("CARGO_MANIFEST_DIR"))
        .arg("install")
        .arg(format!("BIN={}", built.path().display()))
        .arg(format!("PREFIX={}", prefix.display()))
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_installation_has_pages_for_every_binary_and_runs_in_any_folder() {
    let base = tempfile::tempdir().unwrap();
    let prefix = base.path().join("usr");
    install(&prefix);

    let share = prefix.join("share");
    for (name, _) in binaries() {
        let name = format!("upcycle-{name}");
        let mode =
            fs::metadata(prefix.join("bin").join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{name}");
        for (place, word) in [
            (format!("bash-completion/completions/{name}"), "--profile"),
            (format!("zsh/site-functions/_{name}"), "#compdef"),
            (format!("fish/vendor_completions.d/{name}.fish"), "complete -c"),
            (format!("man/man1/{name}.1"), ".TH"),
        ] {
            let text = fs::read_to_string(share.join(&place)).unwrap();
            let is_tool = word == "--profile"
                && ["upcycle-export", "upcycle-init"].contains(&name.as_str());
            assert!(is_tool || text.contains(word), "{place}");
            assert!(text.contains(&name), "{place}");
        }
    }
    // A shell offers the subcommands that take over the whole command line.
    for (name, inner) in [("evaluate", "on"), ("cluster", "fit"), ("subspaces", "fit")] {
        let file = format!("fish/vendor_completions.d/upcycle-{name}.fish");
        let text = fs::read_to_string(share.join(file)).unwrap();
        assert!(text.contains(&format!("-a \"{inner}\"")), "{text}");
    }
    for page in
        ["upcycle-evaluate-on.1", "upcycle-cluster-fit.1", "upcycle-subspaces-fit.1"]
    {
        assert!(share.join("man/man1").join(page).is_file(), "{page}");
    }

    // In an empty folder the plan is what it is in that of the sources.
    let here = base.path().join("empty");
    fs::create_dir(&here).unwrap();
    let run = |program: &str, args: &[&str]| {
        let program = prefix.join("bin").join(program);
        let mut command = Command::new(program);
        let command = command.args(args).current_dir(&here);
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").output().unwrap()
    };
    assert!(run("upcycle-init", &[]).status.success());
    let plan = run("upcycle-make", &["-n", "PROFILE=smoke"]);
    let text = String::from_utf8_lossy(&plan.stdout);
    assert!(plan.status.success() && text.contains("dataset: would run"), "{plan:?}");
    assert!(text.contains("time: about "), "{text}");
}
