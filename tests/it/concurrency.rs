//! Several processes at the same results: one computes, the others wait and use it.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use upcycle::error::Kind;
use upcycle::pipeline::drive::Orders;

use crate::harness::{Settings, World, answer, orders};

fn slow() -> Settings {
    Settings { behavior: "is slow", ..Settings::default() }
}

#[test]
fn of_eight_equal_runs_at_once_one_computes() {
    let world = World::new();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.one("numbers", &slow(), &orders()).unwrap());
        }
    });
    assert_eq!(world.notes(), ["numbers"]);
    assert_eq!(world.store().results().len(), 1);
}

/// Real processes of a real stage: one of them draws the shapes.
#[test]
fn of_twenty_equal_processes_at_once_one_computes() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_upcycle-dataset"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["--profile", "smoke", "--threads", "1", "--artifacts"])
            .arg(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..20).map(|_| start()).collect();

    let mut ran = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        ran += usize::from(said.contains("runs (first run)"));
    }
    assert_eq!(ran, 1);

    let results = fs::read_dir(folder.path().join("dataset")).unwrap();
    let keys = results
        .filter(|e| !e.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b"."))
        .count();
    assert_eq!(keys, 2, "a result and its link");
}

#[test]
fn runs_with_other_parameters_go_on_side_by_side() {
    let world = World::new();
    thread::scope(|scope| {
        for n in 0..6 {
            let world = &world;
            let settings = Settings { n: serde_json::json!(n), ..slow() };
            scope.spawn(move || world.one("numbers", &settings, &orders()).unwrap());
        }
    });
    assert_eq!(world.notes().len(), 6);
    assert_eq!(world.store().results().len(), 6);
    for n in 0..6 {
        let settings = Settings { n: serde_json::json!(n), ..slow() };
        world.one("numbers", &settings, &orders()).unwrap();
    }
    assert_eq!(world.notes().len(), 6, "all of them are there");
}

/// One process changes its mind again and again while another sweeps; the sweeper may take
/// what is not current, never what is being read, and a run never fails for it.
#[test]
fn sweeping_without_end_fails_no_run_and_loses_nothing_current() {
    let world = World::new();
    world.make(&Settings::default());
    let done = AtomicBool::new(false);
    let swept = thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            let mut swept = 0;
            while !done.load(Ordering::Relaxed) {
                let store = world.store();
                for item in store.garbage() {
                    swept += usize::from(store.remove(&item).unwrap());
                }
            }
            swept
        });

        for round in 0..40 {
            let settings = Settings { cap: 20 + 10 * (round % 5), ..Settings::default() };
            let made = world.try_make(&settings, &orders());
            if made.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            made.unwrap();
            assert_eq!(world.result("a"), answer(3, 4, settings.cap, 1));
        }
        done.store(true, Ordering::Relaxed);
        sweeper.join().unwrap()
    });
    assert!(swept > 0);
}

#[test]
fn a_run_that_must_not_wait_is_busy() {
    let world = World::new();
    thread::scope(|scope| {
        scope.spawn(|| world.one("numbers", &slow(), &orders()).unwrap());
        while world.notes().is_empty() {
            thread::sleep(Duration::from_millis(2));
        }
        let hasty = Orders { no_wait: true, ..orders() };
        let error = world.one("numbers", &slow(), &hasty).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert_eq!(error.kind().exit_code(), 75);
        assert!(
            format!("{error:?}").contains(&std::process::id().to_string()),
            "{error:?}"
        );
    });
}

#[test]
fn the_lock_file_of_a_dead_process_holds_nobody_up() {
    let world = World::new();
    world.make(&Settings::default());
    let locks = world.artifacts().join(".locks");
    for entry in fs::read_dir(&locks).unwrap() {
        fs::write(entry.unwrap().path(), "process 1 since long ago\n").unwrap();
    }
    let forced = Orders { force: true, no_wait: true, ..orders() };
    assert_eq!(world.try_make(&Settings::default(), &forced).unwrap().len(), 4);
}

#[test]
fn the_number_of_jobs_and_threads_does_not_reach_a_result() {
    let world = |jobs, threads| {
        let world = World::new();
        world
            .try_make(&Settings::default(), &Orders { jobs, threads, ..orders() })
            .unwrap();
        world.contents()
    };
    assert_eq!(world(1, 1), world(4, 8));
}

#[test]
fn what_is_being_read_is_not_swept_away() {
    let world = World::new();
    world.make(&slow());
    let lock = world.dir("numbers", None);
    let key = lock.file_name().unwrap();
    let file = fs::File::open(world.artifacts().join(".locks").join(key)).unwrap();
    file.lock_shared().unwrap();
    world.make(&Settings { n: serde_json::json!(8), ..Settings::default() });
    let store = world.store();
    let kept: Vec<bool> =
        store.garbage().iter().map(|item| store.remove(item).unwrap()).collect();
    assert_eq!(kept.iter().filter(|gone| !**gone).count(), 1, "{kept:?}");
    assert!(lock.exists());
}
