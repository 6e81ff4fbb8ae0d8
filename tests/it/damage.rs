//! Whatever happens to the files of a result, it is noticed, kept aside and made again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use upcycle::artifact::State;
use upcycle::error::Kind;

use crate::harness::{STAGES, Settings, World, orders};

type Damage = fn(&Path);

fn writable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn flip(path: &Path) {
    writable(path);
    let mut bytes = fs::read(path).unwrap();
    bytes[0] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn flip_keeping_times(path: &Path) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    flip(path);
    fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

fn truncate(path: &Path) {
    writable(path);
    let length = fs::metadata(path).unwrap().len();
    fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
}

fn delete(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn add_neighbor(path: &Path) {
    fs::write(path.with_file_name("stray.txt"), "x").unwrap();
}

fn replace_by_link(path: &Path) {
    let copy = path.parent().unwrap().parent().unwrap().join("copy");
    fs::copy(path, &copy).unwrap();
    fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink(copy, path).unwrap();
}

fn replace_by_folder(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
}

fn delete_manifest(path: &Path) {
    fs::remove_file(path.with_file_name("manifest.json")).unwrap();
}

fn flip_manifest(path: &Path) {
    flip(&path.with_file_name("manifest.json"));
}

#[test]
fn every_kind_of_damage_is_repaired_without_touching_others() {
    let damages: &[(&str, Damage)] = &[
        ("edited", flip),
        ("edited with restored time", flip_keeping_times),
        ("truncated", truncate),
        ("deleted", delete),
        ("joined by a stray file", add_neighbor),
        ("replaced by a link", replace_by_link),
        ("replaced by a folder", replace_by_folder),
        ("without manifest", delete_manifest),
        ("with a damaged manifest", flip_manifest),
    ];
    let world = World::new();
    world.make(&Settings::default());
    let good = world.contents();

    for (count, (what, damage)) in damages.iter().enumerate() {
        damage(&world.dir("squares", None).join("square.txt"));
        assert_eq!(world.make(&Settings::default()), ["squares"], "{what}");
        assert_eq!(world.contents(), good, "{what}");
        let kept = fs::read_dir(world.artifacts().join(".corrupt")).unwrap().count();
        assert_eq!(kept, count + 1, "{what}");
    }

    fs::remove_dir_all(world.artifacts().join(".state")).unwrap();
    assert_eq!(world.make(&Settings::default()), [""; 0], "a cold cache runs nothing");
}

#[test]
fn a_mode_proves_nothing() {
    let world = World::new();
    world.make(&Settings::default());
    writable(&world.dir("squares", None).join("square.txt"));
    assert_eq!(world.make(&Settings::default()), [""; 0]);
}

#[test]
fn a_removed_link_is_set_again_without_a_run() {
    let world = World::new();
    world.make(&Settings::default());
    fs::remove_file(world.artifacts().join("squares/current")).unwrap();
    assert_eq!(world.make(&Settings::default()), [""; 0]);
    world.dir("squares", None);
}

#[test]
fn damaged_input_is_refused_before_the_run() {
    let world = World::new();
    world.make(&Settings::default());
    flip(&world.dir("squares", None).join("square.txt"));
    let changed = Settings { offset: 2, ..Settings::default() };
    let error = world.one("total", &changed, &orders()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let text = format!("{error:?}");
    assert!(text.contains("square.txt") && text.contains("make squares"), "{text}");
}

#[test]
fn a_manifest_truncated_at_any_length_is_damage() {
    let world = World::new();
    world.make(&Settings::default());
    let path = world.dir("squares", None).join("manifest.json");
    writable(&path);
    let whole = fs::read(&path).unwrap();
    let nodes = world.nodes(&Settings::default());

    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let store = world.store();
        let survey = upcycle::pipeline::Survey::new(&store, STAGES, &nodes);
        let expected = survey.resolve(&nodes[1]).unwrap().expected.clone();
        let state = store.check(&expected).unwrap();
        assert!(matches!(state, State::Damaged(_)), "{length}: {state:?}");
    }
}

#[test]
fn a_corrupt_stat_cache_is_a_cold_one() {
    let world = World::new();
    world.make(&Settings::default());
    for junk in [
        &b""[..],
        b"\xff\xfe",
        b"upcycle stat cache 1\n1 2 3\n",
        b"upcycle stat cache 9\n",
    ] {
        fs::write(world.artifacts().join(".state/statcache"), junk).unwrap();
        assert_eq!(world.make(&Settings::default()), [""; 0]);
    }
}

#[test]
fn failing_stages_publish_nothing_and_say_why_in_one_line() {
    for (behavior, expected) in [
        ("fails", "told to fail"),
        ("panics", "this is a bug in upcycle"),
        ("empty", "did not write any file"),
    ] {
        let world = World::new();
        let settings = Settings { behavior, ..Settings::default() };
        let orders = orders();
        orders.panics.install();
        let result = world.try_make(&settings, &orders);
        let _ = std::panic::take_hook();

        let text = format!("{:?}", result.unwrap_err());
        assert!(text.contains("numbers: failed") && text.contains(expected), "{text}");
        assert!(world.store().results().is_empty());
        let leftovers = world.leftovers();
        assert!(
            leftovers.iter().all(|name| name.starts_with("scratch-")),
            "{leftovers:?}"
        );
    }
}
