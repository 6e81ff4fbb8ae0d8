//! The tests, each of which starts ranks with `mpirun` and looks at what they leave.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

/// Bytes over the memory that processes of a machine share, and over its loopback network.
const TRANSPORTS: [&[&str]; 2] =
    [&[], &["--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "lo"]];

/// Ranks that fail must be down after this time, that of starting them included.
const SOON: Duration = Duration::from_secs(20);

/// Runs every test and says which.
pub(crate) fn run() -> ExitCode {
    if Command::new("mpirun").arg("--version").output().is_err() {
        println!("skipped: mpirun is not installed");
        return ExitCode::SUCCESS;
    }
    let tests: [(&str, fn()); 7] = [
        ("collectives_move_what_they_should", collectives),
        ("a_training_has_the_same_bytes_on_any_number_of_ranks", same_bytes),
        ("a_killed_training_goes_on_with_another_number_of_ranks", kill_and_resume),
        ("a_panic_of_one_rank_ends_all", panic),
        ("a_rank_that_hangs_is_noticed", hang),
        ("a_stage_has_the_same_bytes_on_two_ranks", stage),
        ("ranks_that_cannot_work_together_are_refused", refusals),
    ];
    for (name, test) in tests {
        let clock = Instant::now();
        test();
        println!("test {name} ... ok ({:.1} s)", clock.elapsed().as_secs_f64());
    }
    ExitCode::SUCCESS
}

/// `mpirun` for `count` ranks.
fn mpirun(count: usize, transport: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .args(["-np", &count.to_string(), "--bind-to", "none"])
        .args(transport);
    command
}

/// A scenario of this program on `count` ranks.
fn scenario(name: &str, count: usize, folder: &Path, transport: &[&str]) -> Command {
    let own = std::env::current_exe().expect("the path of this program");
    let args = |command: &mut Command| {
        command.arg("rank").arg(name).arg(count.to_string()).arg(folder);
    };
    if count == 1 {
        let mut command = Command::new(own);
        args(&mut command);
        return command;
    }
    let mut command = mpirun(count, transport);
    command.arg(own);
    args(&mut command);
    command
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("a started process");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// What a command that must fail soon says on standard error.
fn fails(command: &mut Command) -> (Output, String) {
    let clock = Instant::now();
    let output = command.output().expect("a started process");
    assert!(!output.status.success(), "{command:?} did not fail");
    assert!(clock.elapsed() < SOON, "{command:?} took {:?}", clock.elapsed());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, text)
}

fn digest(output: &str) -> String {
    let line = output.lines().find(|line| line.starts_with("digest "));
    line.unwrap_or_else(|| panic!("no digest in {output}")).to_owned()
}

/// A folder with a data set.
fn world() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let smoke =
        upcycle::config::Overrides { profile: Some("smoke".to_owned()), set: vec![] };
    let config = upcycle::config::load_default(&smoke).expect("a configuration");
    let dataset = path.join("dataset");
    fs::create_dir_all(&dataset).expect("a folder");
    let mut quiet = |_: usize, _: usize| {};
    upcycle::data::build(&config.dataset, path, 0, &dataset, &mut quiet)
        .expect("a data set");
    folder
}

fn collectives() {
    let folder = tempfile::tempdir().expect("a folder");
    for transport in TRANSPORTS {
        for count in [2, 4] {
            succeeds(&mut scenario("collectives", count, folder.path(), transport));
        }
    }
}

fn same_bytes() {
    let digests = [(1, 0), (2, 0), (4, 0), (2, 1), (4, 1)].map(|(count, transport)| {
        let folder = world();
        let transport = TRANSPORTS[transport];
        digest(&succeeds(&mut scenario("train", count, folder.path(), transport)))
    });
    assert!(digests.iter().all(|own| *own == digests[0]), "{digests:?}");
}

/// Kills a rank of 4 after a checkpoint, then one of 2 after another, and ends on 1.
fn kill_and_resume() {
    let whole = world();
    let expected = digest(&succeeds(&mut scenario("train", 1, whole.path(), &[])));

    let folder = world();
    for count in [4, 2] {
        let mut command = scenario("train", count, folder.path(), &[]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut run = command.spawn().expect("a started process");
        let output = BufReader::new(run.stdout.take().expect("a pipe"));
        let last = format!("rank {} is process ", count - 1);
        let mut lines = output.lines().map(|line| line.expect("a line"));
        let process = lines.find_map(|line| line.strip_prefix(&last).map(str::to_owned));
        let process = process.expect("the last rank says its number");

        // A checkpoint that is newer than this run.
        let state = folder.path().join("scratch/state/record.json");
        let age = || fs::metadata(&state).and_then(|found| found.modified()).ok();
        let before = age();
        while age() == before {
            std::thread::sleep(Duration::from_millis(5));
        }

        let clock = Instant::now();
        let killed = Command::new("kill").args(["-9", &process]).status();
        assert!(killed.expect("kill").success());
        assert!(!run.wait().expect("an end").success(), "{count} ranks ended well");
        assert!(clock.elapsed() < SOON, "{count} ranks took {:?}", clock.elapsed());
    }

    let output = succeeds(&mut scenario("train", 1, folder.path(), &[]));
    assert!(output.contains("resumed "), "{output}");
    assert_eq!(digest(&output), expected);
}

fn panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, text) = fails(&mut scenario("panic", 2, folder.path(), &[]));
    assert!(text.contains("rank 1 panics"), "{text}");
}

