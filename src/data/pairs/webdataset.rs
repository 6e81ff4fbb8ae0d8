//! Shards of `WebDataset`: tar files whose members belong together by name.
//!
//! `000017.jpg` and `000017.txt` are one pair: the key is the path up to the first dot of the
//! file's name. Pictures are jpg, jpeg, png or webp; captions are the lines of `txt`, the
//! `caption` of `json`, or the class of `cls` by `classnames.txt` beside or above the shard.
//! A shard in a folder of its own, as in `CLIP_benchmark`'s layout (`test/0.tar`), takes the
//! folder's name for its split; other pairs are split by a hash of their keys.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::files::{Input, file_name};
use super::picture::MAX_BYTES;
use super::{Found, Pair, Stream, Visit};
use crate::error::{Context, Result};

/// Extensions of pictures.
const PICTURES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Names of classes, one a line.
pub(super) const CLASSES: &str = "classnames.txt";

/// Shards in their order.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    input: Input,
    classes: Classes,
}

/// What the numbers of `cls` mean.
#[derive(Debug, Clone)]
enum Classes {
    /// Names of a file.
    Named(Vec<String>, PathBuf),
    /// Nothing is known; numbers stay numbers.
    Numbered,
}

impl Shards {
    /// Shards with the class names beside or above each.
    pub(super) fn open(inputs: Vec<Input>) -> Result<Self> {
        let shard = |input: Input| {
            let folders = input.path.ancestors().skip(1).take(2);
            let mut paths = folders.map(|folder| folder.join(CLASSES));
            let classes = match paths.find(|path| path.is_file()) {
                Some(path) => Classes::Named(lines(&path)?, path),
                None => Classes::Named(Vec::new(), PathBuf::new()),
            };
            Ok(Shard { input, classes })
        };
        Ok(Self { shards: inputs.into_iter().map(shard).collect::<Result<_>>()? })
    }

    /// Shards whose classes are numbers and whose pairs may lack a caption if they have a
    /// class, as evaluation needs them.
    pub(super) fn numbered(paths: Vec<PathBuf>) -> Self {
        let shard = |path: PathBuf| {
            let (name, split) = (file_name(&path), None);
            let input = Input { name, path, split, weight: 1.0 };
            Shard { input, classes: Classes::Numbered }
        };
        Self { shards: paths.into_iter().map(shard).collect() }
    }
}

/// The lines of a file that are not empty, trimmed.
pub(super) fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().map(|line| line.trim().to_owned());
    Ok(lines.filter(|line| !line.is_empty()).collect())
}

impl Stream for Shards {
    fn each(&self, visit: Visit<'_>) -> Result<()> {
        for shard in &self.shards {
            let path = &shard.input.path;
            let file = File::open(path)
                .context(|| format!("reading shard {}", path.display()))?;
            shard.read(BufReader::new(file), visit)?;
        }
        Ok(())
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let mut files = Vec::new();
        for Shard { input, classes } in &self.shards {
            files.push((input.name.clone(), input.path.clone()));
            if let Classes::Named(names, path) = classes
                && !names.is_empty()
            {
                files.push((format!("{}/{CLASSES}", input.name), path.clone()));
            }
        }
        files
    }
}

/// The members of one key by their suffixes.
type Members = BTreeMap<String, Vec<u8>>;

impl Shard {
    /// Reads a tar from front to back; damage ends the shard as one bad pair.
    fn read(&self, file: impl Read, visit: Visit<'_>) -> Result<()> {
        let damaged = |e: std::io::Error| {
            let reason = format!("the shard is damaged from here on: {e}");
            Found::bad(self.input.name.clone(), reason)
        };
        let mut archive = tar::Archive::new(file);
        let entries = match archive.entries() {
            Ok(entries) => entries,
            Err(e) => return visit(damaged(e)),
        };
        let mut current: Option<(String, Members)> = None;
        for member in entries {
            let (key, suffix, bytes) = match member.and_then(read_member) {
                Ok(Some(member)) => member,
                Ok(None) => continue,
                Err(e) => {
                    visit(damaged(e))?;
                    break;
                }
            };
            if current.as_ref().is_some_and(|(open, _)| *open != key)
                && let Some((key, members)) = current.take()
            {
                visit(self.pair(&key, members))?;
            }
            current.get_or_insert_with(|| (key, Members::new())).1.insert(suffix, bytes);
        }
        current.map_or(Ok(()), |(key, members)| visit(self.pair(&key, members)))
    }

