//! Captions in JSON: COCO's own `captions_*.json`, and Karpathy's `dataset_*.json`.
//!
//! ```text
//! COCO      {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
//! Karpathy  {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}
//! ```
//!
//! All captions of a picture are kept. COCO says no split, so hashes of the file names do;
//! Karpathy's `restval` is trained on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::files::{Input, is_plain_split};
use super::picture;
use super::{Found, Pair, Stream, Visit};
use crate::error::{Context, Error, Result};

/// Annotated pictures of one or several files.
#[derive(Debug)]
pub(super) struct Annotations {
    inputs: Vec<Input>,
    pictures: Vec<Picture>,
}

#[derive(Debug)]
struct Picture {
    name: String,
    /// Its name among the files that are read.
    file: String,
    path: PathBuf,
    split: Option<String>,
    captions: Vec<String>,
    weight: f64,
}

/// The parts of both formats that are read.
#[derive(Debug, Deserialize)]
struct Document {
    images: Vec<Image>,
    annotations: Option<Vec<Annotation>>,
}

#[derive(Debug, Deserialize)]
struct Image {
    id: Option<Id>,
    file_name: Option<String>,
    filename: Option<String>,
    filepath: Option<String>,
    split: Option<String>,
    sentences: Option<Vec<Sentence>>,
}

#[derive(Debug, Deserialize)]
struct Annotation {
    image_id: Id,
    caption: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Sentence {
    raw: String,
}

/// COCO numbers its pictures, others name them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

impl Annotations {
    /// Reads the files; pictures lie in `folder`, or beside each file if it is empty.
    pub(super) fn open(inputs: &[Input], folder: &Path) -> Result<Self> {
        let mut pictures = Vec::new();
        for input in inputs {
            let beside = input.path.parent().unwrap_or_else(|| Path::new(""));
            let folder = if folder.as_os_str().is_empty() { beside } else { folder };
            let place = || format!("reading {}", input.path.display());
            pictures.extend(read(input, folder).context(place)?);
        }
        Ok(Self { inputs: inputs.to_vec(), pictures })
    }

