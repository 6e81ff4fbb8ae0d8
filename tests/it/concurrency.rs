//! Several processes at the same results: one computes, the others wait and use it.

use std::fs;
use std::thread;
use std::time::Duration;

use upcycle::error::Kind;
use upcycle::stage::drive::Orders;

use crate::harness::{Settings, World, orders};

fn slow() -> Settings {
    Settings { behaviour: "is slow", ..Settings::default() }
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
