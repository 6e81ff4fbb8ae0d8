//! Captions in JSON: COCO's own `captions_*.json`, and Karpathy's `dataset_*.json`.
//!
//! ```text
//! COCO      {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
//! Karpathy  {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}
//! ```
//!
//! All captions of a picture are kept. COCO does not say the split, so hashes of the file
//! names do; Karpathy's `restval` is trained on. An entry that cannot be used (an annotation
//! without a caption, or one whose picture is not listed) is a bad pair of its own and leaves
//! the others alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::files::{Input, is_plain_split};
use super::picture;
use super::{Fault, Found, Pair, Skipped, Stream, Visit};
use crate::error::{Context, Error, Result};

/// Annotated pictures of one or several files.
#[derive(Debug)]
pub(super) struct Annotations {
    inputs: Vec<Input>,
    pictures: Vec<Picture>,
    bad: Vec<Skipped>,
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
    images: Vec<Entry<Image>>,
    annotations: Option<Vec<Entry<Annotation>>>,
}

/// An entry of a list; one of another form must not take the others with it.
#[derive(Debug)]
struct Entry<T>(Option<T>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Entry<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        Ok(Self(T::deserialize(value).ok()))
    }
}

#[derive(Debug, Deserialize)]
struct Image {
    id: Option<Id>,
    file_name: Option<String>,
    filename: Option<String>,
    filepath: Option<String>,
    split: Option<String>,
    sentences: Option<Vec<Entry<Sentence>>>,
}

