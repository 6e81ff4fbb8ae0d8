//! Configurations: every key wrong once in every way, and YAML that grows when it is read.

use serde_json::{Value, json};
use upcycle::config::{Overrides, load_default};

use crate::refusal;

/// Every key of the shipped file with its value, sections included, profiles aside.
fn keys() -> Vec<(String, Value)> {
    fn collect(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let path =
                if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            collect(value, &path, found);
            found.push((path, value.clone()));
        }
    }
    let config = load_default(&Overrides::default()).unwrap();
    let mut found = Vec::new();
    collect(&serde_json::to_value(config).unwrap(), "", &mut found);
    found
}

/// A file with one key.
fn file(path: &str, value: &Value) -> Vec<u8> {
    let nested = path.rsplit('.').fold(value.clone(), |inner, key| json!({ key: inner }));
    nested.to_string().into_bytes()
}

/// The same as an override, which keeps the other entries of a map with names of one's own.
fn set(path: &str, value: &Value) -> Result<(), String> {
    let set = vec![format!("{path}={value}")];
    let loaded = load_default(&Overrides { profile: None, set });
    loaded.map(drop).map_err(|error| format!("{error:?}"))
}

#[test]
fn a_value_of_a_wrong_type_is_refused_by_the_name_of_its_key() {
    let keys = keys();
    assert!(keys.len() > 120, "{} keys", keys.len());
    for (path, value) in &keys {
        for wrong in
            [json!(null), json!("many"), json!(-1.5), json!([[]]), json!({"?": 1})]
        {
            let same = value.is_string() && wrong.is_string();
            let Err(error) = set(path, &wrong) else {
                // Free text, and what may be left out, take what they are given.
                let free = ["report.title", "dataset.folder", "dataset.like"];
                // The plan knows the methods and their ranges: tests/it/cli.rs asks it.
                let later = path.starts_with("inits.");
                let free = free.contains(&path.as_str()) || path == "pretrain.checkpoint";
                assert!((same && free) || later, "{path}={wrong} is taken");
                continue;
            };
            let said = error.contains(path.as_str())
                || error.contains(&format!("unknown key {path}."));
            assert!(said, "{path}={wrong}: {error}");
        }
    }
}

#[test]
fn a_misspelt_key_is_refused_by_its_name() {
    for (path, value) in &keys() {
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        let own = ["subspaces", "inits", "runs"].contains(&section);
        let misspelt = format!("{name}x");
        let path = if section.is_empty() {
            misspelt.clone()
        } else {
            format!("{section}.{misspelt}")
        };
        let error = set(&path, value);
        if own {
            // A new name is a new entry.
            assert!(error.is_ok(), "{path}: {error:?}");
        } else {
            let error = error.expect_err(&path);
            assert!(error.contains(&misspelt), "{path}: {error}");
        }
    }
}

#[test]
fn a_wrong_file_is_named_with_its_key() {
    let error = refusal("config", &file("train.optim.steps", &json!("many")));
    assert!(error.contains("pipeline.yaml: train.optim.steps: invalid type"), "{error}");
    let error = refusal("config", &file("moe.top_k", &json!(1)));
    assert!(error.contains("pipeline.yaml: moe.top_k: found 1"), "{error}");
    let error = refusal("config", b"train:\n  optim:\n\tsteps: 1\n");
    assert!(error.contains("not valid YAML") && error.contains("line 3"), "{error}");
}

#[test]
fn numbers_beyond_reason_are_refused_before_memory_is_taken() {
    for (path, value) in [
        ("model.vision.layers", json!(10_000_000_000_u64)),
        ("model.text.hidden", json!(u64::MAX)),
        ("model.embed_dim", json!(1_u64 << 40)),
        ("dataset.image_size", json!(1_u64 << 32)),
        ("seeds", json!([-1])),
        ("moe.experts", json!(1_u64 << 60)),
    ] {
        let error = refusal("config", &file(path, &value));
        assert!(error.contains(path), "{error}");
    }
    for text in ["train: {optim: {learning_rate: .nan}}", "train: {balance: .inf}"] {
        let error = refusal("config", text.as_bytes());
        assert!(
            error.contains("non-finite") && error.contains("line 1 column"),
            "{error}"
        );
    }
}

#[test]
fn bombs_of_yaml_end_in_a_sentence() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        laughs.extend([format!("a{level}: &a{level} [{before}]\n")]);
    }
    let merges: String = (1..40)
        .map(|i| format!("b{i}: &b{i}\n  <<: [*b{0}, *b{0}]\n  k{i}: 1\n", i - 1))
        .collect();
    let scalar = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(2000));
    for bomb in [
        laughs,
        format!("b0: &b0 {{k: 1}}\n{merges}"),
        scalar,
        "[".repeat(200_000),
        "{a: ".repeat(200_000),
        "- ".repeat(200_000),
        "a: &a [*a]".to_owned(),
        "? ".repeat(100_000),
        "!!x ".repeat(100_000),
        format!("a: {}", "9".repeat(1 << 20)),
        "\u{0}".repeat(1000),
        "a: b\n---\nc: d\n".to_owned(),
        "a: 1\na: 2\n".to_owned(),
    ] {
        let error = refusal("config", bomb.as_bytes());
        assert!(error.contains("pipeline.yaml"), "{error}");
    }
    for bytes in [&b"\xff\xfe\x00"[..], b"\x80"] {
        assert!(refusal("config", bytes).contains("pipeline.yaml"));
    }
}