    fn pair(&self, key: &str, mut members: Members) -> Found {
        let key = format!("{}/{key}", self.input.name);
        let bad = |reason: &str| Found::bad(key.clone(), reason);
        let picture = PICTURES.iter().find_map(|suffix| members.remove(*suffix));
        let Some(image) = picture else { return bad("there is no picture") };
        if image.len() as u64 > MAX_BYTES {
            return bad("the picture's file is too large");
        }
        let (label, class) = match members.get("cls").map(|bytes| self.class(bytes)) {
            Some(Err(reason)) => return bad(&reason),
            Some(Ok((label, class))) => (Some(label), class),
            None => (None, None),
        };
        let mut captions = match captions(&members) {
            Ok(captions) => captions,
            Err(reason) => return bad(&reason),
        };
        if captions.is_empty() {
            captions.extend(class.clone());
        }
        let numbered = matches!(self.classes, Classes::Numbered) && label.is_some();
        if captions.is_empty() && !numbered {
            return bad("there is no caption");
        }
        let Input { split, weight, .. } = self.input.clone();
        Found::Pair(Pair { key, split, image, captions, class, label, weight })
    }

    /// Number and name of a class.
    fn class(
        &self,
        bytes: &[u8],
    ) -> std::result::Result<(usize, Option<String>), String> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim();
        let index = text.parse::<usize>().ok();
        match (&self.classes, index) {
            (Classes::Numbered, Some(index)) => Ok((index, None)),
            (Classes::Numbered, None) => Err(format!("class {text:?} is no number")),
            (Classes::Named(names, _), index) => index
                .and_then(|index| Some((index, Some(names.get(index)?.clone()))))
                .ok_or_else(|| {
                    format!("class {text:?} is none of {} in {CLASSES}", names.len())
                }),
        }
    }
}

/// Key, lower-case suffix and bytes of a file; `None` for folders and other kinds.
fn read_member(
    member: tar::Entry<'_, impl Read>,
) -> std::io::Result<Option<(String, String, Vec<u8>)>> {
    if !member.header().entry_type().is_file() {
        return Ok(None);
    }
    let path = String::from_utf8_lossy(&member.path_bytes()).into_owned();
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    let Some(dot) = path[start..].find('.').filter(|dot| *dot > 0) else {
        return Ok(None);
    };
    let (key, suffix) = path.split_at(start + dot);
    // One byte more than allowed shows that there was more.
    let mut bytes = Vec::new();
    member.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(Some((key.to_owned(), suffix[1..].to_lowercase(), bytes)))
}

