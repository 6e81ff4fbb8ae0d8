//! `upcycle-inspect metrics`: the metrics of given embeddings, to compare frameworks with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Answer;
use crate::error::{Context as _, Error, Result};
use crate::eval::metrics::classification::Classified;
use crate::eval::metrics::retrieval::Retrieval;
use crate::io::foreign::{self, Array, Values};
use crate::linalg::Matrix;

/// The arguments of `metrics`.
#[derive(Debug, clap::Args)]
pub(super) struct Metrics {
    /// Safetensors with `images` `[n,P]`, and with `classifier` `[C,P]` and `labels` `[n]`, or
    /// with `texts` `[m,P]` and `owner` `[m]`, the image of each text.
    #[arg(long, value_name = "FILE")]
    embeddings: PathBuf,
    /// The k of the recalls.
    #[arg(long, value_name = "K,K", value_delimiter = ',', default_values_t = [1, 5, 10])]
    recall_at: Vec<u16>,
}

impl Metrics {
    pub(super) fn answer(&self) -> Result<Answer> {
        let place = || format!("embeddings {}", self.embeddings.display());
        let arrays = foreign::read(&self.embeddings)?;
        let found = self.measured(&arrays).context(place)?;
        let lines = found.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let json = found.into_iter().map(|(name, value)| (name, json!(value)));
        Ok(Answer::new(lines, Value::Object(json.collect())))
    }

    fn measured(&self, arrays: &BTreeMap<String, Array>) -> Result<Vec<(String, f64)>> {
        let images = matrix(arrays, "images")?;
        let mut out = Vec::new();
        if arrays.contains_key("classifier") {
            let labels = indices(arrays, "labels")?;
            let classifier = matrix(arrays, "classifier")?;
            let accuracy = Classified::new(&images, &classifier, &labels)?.accuracy();
            out.push(("acc1".to_owned(), accuracy.acc1));
            out.extend(accuracy.acc5.map(|value| ("acc5".to_owned(), value)));
            let recall = accuracy.mean_per_class_recall;
            out.push(("mean_per_class_recall".to_owned(), recall));
        }

        // Recall wants an owner for each text, which a classifier does not have.
        if arrays.contains_key("texts") {
            let texts = matrix(arrays, "texts")?;
            let found = Retrieval::new(&images, &texts, &indices(arrays, "owner")?)?;
            for &k in &self.recall_at {
                let (k, name) = (usize::from(k), format!("retrieval_recall@{k}"));
                out.push((format!("image_{name}"), found.image_retrieval_recall(k)?));
                out.push((format!("text_{name}"), found.text_retrieval_recall(k)?));
            }
        }

        if out.is_empty() {
            return Err(Error::usage(
                "found neither classifier nor texts, expected one of these tensors beside \
                 images",
            ));
        }
        Ok(out)
    }
}

fn array<'a>(arrays: &'a BTreeMap<String, Array>, name: &str) -> Result<&'a Array> {
    arrays.get(name).ok_or_else(|| {
        let there: Vec<&str> = arrays.keys().map(String::as_str).collect();
        let there = there.join(", ");
        Error::usage(format!("found no tensor {name} among {there}"))
    })
}

fn matrix(arrays: &BTreeMap<String, Array>, name: &str) -> Result<Matrix> {
    match array(arrays, name)? {
        Array { shape, values: Values::Floats(values) } if shape.len() == 2 => {
            Matrix::new(shape[0], shape[1], values.clone())
        }
        Array { shape, .. } => Err(Error::usage(format!(
            "{name}: found shape {shape:?}, expected two axes of floats"
        ))),
    }
}

fn indices(arrays: &BTreeMap<String, Array>, name: &str) -> Result<Vec<usize>> {
    let Array { shape, values } = array(arrays, name)?;
    let (Values::Integers(values), 1) = (values, shape.len()) else {
        return Err(Error::usage(format!(
            "{name}: found shape {shape:?}, expected one axis of integers"
        )));
    };
    let index = |&value: &i64| {
        usize::try_from(value).map_err(|e| {
            Error::usage(format!("{name}: found {value}, expected 0 or more"))
                .caused_by(e)
        })
    };
    values.iter().map(index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrays() -> BTreeMap<String, Array> {
        let floats = |shape: &[usize], values: &[f32]| Array {
            shape: shape.to_vec(),
            values: Values::Floats(values.to_vec()),
        };
        let integers = |values: &[i64]| Array {
            shape: vec![values.len()],
            values: Values::Integers(values.to_vec()),
        };
        // Pictures at 0°, 90° and 45°; the third is nearer to its own class by a hair.
        BTreeMap::from([
            ("images".to_owned(), floats(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 0.7, 0.71])),
            ("classifier".to_owned(), floats(&[2, 2], &[1.0, 0.0, 0.0, 1.0])),
            ("labels".to_owned(), integers(&[0, 0, 1])),
            ("texts".to_owned(), floats(&[3, 2], &[1.0, 0.1, 0.1, 1.0, 0.0, 1.0])),
            ("owner".to_owned(), integers(&[0, 1, 2])),
        ])
    }

    fn ask(arrays: &BTreeMap<String, Array>) -> Result<Vec<(String, f64)>> {
        Metrics { embeddings: PathBuf::new(), recall_at: vec![1] }.measured(arrays)
    }

    #[test]
    fn metrics_are_those_worked_out_by_hand() {
        let found = ask(&arrays()).unwrap();
        let expected = [
            ("acc1", 2.0 / 3.0),
            ("mean_per_class_recall", 0.75),
            ("image_retrieval_recall@1", 2.0 / 3.0),
            // Of two equal texts the first comes first, and it is the picture's own.
            ("text_retrieval_recall@1", 2.0 / 3.0),
        ];
        let named = |(name, value): &(&str, f64)| ((*name).to_owned(), *value);
        assert_eq!(found, expected.iter().map(named).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_missing_or_misshapen_is_named() {
        let refusal = |spoil: fn(&mut BTreeMap<String, Array>)| {
            let mut given = arrays();
            spoil(&mut given);
            ask(&given).unwrap_err().to_string()
        };
        let missing = refusal(|given| drop(given.remove("labels")));
        assert!(missing.contains("no tensor labels among classifier"), "{missing}");
        let negative = refusal(|given| {
            let values = Values::Integers(vec![0, -1, 1]);
            given.insert("labels".to_owned(), Array { shape: vec![3], values });
        });
        assert!(negative.contains("labels: found -1"), "{negative}");
        let nothing = refusal(|given| given.retain(|name, _| name == "images"));
        assert!(nothing.contains("neither classifier nor texts"), "{nothing}");
    }
}
