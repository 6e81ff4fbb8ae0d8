//! The abuses of safetensors that are known, for every reader of such files.

use serde_json::{Value, json};

use crate::{refusal, survives};

const READERS: [&str; 5] =
    ["tensors", "foreign", "vectors-tensor", "labels-tensor", "weights"];

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn one(dtype: &str, shape: &Value, offsets: &Value) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}

#[test]
fn every_abuse_of_the_header_is_refused() {
    let fine = one("F32", &json!([2]), &json!([0, 8]));
    let twice = format!(r#"{{"a":{fine},"a":{fine}}}"#);
    let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
    let names: String = (0..300_000).map(|i| format!(r#""{i}":{{}},"#)).collect();
    let abuses: Vec<(&str, Vec<u8>)> = vec![
        ("no header", vec![]),
        ("half a length", vec![1, 0, 0, 0]),
        ("a length of 0", vec![0; 8]),
        ("a length beyond the file", [&100_u64.to_le_bytes()[..], b"{}"].concat()),
        ("the largest length", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("a length of 2^63", [&(1_u64 << 63).to_le_bytes()[..], b"{}"].concat()),
        ("no JSON", raw("{", &[])),
        ("a list", raw("[]", &[])),
        ("no text", [&2_u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()),
        ("a hole", raw(&json!({"a": one("F32", &json!([1]), &json!([4, 8]))}).to_string(), &[0; 8])),
        (
            "an overlap",
            raw(
                &json!({"a": fine, "b": one("F32", &json!([2]), &json!([4, 12]))}).to_string(),
                &[0; 12],
            ),
        ),
        ("data left over", raw(&json!({"a": fine}).to_string(), &[0; 12])),
        ("data missing", raw(&json!({"a": fine}).to_string(), &[0; 4])),
        ("offsets reversed", raw(&json!({"a": one("F32", &json!([2]), &json!([8, 0]))}).to_string(), &[0; 8])),
        ("another size", raw(&json!({"a": one("F32", &json!([3]), &json!([0, 8]))}).to_string(), &[0; 8])),
        (
            "a shape that overflows",
            raw(
                &json!({"a": one("F32", &json!([1_u64 << 33, 1_u64 << 33]), &json!([0, 8]))})
                    .to_string(),
                &[0; 8],
            ),
        ),
        (
            "a shape that overflows to its size",
            raw(
                &json!({"a": one("F32", &json!([1_u64 << 63, 2]), &json!([0, 0]))}).to_string(),
                &[],
            ),
        ),
        ("offsets beyond 64 bits", raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}}"#, &[0; 4])),
        ("a negative axis", raw(&json!({"a": one("F32", &json!([-1]), &json!([0, 4]))}).to_string(), &[0; 4])),
        ("an unknown type", raw(&json!({"a": one("F33", &json!([1]), &json!([0, 4]))}).to_string(), &[0; 4])),
        ("half a byte", raw(&json!({"a": one("F4", &json!([1]), &json!([0, 1]))}).to_string(), &[0; 1])),
        ("the same name twice", raw(&twice, &[0; 8])),
        ("no fields", raw(r#"{"a":{}}"#, &[])),
        ("deep nesting", raw(&deep, &[])),
        ("many names", raw(&format!("{{{names}\"x\":{{}}}}"), &[])),
        ("metadata that is no text", raw(r#"{"__metadata__":{"a":{"b":1}}}"#, &[])),
    ];
    for reader in READERS {
        for (what, bytes) in &abuses {
            assert!(!survives(reader, bytes), "{reader} takes {what}");
        }
    }
}

#[test]
fn values_that_are_no_weights_are_refused() {
    let nan = f32::NAN.to_le_bytes();
    let bytes =
        raw(&json!({"a": one("F32", &json!([1]), &json!([0, 4]))}).to_string(), &nan);
    assert!(refusal("weights", &bytes).contains("NaN"));
    let bytes =
        raw(&json!({"a": one("I8", &json!([1]), &json!([0, 1]))}).to_string(), &[1]);
    assert!(refusal("tensors", &bytes).contains("I8"));
    assert!(refusal("weights", &bytes).contains("I8"));
}

#[test]
fn an_empty_tensor_of_a_huge_shape_takes_no_memory() {
    let shape = json!([0, 1_u64 << 62]);
    let bytes = raw(&json!({"a": one("F32", &shape, &json!([0, 0]))}).to_string(), &[]);
    for reader in READERS {
        survives(reader, &bytes);
    }
}

#[test]
fn every_truncation_is_refused_by_every_reader() {
    let bytes = (crate::targets::Target::named("tensors").seeds)()[0].clone();
    for reader in READERS {
        for length in 0..bytes.len() {
            refusal(reader, &bytes[..length]);
        }
    }
}
