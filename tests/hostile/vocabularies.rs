//! Files of tokenizers, cut anywhere or with numbers that lead nowhere.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::targets::Target;
use crate::{refusal, survives};

fn seeds(target: &str) -> Vec<Vec<u8>> {
    (Target::named(target).seeds)()
}

#[test]
fn json_and_gzip_cut_anywhere_are_refused() {
    for target in ["tokenizer", "vocabulary", "merges-packed"] {
        let (target, seeds) = (Target::named(target), seeds(target));
        let folder = target.folder();
        for seed in seeds {
            let whole = seed.trim_ascii_end().len();
            for length in (0..whole - 8).step_by(1 + whole / 300) {
                assert!(target.run(folder.path(), &seed[..length]).is_err(), "{length}");
            }
        }
    }
    // Lines cut off the end of a list of merges leave a smaller vocabulary.
    for seed in seeds("merges") {
        for length in (0..seed.len()).step_by(1 + seed.len() / 300) {
            survives("merges", &seed[..length]);
        }
    }
}

#[test]
fn numbers_that_are_no_ids_are_refused() {
    let own: Value = serde_json::from_slice(&seeds("tokenizer")[0]).unwrap();
    for id in
        [json!(-1), json!(1_000_000), json!(4_294_967_295_u64), json!(0.5), json!("7")]
    {
        for path in ["/model/vocab/r", "/added_tokens/0/id"] {
            let mut json = own.clone();
            *json.pointer_mut(path).unwrap() = id.clone();
            // An added token gets the next id, whatever its entry says.
            let read = survives("tokenizer", json.to_string().as_bytes());
            assert!(!read || path.contains("added"), "{path}={id}");
        }
    }
    let mut merges = own.clone();
    merges["model"]["merges"] = json!([["q", "zz"]]);
    refusal("tokenizer", merges.to_string().as_bytes());
    for (key, value) in [
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"Regex": "(a+)+$("}, "content": ""}),
        ),
        ("normalizer", json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)})),
        ("pre_tokenizer", json!({"type": "Nowhere"})),
        ("model", json!({"type": "Unigram", "vocab": []})),
        (
            "truncation",
            json!({"max_length": 0, "strategy": "LongestFirst", "stride": 9, "direction": "Right"}),
        ),
    ] {
        let mut json = own.clone();
        json[key] = value;
        survives("tokenizer", json.to_string().as_bytes());
    }
}

#[test]
fn bombs_of_json_and_gzip_are_refused() {
    for bomb in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 20), "9".repeat(1 << 20)] {
        for target in
            ["tokenizer", "vocabulary", "preprocess", "manifest", "data-set", "shards"]
        {
            refusal(target, bomb.as_bytes());
        }
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let line = b"#version\n".repeat(1 << 17);
    for _ in 0..1024 {
        gzip.write_all(&line).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 4 << 20);
    let error = refusal("merges-packed", &bomb);
    assert!(error.contains("is larger than"), "{error}");
}
