//! What makes a node stale, what does not, and how far it spreads.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::json;
use upcycle::artifact::{Options, Store};
use upcycle::pipeline::drive::{Mode, Orders};

use crate::harness::{Settings, World, answer, orders};

const ALL: [&str; 4] = ["numbers", "squares", "total/a", "total/b"];

#[test]
fn a_second_run_runs_nothing() {
    let world = World::new();
    assert_eq!(world.make(&Settings::default()), ALL);
    assert_eq!(world.make(&Settings::default()), [""; 0]);
    assert_eq!(world.result("a"), answer(3, 4, 100, 1));
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

#[test]
fn a_changed_parameter_runs_its_stage_and_what_reads_it() {
    let world = World::new();
    world.make(&Settings::default());
    let changed = Settings { cap: 40, ..Settings::default() };
    assert_eq!(world.make(&changed), ["squares", "total/a", "total/b"]);
    assert_eq!(world.result("a"), answer(3, 4, 40, 1));
    let offset = Settings { offset: 7, ..changed };
    assert_eq!(world.make(&offset), ["total/a"]);
}

#[test]
fn a_parameter_changed_back_uses_the_old_result() {
    let world = World::new();
    world.make(&Settings::default());
    let first = world.contents();
    world.make(&Settings { cap: 40, ..Settings::default() });
    assert_ne!(world.contents(), first);
    assert_eq!(world.make(&Settings::default()), [""; 0]);
    assert_eq!(world.contents(), first);
}

#[test]
fn an_identical_output_stops_the_cascade() {
    let world = World::new();
    let capped = |n| Settings { n: json!(n), cap: 20, ..Settings::default() };
    world.make(&capped(3));
    assert_eq!(world.make(&capped(4)), ["numbers", "squares"]);
    assert_eq!(world.make(&capped(4)), [""; 0]);
}

#[test]
fn a_file_that_is_not_read_stops_the_cascade() {
    let world = World::new();
    world.make(&Settings::default());
    // One more in n and one less outside: number.txt stays, more/unread.txt does not.
    fs::write(world.outside(), "thr").unwrap();
    assert_eq!(world.make(&Settings { n: json!(4), ..Settings::default() }), ["numbers"]);
}

#[test]
fn falsy_values_and_removed_parameters_are_changes() {
    let world = World::new();
    for n in [json!(0), json!(null), json!(false), json!(""), json!(0.0)] {
        let ran = world.make(&Settings { n: n.clone(), ..Settings::default() });
        assert!(ran.contains(&"numbers".to_owned()), "{n}");
    }

    let mut nodes = world.nodes(&Settings { n: json!(null), ..Settings::default() });
    nodes[0].params.as_object_mut().unwrap().remove("n");
    let store = world.store();
    let survey = upcycle::pipeline::Survey::new(&store, crate::harness::STAGES, &nodes);
    let verdict = format!("{:?}", survey.verdict(&nodes[0]).unwrap());
    assert!(verdict.contains("params.n") && verdict.contains("(absent)"), "{verdict}");
}

#[test]
fn an_edited_outside_file_is_seen_even_with_its_old_times() {
    let world = World::new();
    world.make(&Settings::default());
    let before = fs::metadata(world.outside()).unwrap().modified().unwrap();
    fs::write(world.outside(), "FOUR").unwrap();
    let file = fs::File::options().write(true).open(world.outside()).unwrap();
    file.set_modified(before).unwrap();
    drop(file);
    assert_eq!(world.make(&Settings::default()), ["numbers"]);
}

/// A clock that was set back or forward, or a copy that kept old times.
#[test]
fn no_time_of_a_file_decides_anything() {
    let world = World::new();
    world.make(&Settings::default());
    let year = Duration::from_hours(365 * 24);
    let now = SystemTime::UNIX_EPOCH + 56 * year;
    for time in
        [SystemTime::UNIX_EPOCH, now - 20 * year, now + 20 * year, now + 100 * year]
    {
        // Every file and folder of the store gets the time: nothing runs.
        let mut folders = vec![world.artifacts()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_symlink() {
                    continue;
                }
                fs::File::open(&path).unwrap().set_modified(time).unwrap();
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        assert_eq!(world.make(&Settings::default()), [""; 0], "{time:?}");

        // The outside file changes but has the time all the same: everything runs.
        let length =
            if fs::read_to_string(world.outside()).unwrap() == "four" { 7 } else { 4 };
        fs::write(world.outside(), "x".repeat(length)).unwrap();
        if length == 4 {
            fs::write(world.outside(), "four").unwrap();
        }
        let file = fs::File::options().write(true).open(world.outside()).unwrap();
        file.set_modified(time).unwrap();
        drop(file);
        world.make(&Settings::default());
        assert_eq!(world.result("a"), answer(3, length, 100, 1), "{time:?}");
    }
}

#[test]
fn an_outside_file_edited_during_the_run_publishes_nothing() {
    let world = World::new();
    let settings = Settings { behavior: "edits its input", ..Settings::default() };
    let error = world.try_make(&settings, &orders()).unwrap_err();
    assert!(
        format!("{error:?}").contains("changed while the stage read it"),
        "{error:?}"
    );
    assert!(world.store().results().is_empty());
}

#[test]
fn a_dry_run_says_what_a_run_then_does() {
    let world = World::new();
    let dry = Orders { mode: Mode::DryRun, ..orders() };
    let lines = |stage, settings: &Settings| world.one(stage, settings, &dry).unwrap();
    let settings = Settings::default();
    assert_eq!(lines("numbers", &settings), ["numbers: would run (first run)"]);
    assert_eq!(
        lines("squares", &settings),
        ["squares: depends on numbers, which would run"]
    );
    assert!(!world.artifacts().join("numbers").exists());

    world.make(&settings);
    assert!(lines("total", &settings).is_empty());

    let capped = Settings { cap: 40, ..settings.clone() };
    assert_eq!(lines("squares", &capped), ["squares: would run (params.cap 100 → 40)"]);

    world.make(&capped);
    let reuse = lines("squares", &settings);
    assert_eq!(reuse, ["squares: would reuse an earlier result (params.cap 40 → 100)"]);
    // Downstream of a result that exists already, the dry run sees through.
    assert!(lines("total", &settings)[0].contains("would reuse"), "{reuse:?}");
    assert_eq!(world.make(&settings), [""; 0]);
}

#[test]
fn check_fails_exactly_when_something_is_not_fresh() {
    let world = World::new();
    let check = Orders { mode: Mode::Check, ..orders() };
    let settings = Settings::default();
    let stale = world.one("numbers", &settings, &check).unwrap_err();
    assert_eq!(stale.kind().exit_code(), 1);
    world.make(&settings);
    for stage in ["numbers", "squares", "total"] {
        world.one(stage, &settings, &check).unwrap();
    }
}

#[test]
fn a_stage_alone_refuses_to_read_what_is_out_of_date() {
    let world = World::new();
    world.make(&Settings::default());
    let changed = Settings { n: json!(9), ..Settings::default() };
    let error = world.one("total", &changed, &orders()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("needs numbers, which is not up to date; `make total`"),
        "{error}"
    );
}

#[test]
fn only_runs_the_named_run_and_refuses_unknown_ones() {
    let world = World::new();
    world.make(&Settings::default());
    let only = |run: &str| Orders { only: vec![run.to_owned()], force: true, ..orders() };
    fs::write(world.root.join("notes"), "").unwrap();
    world.one("total", &Settings::default(), &only("b")).unwrap();
    assert_eq!(world.notes(), ["total/b"]);

    let error = world.one("total", &Settings::default(), &only("c")).unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
    assert!(error.message().contains("there are: a, b"), "{error}");
    let error = world.one("squares", &Settings::default(), &only("c")).unwrap_err();
    assert!(error.message().contains("has no runs"), "{error}");
}

#[test]
fn a_forced_run_that_fails_keeps_the_old_result_and_other_bytes_are_reported() {
    let world = World::new();
    let draws = Settings { behavior: "draws", ..Settings::default() };
    world.make(&draws);
    let before = world.contents();
    let forced = Orders { force: true, ..orders() };
    world.one("numbers", &draws, &forced).unwrap();
    assert_ne!(world.contents(), before);
    assert_eq!(world.make(&draws), [""; 0], "what is read downstream has the same bytes");
}

#[test]
fn many_random_edits_end_where_a_clean_run_ends() {
    let world = World::new();
    let mut state = 7_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        i64::try_from((state >> 33) % below).unwrap()
    };
    for _ in 0..12 {
        let (n, cap, offset) = (draw(4), 20 + 30 * draw(3), draw(2));
        let outside = 2 + usize::try_from(draw(3)).unwrap();
        fs::write(world.outside(), "x".repeat(outside)).unwrap();
        let settings = Settings { n: json!(n), cap, offset, ..Settings::default() };
        world.make(&settings);
        assert_eq!(world.result("a"), answer(n, outside, cap, offset));
        assert_eq!(world.make(&settings), [""; 0]);
    }
}

#[test]
fn garbage_is_what_nothing_current_was_made_from() {
    let world = World::new();
    world.make(&Settings::default());
    assert!(world.store().garbage().is_empty());

    world.make(&Settings { cap: 40, ..Settings::default() });
    let store = world.store();
    let garbage = store.garbage();
    assert_eq!(garbage.len(), 3, "{garbage:?}");
    for item in &garbage {
        assert!(store.remove(item).unwrap());
    }

    assert!(store.garbage().is_empty());
    assert_eq!(world.make(&Settings { cap: 40, ..Settings::default() }), [""; 0]);
    assert_eq!(world.make(&Settings::default()), ["squares", "total/a", "total/b"]);
}

#[test]
fn an_accepted_result_is_fresh_and_remembers_where_it_came_from() {
    let world = World::new();
    world.make(&Settings::default());
    let store = Store::open(&world.artifacts(), Options::default());
    let changed = Settings { cap: 99, ..Settings::default() };
    let nodes = world.nodes(&changed);
    let survey = upcycle::pipeline::Survey::new(&store, crate::harness::STAGES, &nodes);
    let expected = survey.resolve(&nodes[1]).unwrap().expected.clone();
    let old = store.current(&expected.place).unwrap();

    store.accept(&expected).unwrap();
    assert_eq!(world.make(&changed), [""; 0]);
    let manifest = store.manifest(&expected.place, &expected.key).unwrap().unwrap();
    assert_eq!(manifest.provenance.accepted_from.as_deref(), Some(old.as_str()));
}
