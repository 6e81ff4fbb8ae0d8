//! Random edits of good files, and bytes that never were a file.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::targets::{TARGETS, Target};

/// Longest time that one hostile file may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers at which sizes, offsets and counts go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// What text formats trip over.
const WORDS: [&str; 14] = [
    "-1",
    "0",
    "18446744073709551615",
    "1e999",
    "null",
    "[]",
    "{}",
    "\"",
    "\\u0000",
    "../",
    "\u{feff}",
    "&a",
    "*a",
    "<!--",
];

/// One edit of a file.
#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Set(Index, u8),
    Number(Index, usize, usize, bool),
    Cut(Index),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Insert(Index, Vec<u8>),
    Word(Index, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0_u8..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at(), 0..NUMBERS.len(), 0_usize..4, any::<bool>())
            .prop_map(|(at, number, width, big)| Edit::Number(at, number, width, big)),
        at().prop_map(Edit::Cut),
        (at(), 1_usize..64).prop_map(|(at, count)| Edit::Remove(at, count)),
        (at(), 1_usize..64, 1_usize..40)
            .prop_map(|(at, count, times)| Edit::Repeat(at, count, times)),
        (at(), prop::collection::vec(any::<u8>(), 1..16))
            .prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 0..WORDS.len()).prop_map(|(at, word)| Edit::Word(at, word)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let length = bytes.len();
    match edit {
        Edit::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
        Edit::Set(at, byte) => bytes[at.index(length)] = *byte,
        Edit::Number(at, number, width, big) => {
            let (at, width) = (at.index(length), 1 << width);
            let number = NUMBERS[*number].to_le_bytes();
            let mut number = number[..width].to_vec();
            if *big {
                number.reverse();
            }
            let width = width.min(length - at);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        Edit::Cut(at) => bytes.truncate(at.index(length)),
        Edit::Remove(at, count) => {
            let at = at.index(length);
            bytes.drain(at..length.min(at + count));
        }
        Edit::Repeat(at, count, times) => {
            let at = at.index(length);
            let part = bytes[at..length.min(at + count)].repeat(*times);
            bytes.splice(at..at, part);
        }
        Edit::Insert(at, more) => {
            let at = at.index(length);
            bytes.splice(at..at, more.iter().copied());
        }
        Edit::Word(at, word) => {
            let at = at.index(length);
            bytes.splice(at..at, WORDS[*word].bytes());
        }
    }
}

/// How long a parser is tried, in seconds; without it, a few dozen files.
#[expect(clippy::disallowed_methods, reason = "how long to fuzz is the caller's wish")]
fn wished() -> Option<Duration> {
    let seconds = std::env::var("FUZZ_SECONDS").ok()?.parse().expect("whole seconds");
    Some(Duration::from_secs(seconds))
}

/// Tries edits of every seed of a target, and says how many files it read.
fn attack(name: &str) {
    let target = Target::named(name);
    let (folder, seeds) = (target.folder(), (target.seeds)());
    for seed in &seeds {
        // Some seeds are attacks themselves; the first is a good file.
        let _ = target.run(folder.path(), seed);
    }
    let files = prop_oneof![
        8 => (any::<Index>(), prop::collection::vec(edit(), 1..6)),
        1 => (any::<Index>(), prop::collection::vec(edit(), 40..60)),
    ];
    let (start, wished) = (Instant::now(), wished());
    let (mut round, mut read, mut fine) = (0, 0_u64, 0_u64);
    while round == 0 || wished.is_some_and(|wished| start.elapsed() < wished) {
        let config = Config {
            cases: 48,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(round),
            max_shrink_time: 60_000,
            ..Config::default()
        };
        let counts = std::cell::RefCell::new((&mut read, &mut fine));
        let outcome = TestRunner::new(config).run(&files, |(seed, edits)| {
            let mut bytes = seeds[seed.index(seeds.len())].clone();
            for edit in &edits {
                apply(&mut bytes, edit);
            }
            let began = Instant::now();
            let result = target.run(folder.path(), &bytes);
            prop_assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
            let mut counts = counts.borrow_mut();
            *counts.0 += 1;
            *counts.1 += u64::from(result.is_ok());
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        round += 1;
    }
    let seconds = start.elapsed().as_secs();
    println!("{name}: {read} files in {seconds} s, {fine} of them fine");
}

/// A test a parser, so that they run side by side.
macro_rules! attacks {
    ($($test:ident $name:literal)*) => {
        $(#[test] fn $test() { attack($name); })*
        const NAMES: &[&str] = &[$($name),*];
    };
}

attacks! {
    config "config"
    tensors "tensors"
    foreign "foreign"
    vectors_tensor "vectors-tensor"
    labels_tensor "labels-tensor"
    table "table"
    vectors_column "vectors-column"
    labels_column "labels-column"
    picture "picture"
    drawing "drawing"
    tokenizer "tokenizer"
    merges "merges"
    merges_packed "merges-packed"
    vocabulary "vocabulary"
    pickle "pickle"
    weights "weights"
    hugging_face_config "hugging-face-config"
    open_clip_config "open-clip-config"
    shards "shards"
    preprocess "preprocess"
    manifest "manifest"
    shard "shard"
    captions "captions"
    listing "listing"
    coco "coco"
    pictures "pictures"
    evaluation_shard "evaluation-shard"
    templates "templates"
    data_set "data-set"
}

#[test]
fn every_target_is_attacked() {
    let targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(targets, NAMES);
}

#[test]
fn every_target_reads_a_good_file() {
    // The weights of no whole model: small, so that edits hit the header.
    for target in TARGETS.iter().filter(|target| target.name != "weights") {
        let folder = target.folder();
        let any = (target.seeds)().iter().any(|s| target.run(folder.path(), s).is_ok());
        assert!(any, "{}: no seed is fine", target.name);
    }
}