    /// The pictures of one split.
    pub(super) fn only(mut self, split: &str) -> Result<Self> {
        self.pictures.retain(|picture| picture.split.as_deref() == Some(split));
        if self.pictures.is_empty() {
            let places = self.inputs.iter().map(|i| i.path.display().to_string());
            let places = places.collect::<Vec<_>>().join(", ");
            return Err(Error::failed(format!(
                "{places}: no picture is in split {split}"
            )));
        }
        Ok(self)
    }
}

fn read(input: &Input, folder: &Path) -> Result<Vec<Picture>> {
    let bytes = std::fs::read(&input.path).context(|| "opening it".to_owned())?;
    let document: Document = serde_json::from_slice(&bytes).map_err(|e| {
        Error::corrupt("neither COCO's captions nor Karpathy's splits").caused_by(e)
    })?;
    let mut captions: BTreeMap<Id, Vec<String>> = BTreeMap::new();
    for Annotation { image_id, caption } in document.annotations.into_iter().flatten() {
        let caption = caption.ok_or_else(|| {
            Error::failed("its annotations have no caption: instances or keypoints?")
        })?;
        captions.entry(image_id).or_default().push(caption);
    }
    let mut pictures = Vec::with_capacity(document.images.len());
    for image in document.images {
        let Some(file) = image.filename.or(image.file_name) else {
            return Err(Error::corrupt("a picture has neither file_name nor filename"));
        };
        let name = match image.filepath {
            Some(inner) => format!("{inner}/{file}"),
            None => file,
        };
        let path = picture::below(folder, &name)?;
        if let Some(split) = image.split.as_ref().filter(|split| !is_plain_split(split)) {
            return Err(Error::failed(format!(
                "split {split:?} of {name}: expected lower-case letters, digits and dashes"
            )));
        }
        let own = match (image.sentences, image.id) {
            (Some(sentences), _) => sentences.into_iter().map(|s| s.raw).collect(),
            (None, Some(id)) => captions.remove(&id).unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        let trimmed = own.iter().map(|text: &String| text.trim().to_owned());
        let captions = trimmed.filter(|text| !text.is_empty()).collect();
        let (split, weight) = (image.split, input.weight);
        let file = format!("{}/{name}", input.name);
        pictures.push(Picture { name, file, path, split, captions, weight });
    }
    if let Some(id) = captions.keys().next() {
        let count = captions.len();
        return Err(Error::corrupt(format!(
            "{count} captioned pictures are not among its images, the first is {id:?}"
        )));
    }
    Ok(pictures)
}

impl Stream for Annotations {
    fn each(&self, visit: Visit<'_>) -> Result<()> {
        for picture in &self.pictures {
            visit(picture.found())?;
        }
        Ok(())
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let inputs = self.inputs.iter().map(|i| (i.name.clone(), i.path.clone()));
        let there = self.pictures.iter().filter(|picture| picture.path.is_file());
        inputs.chain(there.map(|p| (p.file.clone(), p.path.clone()))).collect()
    }

    fn total(&self) -> Option<usize> {
        Some(self.pictures.len())
    }
}

impl Picture {
    fn found(&self) -> Found {
        if self.captions.is_empty() {
            return Found::bad(self.file.clone(), "there is no caption");
        }
        match picture::read(&self.path) {
            Err(error) => Found::bad(self.file.clone(), picture::chain(&error)),
            Ok(image) => Found::Pair(Pair {
                key: self.name.clone(),
                split: self.split.clone(),
                image,
                captions: self.captions.clone(),
                class: None,
                label: None,
                weight: self.weight,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::collected;
    use crate::config::{DatasetConfig, Overrides, Source, load_default};
    use crate::image::encode_png;

    fn config_of(json: &str) -> (tempfile::TempDir, DatasetConfig) {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("val2014")).unwrap();
        for (name, colour) in [("a.png", 1), ("b.png", 2), ("val2014/c.png", 3)] {
            let picture = crate::image::Picture::filled(9, 7, [colour; 3]);
            std::fs::write(base.path().join(name), encode_png(&picture).unwrap())
                .unwrap();
        }
        let file = base.path().join("captions.json");
        std::fs::write(&file, json).unwrap();
        let mut config = load_default(&Overrides::default()).unwrap().dataset;
        config.source = Source::Coco;
        config.file = file.display().to_string();
        config.image_size = 8;
        (base, config)
    }

    #[test]
    fn annotations_join_their_pictures_and_karpathy_says_the_split() {
        let (_base, coco) = config_of(
            r#"{"info": {}, "images": [{"id": 7, "file_name": "a.png"},
                {"id": 8, "file_name": "b.png"}],
                "annotations": [{"id": 1, "image_id": 8, "caption": " two "},
                {"id": 2, "image_id": 7, "caption": "one"},
                {"id": 3, "image_id": 8, "caption": "zwei"}]}"#,
        );
        let (found, _) = collected(&coco).unwrap();
        let captions: Vec<_> = found.samples.iter().map(|s| s.captions.clone()).collect();
        assert_eq!(captions, [vec!["one"], vec!["two", "zwei"]]);
        let (_base, karpathy) = config_of(
            r#"{"dataset": "coco", "images": [
                {"filename": "a.png", "split": "restval", "sentences": [{"raw": "x"}]},
                {"filename": "b.png", "split": "val", "sentences": [{"raw": "y"}]},
                {"filename": "c.png", "filepath": "val2014", "split": "test", "imgid": 3,
                 "sentences": [{"raw": "z", "tokens": ["z"]}, {"raw": "zz"}]}]}"#,
        );
        let (found, _) = collected(&karpathy).unwrap();
        let splits: Vec<_> = found.samples.iter().map(|s| s.split.as_str()).collect();
        assert_eq!(splits, ["train", "val", "test"]);
        assert_eq!(found.samples[2].captions, ["z", "zz"]);
        let names: Vec<String> = super::super::open(&karpathy)
            .unwrap()
            .unwrap()
            .files()
            .into_iter()
            .map(|f| f.0)
            .collect();
        assert_eq!(
            names,
            [
                "captions.json",
                "captions.json/a.png",
                "captions.json/b.png",
                "captions.json/val2014/c.png"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_a_bad_pair_and_what_is_wrong_an_error() {
        let images = |images: &str, annotations: &str| {
            format!(r#"{{"images": [{images}], "annotations": [{annotations}]}}"#)
        };
        let good = r#"{"id": 1, "file_name": "a.png"}"#;
        let caption = r#"{"image_id": 1, "caption": "one"}"#;
        let missing = images(
            &format!(r#"{good}, {{"id": 2, "file_name": "none.png"}}"#),
            &format!(r#"{caption}, {{"image_id": 2, "caption": "two"}}"#),
        );
        let (_base, mut config) = config_of(&missing);
        let error = collected(&config).unwrap_err().to_string();
        assert!(error.contains("unusable") && error.contains("none.png"), "{error}");
        config.corrupt_share = 0.5;
        let (found, skipped) = collected(&config).unwrap();
        assert_eq!((found.samples.len(), skipped.len()), (1, 1));
        for (json, why) in [
            ("[1]".to_owned(), "neither COCO"),
            (r#"{"images": [{"id": 1}]}"#.to_owned(), "neither file_name"),
            (images(good, r#"{"image_id": 1, "bbox": []}"#), "have no caption"),
            (images(good, r#"{"image_id": 9, "caption": "x"}"#), "Number(9)"),
            (images(r#"{"id": 1, "file_name": "../a.png"}"#, caption), "leads out"),
        ] {
            let (_base, config) = config_of(&json);
            let error = format!("{:?}", collected(&config).unwrap_err());
            assert!(error.contains(why) && error.contains("captions.json"), "{error}");
        }
    }
}