/// The captions of `txt`, one a line, or of `json`.
fn captions(members: &Members) -> std::result::Result<Vec<String>, String> {
    let lines = |text: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
    };
    if let Some(bytes) = members.get("txt") {
        let text = std::str::from_utf8(bytes).map_err(|e| format!("txt: {e}"))?;
        return Ok(lines(text));
    }
    let Some(bytes) = members.get("json") else { return Ok(Vec::new()) };
    let json: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| format!("json: {e}"))?;
    let found = ["caption", "captions", "text"].iter().find_map(|key| json.get(key));
    match found {
        Some(serde_json::Value::String(text)) => Ok(lines(text)),
        Some(serde_json::Value::Array(list)) => {
            Ok(list.iter().filter_map(|v| v.as_str()).flat_map(lines).collect())
        }
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::collected;
    use super::*;
    use crate::config::{DatasetConfig, Overrides, Source, load_default};
    use crate::image::{self, Picture, encode_png};

    fn png(colour: u8) -> Vec<u8> {
        encode_png(&Picture::filled(12, 9, [colour, 10, 200])).unwrap()
    }

    fn write(path: &Path, members: &[(&str, Vec<u8>)]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        builder.finish().unwrap();
    }

    fn config(folder: &Path, share: f64) -> DatasetConfig {
        let mut config = load_default(&Overrides::default()).unwrap().dataset;
        config.source = Source::Webdataset;
        config.folder = folder.display().to_string();
        config.image_size = 8;
        config.corrupt_share = share;
        config
    }

    fn text(text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }

    #[test]
    fn members_of_a_key_are_one_pair_in_the_order_of_the_shards() {
        let base = tempfile::tempdir().unwrap();
        for (shard, colour) in [(2, 20), (10, 30)] {
            write(
                &base.path().join(format!("train/{shard}.tar")),
                &[
                    ("a/b.c/001.PNG", png(colour)),
                    ("a/b.c/001.txt", text("first\n\n second \n")),
                    ("a/b.c/002.json", text(r#"{"caption": "from json", "n": 1}"#)),
                    ("a/b.c/002.png", png(colour + 1)),
                ],
            );
        }
        let (collection, skipped) = collected(&config(base.path(), 0.0)).unwrap();
        assert!(skipped.is_empty());
        let captions: Vec<_> =
            collection.samples.iter().map(|s| s.captions.clone()).collect();
        let pair =
            [vec!["first".to_owned(), "second".to_owned()], vec!["from json".to_owned()]];
        assert_eq!(captions, [pair.clone(), pair].concat());
        assert!(
            collection.samples.iter().all(|s| s.split == "train" || s.split == "val")
        );
        assert_eq!(collection.layout.source, "webdataset");
        let first =
            image::decode(&collection.samples[0].png.read().unwrap(), "x").unwrap();
        assert_eq!(first.rgb[0], 20, "2.tar comes before 10.tar");
    }

    #[test]
    fn a_list_of_shards_mixes_its_parts_by_weight() {
        let base = tempfile::tempdir().unwrap();
        for name in ["a-00", "a-01", "b"] {
            let key = format!("{name}.png");
            let caption = (format!("{name}.txt"), text(name));
            let members = [(key.as_str(), png(1)), (caption.0.as_str(), caption.1)];
            write(&base.path().join(format!("train/{name}.tar")), &members);
        }
        let place = base.path().join("train");
        let mut config = config(Path::new(""), 0.0);
        config.file = format!("{0}/a-{{00..01}}.tar::{0}/b.tar", place.display());
        config.weights = vec![1.0, 3.0];
        let (found, _) = collected(&config).unwrap();
        let count = |text: &str| {
            let of = |s: &&crate::data::collection::Sample| s.captions == [text];
            let all: Vec<_> = found.samples.iter().filter(of).collect();
            let once = all.iter().any(|s| s.split != "train");
            (all.len(), once)
        };
        assert_eq!(count("a-00").0, 1);
        assert!(matches!(count("b"), (3, false) | (1, true)));
        config.folder = place.display().to_string();
        let error = collected(&config).unwrap_err().to_string();
        assert!(error.contains("one of them"), "{error}");
    }

    #[test]
    fn classes_are_named_and_folders_are_splits() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join(CLASSES), "cat\ndog\n").unwrap();
        for split in ["train", "test"] {
            write(
                &base.path().join(split).join("0.tar"),
                &[
                    ("s0.webp.bak", text("no")),
                    ("s1.png", png(1)),
                    ("s1.cls", text("1")),
                    ("s2.png", png(2)),
                    ("s2.cls", text("7")),
                ],
            );
        }
        let (collection, skipped) = collected(&config(base.path(), 0.7)).unwrap();
        assert_eq!(collection.samples.len(), 2);
        assert_eq!(collection.concepts[0].label, "dog");
        assert_eq!(collection.layout.tests, ["test"]);
        let reasons: Vec<_> = skipped.iter().map(|s| s.key.as_str()).collect();
        assert!(reasons.contains(&"test/0.tar/s2"), "{reasons:?}");
    }

    #[test]
    fn damage_is_counted_named_and_borne_only_up_to_the_share() {
        let base = tempfile::tempdir().unwrap();
        let shard = base.path().join("0.tar");
        let mut members: Vec<(String, Vec<u8>)> = Vec::new();
        for i in 0..20_u8 {
            members.push((format!("{i:03}.png"), png(i)));
            members.push((format!("{i:03}.txt"), text("a picture")));
        }
        members[4].1.truncate(30);
        members[8].0 = "004.txt".to_owned();
        let named: Vec<(&str, Vec<u8>)> =
            members.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        write(&shard, &named);
        let (collection, skipped) = collected(&config(base.path(), 0.1)).unwrap();
        assert_eq!((collection.samples.len(), skipped.len()), (18, 2));
        let keys: Vec<_> = skipped.iter().map(|s| s.key.as_str()).collect();
        assert!(keys.contains(&"0.tar/002") && keys.contains(&"0.tar/004"), "{keys:?}");
        let error = collected(&config(base.path(), 0.01)).unwrap_err();
        assert!(error.to_string().contains("2 of 20"), "{error}");
        assert!(collected(&config(base.path(), 0.0)).is_err());
        // Any truncation of a shard is at most one more bad pair or a torn picture.
        let bytes = std::fs::read(&shard).unwrap();
        for length in (0..bytes.len()).step_by(997) {
            std::fs::write(&shard, &bytes[..length]).unwrap();
            let _ = collected(&config(base.path(), 1.0));
        }
    }

    #[test]
    fn a_folder_without_shards_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let error = collected(&config(base.path(), 0.0)).unwrap_err();
        assert!(error.to_string().contains("holds no shard"), "{error}");
        let mut nowhere = config(base.path(), 0.0);
        nowhere.folder.clear();
        assert!(collected(&nowhere).is_err());
    }
}