fn hang() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, text) = fails(&mut scenario("hang", 2, folder.path(), &[]));
    let expected =
        "rank 0 waited 2 s for other ranks in the collective `gather` of step 7";
    assert!(text.contains(expected), "{text}");
}

/// The arguments of a stage in a small pipeline.
fn small<'a>(command: &'a mut Command, artifacts: &Path) -> &'a mut Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    command
        .arg("--config")
        .arg(root.join("pipeline.yaml"))
        .arg("--artifacts")
        .arg(artifacts)
        .args(["--profile", "smoke", "--set", "device=cpu", "--set", "seeds=[1]"])
        .args(["--set", "pretrain.optim.steps=20", "--threads", "1"])
}

fn stage() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = |artifacts: &Path| {
        let mut files: Vec<_> =
            ["model.safetensors", "log.parquet", "validation.parquet"]
                .map(|file| fs::read(artifacts.join("pretrain/s1/current").join(file)))
                .into_iter()
                .map(|file| file.expect("an output"))
                .collect();
        let key = fs::read_link(artifacts.join("pretrain/s1/current")).expect("a link");
        files.push(key.to_string_lossy().into_owned().into_bytes());
        files
    };
    let results = [1, 2].map(|count| {
        let artifacts = folder.path().join(count.to_string());
        let dataset = env!("CARGO_BIN_EXE_upcycle-dataset");
        succeeds(small(&mut Command::new(dataset), &artifacts));
        let pretrain = env!("CARGO_BIN_EXE_upcycle-pretrain");
        let mut command =
            if count == 1 { Command::new(pretrain) } else { mpirun(count, &[]) };
        if count > 1 {
            command.arg(pretrain).args(["--ranks", &count.to_string()]);
        }
        succeeds(small(&mut command, &artifacts));
        model(&artifacts)
    });
    assert!(results[0] == results[1], "two ranks wrote other bytes than one");
}

fn refusals() {
    let folder = tempfile::tempdir().expect("a folder");
    let artifacts = folder.path();
    let dataset = env!("CARGO_BIN_EXE_upcycle-dataset");
    succeeds(small(&mut Command::new(dataset), artifacts));
    let pretrain = env!("CARGO_BIN_EXE_upcycle-pretrain");

    // Started without a launcher, as srun without PMIx does.
    let mut alone = Command::new(pretrain);
    let (output, text) = fails(small(alone.args(["--ranks", "2"]), artifacts));
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("--ranks: found 2, but MPI started 1"), "{text}");

    let mut wrong = mpirun(2, &[]);
    let (output, text) =
        fails(small(wrong.arg(pretrain).args(["--ranks", "4"]), artifacts));
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text.matches("error: --ranks: found 4").count(), 1, "{text}");

    let mut many = mpirun(4, &[]);
    let (_, text) = fails(small(many.arg(pretrain).args(["--ranks", "4"]), artifacts));
    assert!(text.contains("optim.batch: found 32 pairs, which 4 ranks"), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");

    // Another seed on one rank alone.
    let mut other = mpirun(1, &[]);
    small(other.arg(pretrain).args(["--ranks", "2"]), artifacts);
    other.args([":", "-np", "1"]);
    small(other.arg(pretrain).args(["--ranks", "2"]), artifacts);
    other.args(["--set", "pretrain.optim.weight_decay=0.3"]);
    let (output, text) = fails(&mut other);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("error: on rank 1:") && text.contains("has the key"), "{text}");
    assert!(!artifacts.join("pretrain/s1/current").exists(), "a result was published");
}
