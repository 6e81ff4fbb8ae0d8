//! Every metric against `clip_benchmark`'s own numbers (fixture `metrics`).

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;

use super::classification::Classified;
use super::classifier;
use super::precision::mean_average_precision;
use super::retrieval::Retrieval;
use crate::eval::similarity::{map_rows, unit_rows};
use crate::linalg::Matrix;

struct Fixture {
    bytes: Vec<u8>,
    expected: Value,
}

impl Fixture {
    fn open() -> Self {
        let folder =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics");
        let expected = fs::read_to_string(folder.join("expected.json")).unwrap();
        Self {
            bytes: fs::read(folder.join("inputs.safetensors")).unwrap(),
            expected: serde_json::from_str(&expected).unwrap(),
        }
    }

    /// A tensor as a matrix whose columns are the last axis.
    fn matrix(&self, name: &str) -> Matrix {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        let data: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let cols = *view.shape().last().unwrap();
        Matrix::new(data.len() / cols, cols, data).unwrap()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(8)
            .map(|b| usize::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap())
            .collect()
    }
}

fn close(found: f64, expected: &Value, tolerance: f64, what: &str) {
    let expected = expected.as_f64().unwrap_or_else(|| panic!("{what} is not expected"));
    assert!((found - expected).abs() < tolerance, "{what}: {found}, expected {expected}");
}

#[test]
fn retrieval_recalls_are_clip_benchmarks() {
    let fixture = Fixture::open();
    for (set, expected) in fixture.expected["retrieval"].as_object().unwrap() {
        let images = unit_rows(&fixture.matrix(&format!("{set}.image")), set).unwrap();
        let texts = unit_rows(&fixture.matrix(&format!("{set}.text")), set).unwrap();
        let owner = fixture.integers(&format!("{set}.text_image_index"));
        let found = Retrieval::new(&images, &texts, &owner).unwrap();
        for k in [1, 5, 10] {
            let counted = expected["ks"].as_array().unwrap().contains(&k.into());
            let k = usize::try_from(k).unwrap();
            assert_eq!(found.image_retrieval_recall(k).is_ok(), counted, "{set} {k}");
            if counted {
                let name = format!("image_retrieval_recall@{k}");
                let value = found.image_retrieval_recall(k).unwrap();
                close(value, &expected[&name], 1e-6, &name);
                let name = format!("text_retrieval_recall@{k}");
                let value = found.text_retrieval_recall(k).unwrap();
                close(value, &expected[&name], 1e-6, &name);
            }
        }
        let scores = fixture.matrix(&format!("{set}.scores"));
        let rows = map_rows(&texts, &images, |_, row| row.to_vec()).unwrap();
        for (row, expected) in rows.iter().flatten().zip(scores.data()) {
            assert!((row - expected).abs() < 1e-6);
        }
    }
}

#[test]
fn ties_go_to_the_lower_index() {
    let fixture = Fixture::open();
    let expected = &fixture.expected["ties_lower_index_first"];
    let rows = expected["scores"].as_array().unwrap();
    let scores: Vec<f32> = rows
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|v| crate::num::round_f32(v.as_f64().unwrap()))
        .collect();
    let owner: Vec<usize> = expected["text_image_index"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| usize::try_from(v.as_u64().unwrap()).unwrap())
        .collect();
    // Texts that are rows of scores against axis-aligned images score exactly that.
    let texts = Matrix::new(5, 3, scores).unwrap();
    let images =
        Matrix::new(3, 3, vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]).unwrap();
    let found = Retrieval::new(&images, &texts, &owner).unwrap();
    for k in [1, 2] {
        let (image, text) =
            (found.image_retrieval_recall(k), found.text_retrieval_recall(k));
        close(
            image.unwrap(),
            &expected[format!("image_retrieval_recall@{k}")],
            1e-9,
            "i",
        );
        close(text.unwrap(), &expected[format!("text_retrieval_recall@{k}")], 1e-9, "t");
    }
}

/// Builds the classifier of a set and compares it and its logits with the fixture's.
fn classifier_of(fixture: &Fixture, set: &str) -> (Matrix, Matrix) {
    let expected = &fixture.expected["classification"][set];
    let count = |key: &str| usize::try_from(expected[key].as_u64().unwrap()).unwrap();
    let (classes, templates) = (count("classes"), count("templates"));
    let prompts = fixture.matrix(&format!("{set}.class_text"));
    let members: Vec<Vec<usize>> =
        (0..classes).map(|c| (c * templates..(c + 1) * templates).collect()).collect();
    let built = classifier::build(&prompts, &members).unwrap();
    let golden = fixture.matrix(&format!("{set}.classifier")).transposed();
    for (found, expected) in built.data().iter().zip(golden.data()) {
        assert!((found - expected).abs() < 1e-6, "{set}: {found}, expected {expected}");
    }
    let images = unit_rows(&fixture.matrix(&format!("{set}.image")), set).unwrap();
    (images, built)
}

#[test]
fn classification_metrics_are_clip_benchmarks() {
    let fixture = Fixture::open();
    for set in ["twelve", "four"] {
        let expected = &fixture.expected["classification"][set];
        let (images, classifier) = classifier_of(&fixture, set);
        let target = fixture.integers(&format!("{set}.target"));
        let found = Classified::new(&images, &classifier, &target).unwrap().accuracy();
        close(found.acc1, &expected["acc1"], 1e-6, set);
        close(found.mean_per_class_recall, &expected["mean_per_class_recall"], 1e-9, set);
        match found.acc5 {
            Some(acc5) => close(acc5, &expected["acc5"], 1e-6, set),
            None => assert!(expected["acc5"].is_null(), "{set}"),
        }
    }
}

#[test]
fn multi_label_precision_is_clip_benchmarks() {
    let fixture = Fixture::open();
    let (images, classifier) = classifier_of(&fixture, "multilabel");
    let rows = map_rows(&images, &classifier, |_, row| row.to_vec()).unwrap();
    let scores = Matrix::new(images.rows(), classifier.rows(), rows.concat()).unwrap();
    let logits = fixture.matrix("multilabel.logits");
    for (score, logit) in scores.data().iter().zip(logits.data()) {
        assert!((100.0 * score - logit).abs() < 1e-4);
    }
    let targets: Vec<bool> =
        fixture.integers("multilabel.target").iter().map(|&t| t == 1).collect();
    let found = mean_average_precision(&scores, &targets).unwrap();
    let expected = &fixture.expected["classification"]["multilabel"];
    close(found, &expected["mean_average_precision"], 1e-5, "multilabel");
}