#[derive(Debug, Deserialize)]
struct Annotation {
    image_id: Id,
    caption: Option<serde_json::Value>,
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

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Annotations {
    /// Reads the files; pictures lie in `folder`, or beside each file if it is empty.
    pub(super) fn open(inputs: &[Input], folder: &Path) -> Result<Self> {
        let mut all =
            Self { inputs: inputs.to_vec(), pictures: Vec::new(), bad: Vec::new() };
        for input in inputs {
            let beside = input.path.parent().unwrap_or_else(|| Path::new(""));
            let folder = if folder.as_os_str().is_empty() { beside } else { folder };
            let place = || format!("reading {}", input.path.display());
            all.read(input, folder).context(place)?;
        }
        Ok(all)
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

/// One file, and where its pictures lie.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    input: &'a Input,
    folder: &'a Path,
}

/// The name of an entry of one of a file's lists.
fn entry(input: &Input, list: &str, index: usize) -> String {
    format!("{} {list} {index}", input.name)
}

/// What the annotations of a file say about one picture.
#[derive(Debug, Default)]
struct Said {
    captions: Vec<String>,
    /// The annotations that say nothing, by their places in the list.
    silent: Vec<usize>,
}

impl Annotations {
    /// Adds the pictures of one file.
    fn read(&mut self, input: &Input, folder: &Path) -> Result<()> {
        let bytes = std::fs::read(&input.path).context(|| "opening it".to_owned())?;
        let document: Document = serde_json::from_slice(&bytes).map_err(|e| {
            Error::corrupt("neither COCO's captions nor Karpathy's splits").caused_by(e)
        })?;
        let mut said = self.join(input, document.annotations.unwrap_or_default())?;

        let source = Source { input, folder };
        for (index, image) in document.images.into_iter().enumerate() {
            let Entry(Some(image)) = image else {
                self.reject(
                    Fault::Malformed,
                    entry(input, "image", index),
                    "it is not an image",
                );
                continue;
            };
            self.picture(&source, image, index, &mut said)?;
        }

        // What is left speaks of pictures that are not listed.
        for (id, said) in said {
            let count = said.captions.len() + said.silent.len();
            let key = format!("{} image {id}", input.name);
            let reason =
                format!("its {count} annotations name a picture that is not listed");
            self.bad.push(Skipped { key, fault: Fault::NoPicture, reason });
        }
        Ok(())
    }

    /// Joins annotations by their pictures.
    fn join(
        &mut self,
        input: &Input,
        annotations: Vec<Entry<Annotation>>,
    ) -> Result<BTreeMap<Id, Said>> {
        let mut said: BTreeMap<Id, Said> = BTreeMap::new();
        let total = annotations.len();
        for (index, annotation) in annotations.into_iter().enumerate() {
            let Entry(Some(Annotation { image_id, caption })) = annotation else {
                let why = "it has no image_id that is a number or a text";
                self.reject(Fault::Malformed, entry(input, "annotation", index), why);
                continue;
            };

            let said = said.entry(image_id).or_default();
            match caption.as_ref().and_then(|caption| caption.as_str()) {
                Some(caption) if !caption.trim().is_empty() => {
                    said.captions.push(caption.trim().to_owned());
                }
                _ => said.silent.push(index),
            }
        }

        // Such a file is sound, but all of its pictures would count as bad pairs.
        if total > 0 && said.values().all(|said| said.captions.is_empty()) {
            return Err(Error::failed(
                "none of its annotations has a caption: are these instances or keypoints?",
            ));
        }
        Ok(said)
    }

    /// Adds one picture with what was said about it.
    fn picture(
        &mut self,
        &Source { input, folder }: &Source<'_>,
        image: Image,
        index: usize,
        said: &mut BTreeMap<Id, Said>,
    ) -> Result<()> {
        let said = image.id.as_ref().and_then(|id| said.remove(id)).unwrap_or_default();
        let Some(file) = image.filename.or(image.file_name) else {
            let why = "it has neither file_name nor filename";
            self.reject(Fault::Malformed, entry(input, "image", index), why);
            return Ok(());
        };

        let name = match image.filepath {
            Some(inner) => format!("{inner}/{file}"),
            None => file,
        };

        let picture::Located { name, path } = picture::below(folder, &name)?;

        if let Some(split) = image.split.as_ref().filter(|split| !is_plain_split(split)) {
            return Err(Error::failed(format!(
                "split {split:?} of {name}: expected lower-case letters, digits and dashes"
            )));
        }

        // Without any caption the picture itself is the one bad pair.
        if !said.captions.is_empty() {
            for index in said.silent {
                let why = format!("it has no caption for {name}");
                self.reject(Fault::NoCaption, entry(input, "annotation", index), &why);
            }
        }

        // Karpathy's format has its sentences in the picture's own entry.
        let mut captions = said.captions;
        if let Some(sentences) = image.sentences {
            if sentences.iter().any(|Entry(sentence)| sentence.is_none()) {
                let why = format!("a sentence of {name} has no raw text");
                self.reject(Fault::NoCaption, entry(input, "image", index), &why);
            }
            let raw = sentences.into_iter().filter_map(|Entry(sentence)| sentence);
            let raw = raw.map(|sentence| sentence.raw.trim().to_owned());
            captions = raw.filter(|text| !text.is_empty()).collect();
        }

        let (split, weight) = (image.split, input.weight);
        let file = format!("{}/{name}", input.name);
        self.pictures.push(Picture { name, file, path, split, captions, weight });
        Ok(())
    }

    fn reject(&mut self, fault: Fault, key: String, reason: &str) {
        self.bad.push(Skipped { key, fault, reason: reason.to_owned() });
    }
}

impl Stream for Annotations {
    fn each(&self, visit: Visit<'_>) -> Result<()> {
        for bad in &self.bad {
            visit(Found::Bad(bad.clone()))?;
        }
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
        Some(self.pictures.len() + self.bad.len())
    }
}

impl Picture {
    fn found(&self) -> Found {
        if self.captions.is_empty() {
            let key = self.file.clone();
            return Found::bad(Fault::NoCaption, key, "there is no caption");
        }
        match picture::read(&self.path) {
            Err(error) => {
                let key = self.file.clone();
                Found::bad(Fault::NoPicture, key, error.chain())
            }
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
    use super::super::Fault;
    use super::super::tests::collected;
    use crate::config::{DatasetConfig, Overrides, Source, load_default};
    use crate::image::encode_png;

    fn config_of(json: &str) -> (tempfile::TempDir, DatasetConfig) {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("val2014")).unwrap();
        for (name, color) in [("a.png", 1), ("b.png", 2), ("val2014/c.png", 3)] {
            let picture = crate::image::Picture::filled(9, 7, [color; 3]);
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
    fn one_bad_entry_counts_as_one_and_leaves_the_others_alone() {
        let image = |id: u32| {
            format!(
                r#"{{"id": {id}, "file_name": "{}.png"}}"#,
                ["a", "b"][id as usize % 2]
            )
        };
        let images = format!("{}, {}", image(0), image(1));
        let said =
            r#"{"image_id": 0, "caption": "one"}, {"image_id": 1, "caption": "two"}"#;
        for (bad, fault, named) in [
            (r#"{"image_id": 1, "caption": null}"#, Fault::NoCaption, "annotation 2"),
            (r#"{"image_id": 1, "caption": 7}"#, Fault::NoCaption, "annotation 2"),
            (r#"{"image_id": 1, "caption": "  "}"#, Fault::NoCaption, "annotation 2"),
            (r#"{"image_id": 1}"#, Fault::NoCaption, "annotation 2"),
            (r#"{"image_id": null, "caption": "x"}"#, Fault::Malformed, "annotation 2"),
            (r#""text""#, Fault::Malformed, "annotation 2"),
            (r#"{"image_id": 7, "caption": "x"}"#, Fault::NoPicture, "image 7"),
            (
                r#"{"image_id": "x", "caption": "x"}, {"image_id": "x", "caption": null}"#,
                Fault::NoPicture,
                "image x",
            ),
        ] {
            let json =
                format!(r#"{{"images": [{images}], "annotations": [{said}, {bad}]}}"#);
            let (_base, mut config) = config_of(&json);
            let error = collected(&config).unwrap_err().to_string();
            assert!(error.contains("1 of") && error.contains(named), "{bad}: {error}");
            config.corrupt_share = 0.5;
            let (found, skipped) = collected(&config).unwrap();
            assert_eq!(found.samples.len(), 2, "{bad}");
            assert_eq!((skipped.len(), skipped[0].fault), (1, fault), "{bad}");
            assert_eq!(found.reading.read, 3);
        }
        // A picture whose only annotation is bad is one bad pair and not two.
        let json = format!(
            r#"{{"images": [{images}, 5, {{"id": 3}}], "annotations": [
            {{"image_id": 0, "caption": "one"}}, {{"image_id": 1, "caption": null}}]}}"#
        );
        let (_base, mut config) = config_of(&json);
        config.corrupt_share = 0.8;
        let (found, skipped) = collected(&config).unwrap();
        let keys: Vec<&str> = skipped.iter().map(|bad| bad.key.as_str()).collect();
        let expected = ["captions.json image 2", "captions.json image 3"];
        assert_eq!((&keys[..2], keys[2]), (&expected[..], "captions.json/b.png"));
        assert_eq!((found.samples.len(), found.reading.read), (1, 4));
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
            (images(good, r#"{"image_id": 1, "bbox": []}"#), "none of its annotations"),
            (images(good, r#"{"image_id": 9, "caption": "x"}"#), "json image 9"),
            (images(r#"{"id": 1, "file_name": "../a.png"}"#, caption), "leads out"),
        ] {
            let (_base, config) = config_of(&json);
            let error = format!("{:?}", collected(&config).unwrap_err());
            assert!(error.contains(why) && error.contains("captions.json"), "{error}");
        }
    }
}
