//! A small package made by hand: 24 sets that are trained on and one that is not.

use super::*;
use crate::data::packages::pack;

const SETS: usize = 24;
const RARE: [&str; 8] =
    ["anchor", "bridge", "candle", "desk", "engine", "fork", "goat", "hat"];

/// A drawing that no other set and no other hue has.
fn body(set: usize, hue: usize) -> String {
    let (x, y) = (2 + set % 4 * 6, 4 + set / 4 * 4);
    format!(
        "<path d='M0 0h32v2H0zM0 30h32v2H0z'/>\
         <rect x='{x}' y='{y}' width='8' height='6' fill='rgb({hue},0,0)'/>"
    )
}

fn json(prefix: &str, icons: &[(&str, String)], aliases: &str) -> (String, String) {
    let icon =
        |(name, body): &(&str, String)| format!("\"{name}\": {{\"body\": \"{body}\"}}");
    let icons: Vec<String> = icons.iter().map(icon).collect();
    let text = format!(
        r#"{{"prefix": "{prefix}", "width": 32, "height": 32, "icons": {{{}}},
            "aliases": {{{aliases}}}, "info": {{"name": "Set {prefix}",
            "author": {{"name": "maker"}}, "category": "Emoji",
            "license": {{"title": "MIT", "spdx": "MIT"}}}}}}"#,
        icons.join(", ")
    );
    (format!("package/json/{prefix}.json"), text)
}

/// The package; sets come in this order or the opposite one.
fn package(reversed: bool) -> Vec<u8> {
    let mut sets = Vec::new();
    for set in 0..SETS {
        let arrow = if set % 3 == 0 { "left-arrow" } else { "arrow-left" };
        let mut icons = vec![("home-outline", body(set, 10)), (arrow, body(set, 80))];
        let rare = RARE.iter().enumerate().filter(|(k, _)| (*k..k + 5).contains(&set));
        icons.extend(rare.map(|(k, name)| (*name, body(set, 120 + 10 * k))));
        let aliases = r#""house": {"parent": "home-outline"},
                         "arrow-right": {"parent": "arrow-left", "hFlip": true}"#;
        sets.push(json(&format!("set{set:02}"), &icons, aliases));
    }

    let odd = [
        ("home", body(0, 11)),
        ("copy", body(3, 10)),
        ("torn", "<path".to_owned()),
        ("blank", String::new()),
        ("hand-dark-skin-tone", body(1, 200)),
    ];
    sets.push(json("game-icons", &odd, ""));
    if reversed {
        sets.reverse();
    }

    let mut files: Vec<(&str, &[u8])> = vec![("package/package.json", b"{}")];
    files.extend(sets.iter().map(|(path, text)| (path.as_str(), text.as_bytes())));
    files.push(("package/json/gone.json", br#"{"icons": {"home": {"body": ""}}}"#));
    let list = sets.iter().map(|(path, _)| {
        let prefix = path.trim_start_matches("package/json/").trim_end_matches(".json");
        format!("\"{prefix}\": {{\"name\": \"x\"}}")
    });
    let list = format!("{{{}}}", list.collect::<Vec<_>>().join(", "));
    files.push(("package/collections.json", list.as_bytes()));
    pack(&files)
}

fn build(reversed: bool, threads: usize) -> (Collection, Vec<Skipped>) {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::beside(folder.path()).unwrap();
    let mut canvas = Canvas { side: 16, spool: &mut spool };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let found = pool.install(|| {
        let package = package(reversed);
        let sets = read::listed(&package[..]).unwrap();
        let wanted = Wanted { sets, skin_tones: false };
        read::read(&package[..], &wanted, &mut canvas, &mut |_| ()).unwrap()
    });
    assert_eq!(found.sets.len(), SETS + 1, "a set that is not listed is none");
    assemble(found, 0)
}

/// Everything about the samples, pictures included.
fn contents(collection: &Collection) -> Vec<String> {
    let sample = |s: &Sample| {
        let Sample { split, captions, names, concept, style, png } = s;
        let label = &collection.concepts[*concept].label;
        format!(
            "{split} {style} {label} {captions:?} {names:?} {:?}",
            png.read().unwrap()
        )
    };
    collection.samples.iter().map(sample).collect()
}

#[test]
fn every_icon_is_a_sample_or_left_out_for_a_reason() {
    let (collection, undrawable) = build(false, 2);
    let Reading { read, skipped, .. } = &collection.reading;
    assert_eq!(*read, 2 * SETS + 5 * RARE.len() + 5);
    assert_eq!(collection.samples.len() + skipped.values().sum::<usize>(), *read);
    for reason in ["skin tone", "empty drawing", "drawing that cannot be rendered", SAME]
    {
        assert_eq!(skipped.get(reason), Some(&1), "{reason}");
    }
    let torn: Vec<&str> = undrawable.iter().map(|bad| bad.key.as_str()).collect();
    assert_eq!(torn, ["game-icons:torn"]);
}

#[test]
fn classes_come_first_and_have_enough_training_pictures() {
    let (collection, _) = build(false, 2);
    let labels: Vec<&str> =
        collection.concepts.iter().map(|concept| concept.label.as_str()).collect();
    assert_eq!(collection.layout.classes, Some(2));
    assert_eq!(labels[..2], ["arrow left", "home"], "the usual order of words");
    assert_eq!(labels[2..], RARE);
    assert_eq!(collection.subgroups, ["arrow left", "home", "other"]);

    let home = &collection.concepts[1];
    assert_eq!(home.tags, ["house", "copy"], "an alias, and an equal drawing's name");
    assert!(collection.concepts[0].tags.is_empty(), "a flipped alias is another drawing");
    assert!(collection.concepts.iter().all(|concept| !concept.held_out));
}

#[test]
fn no_picture_is_in_two_splits_and_no_unseen_set_is_trained_on() {
    let (collection, _) = build(false, 2);
    let mut seen: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
    for sample in &collection.samples {
        let before = seen.insert(sample.png.read().unwrap(), &sample.split);
        assert_eq!(before, None, "a picture of {}", sample.split);
        assert_eq!(sample.style == "game-icons", sample.split == "game");
        assert!(collection.splits.contains(&sample.split));
    }

    let of = |split: &str| -> Vec<usize> {
        let own = collection.samples.iter().filter(|s| s.split == split);
        own.map(|s| s.concept).collect()
    };
    assert_eq!(of("game"), [1]);
    let given: Vec<usize> = [of("val"), of(NEW)].concat();
    let distinct: BTreeSet<usize> = given.iter().copied().collect();
    assert!(!given.is_empty());
    assert_eq!(distinct.len(), given.len(), "one picture a concept, in one split");
    assert!(distinct.is_subset(&of("train").into_iter().collect()));
}

#[test]
fn neither_threads_nor_the_order_of_the_package_change_anything() {
    let (one, _) = build(false, 1);
    assert_eq!(contents(&one), contents(&build(false, 3).0));
    assert_eq!(contents(&one), contents(&build(true, 2).0));
}

#[test]
fn every_set_and_its_makers_are_named_with_their_license() {
    let (collection, _) = build(false, 1);
    let lines = &collection.layout.attribution;
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("MIT: Set game-icons by maker (game-icons), Set set00"));
    assert!(lines[0].contains("(set23)"));
}

#[test]
fn the_unseen_sets_are_each_in_one_split() {
    let listed: usize = UNSEEN.iter().map(|(_, sets)| sets.len()).sum();
    assert_eq!(unseen().len(), listed);
}
