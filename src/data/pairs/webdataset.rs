//! Shards of `WebDataset`: tar files whose members belong together by name.
//!
//! `000017.jpg` and `000017.txt` are one pair: the key is the path up to the first dot of the
//! file's name. Captions are the lines of `txt`, the `caption` of `json`, or the class of `cls`
//! by `classnames.txt` beside or above the shard. The members of a key stand together and are
//! there once each; otherwise nobody can say what belongs to what, and the pair is a bad one.
//! A shard may be packed with gzip, whatever its name says.
//! A shard in a folder of its own, as in `CLIP_benchmark`'s layout (`test/0.tar`), takes the
//! folder's name for its split; other pairs are split by a hash of their keys.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::files::{Input, Inputs, file_name};
use super::picture::{EXTENSIONS, MAX_BYTES};
use super::{Counts, Fault, Found, Pair, Stream, Visit};
use crate::error::{Context, Error, Result};

/// Extensions of shards.
pub(super) const SHARDS: [&str; 3] = ["tar", "tar.gz", "tgz"];

/// First bytes of what shards are packed with elsewhere and cannot be read here.
const UNSUPPORTED: [(&[u8], &str); 4] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
];

/// First bytes of gzip.
const GZIP: &[u8] = b"\x1f\x8b";

/// Names of classes, one per line.
pub(super) const CLASSES: &str = "classnames.txt";

/// Shards in their order.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    left_out: Counts,
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
    pub(super) fn open(found: Inputs) -> Result<Self> {
        let Inputs { inputs, left_out } = found;
        let shard = |input: Input| {
            let folders = input.path.ancestors().skip(1).take(2);
            let mut paths = folders.map(|folder| folder.join(CLASSES));
            let classes = match paths.find(|path| path.is_file()) {
                Some(path) => Classes::Named(lines(&path)?, path),
                None => Classes::Named(Vec::new(), PathBuf::new()),
            };
            Ok(Shard { input, classes })
        };
        let shards = inputs.into_iter().map(shard).collect::<Result<_>>()?;
        Ok(Self { shards, left_out })
    }

    /// Shards whose classes are numbers and whose pairs may lack a caption if they have a
    /// class, as evaluation needs them.
    pub(super) fn numbered(paths: Vec<PathBuf>) -> Self {
        let shard = |path: PathBuf| {
            let (name, split) = (file_name(&path), None);
            let input = Input { name, path, split, weight: 1.0 };
            Shard { input, classes: Classes::Numbered }
        };
        Self { shards: paths.into_iter().map(shard).collect(), left_out: Counts::new() }
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
            let place = || format!("reading shard {}", shard.input.path.display());
            let file = File::open(&shard.input.path).context(place)?;
            shard.read(unpacked(BufReader::new(file)).context(place)?, visit)?;
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

    fn left_out(&self) -> Counts {
        self.left_out.clone()
    }
}

/// A shard as a tar, told by its first bytes.
fn unpacked<'a>(mut file: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>> {
    let start = file.fill_buf().context(|| "reading its first bytes".to_owned())?;
    if start.starts_with(GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(file)));
    }
    // An archive of another kind is sound: it must not count as a damaged one.
    match UNSUPPORTED.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, packer)) => Err(Error::usage(format!(
            "it is packed with {packer}, which is not supported: unpack it, or pack it with \
             gzip"
        ))),
        None => Ok(Box::new(file)),
    }
}

/// The members of one key by their suffixes.
#[derive(Debug, Default)]
struct Members {
    bytes: BTreeMap<String, Vec<u8>>,
    /// A suffix that is there twice.
    twice: Option<String>,
}

impl Members {
    fn insert(&mut self, suffix: String, bytes: Vec<u8>) {
        match self.bytes.entry(suffix) {
            Entry::Vacant(vacant) => {
                vacant.insert(bytes);
            }
            Entry::Occupied(there) => {
                self.twice.get_or_insert_with(|| there.key().clone());
            }
        }
    }
}

impl Shard {
    /// Reads a tar from front to back; damage ends the shard as one bad pair.
    fn read(&self, file: impl Read, visit: Visit<'_>) -> Result<()> {
        let damaged = |e: std::io::Error| {
            let reason = format!("the shard is damaged from here on: {e}");
            Found::bad(Fault::DamagedFile, self.input.name.clone(), reason)
        };
        let mut archive = tar::Archive::new(file);

        let entries = match archive.entries() {
            Ok(entries) => entries,
            Err(e) => return visit(damaged(e)),
        };

        let mut seen = BTreeSet::new();
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

            // Another key begins, so the members of the one before are complete.
            if current.as_ref().is_some_and(|(open, _)| *open != key)
                && let Some((key, members)) = current.take()
            {
                visit(self.pair(&key, members, &mut seen))?;
            }

            let (_, members) = current.get_or_insert_with(|| (key, Members::default()));
            members.insert(suffix, bytes);
        }

        match current {
            Some((key, members)) => visit(self.pair(&key, members, &mut seen)),
            None => Ok(()),
        }
    }

    /// What the members of a key make; `seen` has the keys before it.
    fn pair(&self, key: &str, members: Members, seen: &mut BTreeSet<String>) -> Found {
        let is_new = seen.insert(key.to_owned());
        let key = format!("{}/{key}", self.input.name);
        let bad = |fault: Fault, reason: &str| Found::bad(fault, key.clone(), reason);

        if let Some(suffix) = members.twice {
            let reason = format!("its member {suffix} is there twice");
            return bad(Fault::Duplicate, &reason);
        }
        if !is_new {
            let reason = "members of this key are also elsewhere in the shard";
            return bad(Fault::Duplicate, reason);
        }

        let mut members = members.bytes;
        let picture = EXTENSIONS.iter().find_map(|suffix| members.remove(*suffix));
        let Some(image) = picture else {
            return bad(Fault::NoPicture, "there is no picture");
        };

        if image.len() as u64 > MAX_BYTES {
            return bad(Fault::TooLarge, "the picture's file is too large");
        }

        let mut captions = match captions(&members) {
            Ok(captions) => captions,
            Err(reason) => return bad(Fault::Malformed, &reason),
        };

        let (label, class) = match members.get("cls").map(|bytes| self.class(bytes)) {
            Some(Ok((label, class))) => (Some(label), class),
            // A class that means nothing here does not take the captions with it.
            Some(Err(_)) if !captions.is_empty() && !self.has_names() => (None, None),
            Some(Err(reason)) => return bad(Fault::UnknownClass, &reason),
            None => (None, None),
        };

        // Without captions of its own, a picture is called what its class is called.
        if captions.is_empty() {
            captions.extend(class.clone());
        }
        let numbered = matches!(self.classes, Classes::Numbered) && label.is_some();
        if captions.is_empty() && !numbered {
            return bad(Fault::NoCaption, "there is no caption");
        }

        let Input { split, weight, .. } = self.input.clone();
        Found::Pair(Pair { key, split, image, captions, class, label, weight })
    }

    /// Whether a file says what the classes are called.
    fn has_names(&self) -> bool {
        matches!(&self.classes, Classes::Named(names, _) if !names.is_empty())
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
            (Classes::Numbered, None) => Err(format!("class {text:?} is not a number")),
            (Classes::Named(names, _), _) if names.is_empty() => Err(format!(
                "class {text:?} has no name: put a {CLASSES} beside or above the shard"
            )),
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

/// The captions of `txt`, one per line, or of `json`.
fn captions(
    members: &BTreeMap<String, Vec<u8>>,
) -> std::result::Result<Vec<String>, String> {
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

    fn png(color: u8) -> Vec<u8> {
        encode_png(&Picture::filled(12, 9, [color, 10, 200])).unwrap()
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
        for (shard, color) in [(2, 20), (10, 30)] {
            write(
                &base.path().join(format!("train/{shard}.tar")),
                &[
                    ("a/b.c/001.PNG", png(color)),
                    ("a/b.c/001.txt", text("first\n\n second \n")),
                    ("a/b.c/002.json", text(r#"{"caption": "from json", "n": 1}"#)),
                    ("a/b.c/002.png", png(color + 1)),
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
            collection
                .samples
                .iter()
                .all(|s| ["train", "val", "test"].contains(&s.split.as_str()))
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
        assert!(error.contains("takes either"), "{error}");
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
    fn members_that_are_there_twice_make_a_bad_pair_and_not_another_one() {
        let name = |name: &'static str, bytes: Vec<u8>| (name, bytes);
        for (members, reason) in [
            // The picture of another pair must not take this caption.
            (
                [name("b.png", png(2)), name("b.txt", text("b")), name("b.png", png(9))],
                "png is there twice",
            ),
            (
                [name("b.png", png(2)), name("b.PNG", png(9)), name("b.txt", text("b"))],
                "png is there twice",
            ),
            (
                [
                    name("b.png", png(2)),
                    name("b.txt", text("b")),
                    name("b.Txt", text("x")),
                ],
                "txt is there twice",
            ),
        ] {
            let base = tempfile::tempdir().unwrap();
            let good = [("a.png", png(1)), ("a.txt", text("a"))];
            let all =
                [&good[..], &members[..], &[("c.png", png(3)), ("c.txt", text("c"))]];
            write(&base.path().join("train/0.tar"), &all.concat());
            let error = collected(&config(base.path(), 0.0)).unwrap_err().to_string();
            assert!(error.contains("0.tar/b") && error.contains(reason), "{error}");
            let (found, skipped) = collected(&config(base.path(), 0.5)).unwrap();
            let captions: Vec<_> =
                found.samples.iter().map(|s| s.captions[0].as_str()).collect();
            assert_eq!((captions, skipped.len()), (vec!["a", "c"], 1));
            assert_eq!(
                found.reading.skipped,
                [("duplicate members".to_owned(), 1)].into()
            );
        }
    }

    #[test]
    fn members_of_a_key_that_do_not_stand_together_are_bad_pairs() {
        let base = tempfile::tempdir().unwrap();
        let members = [
            ("a.png", png(1)),
            ("a.txt", text("a")),
            ("b.png", png(2)),
            ("c.png", png(3)),
            ("c.txt", text("c")),
            ("b.txt", text("b")),
            ("a.png", png(4)),
            ("a.txt", text("another a")),
        ];
        write(&base.path().join("train/0.tar"), &members);
        let (found, skipped) = collected(&config(base.path(), 0.9)).unwrap();
        assert_eq!(found.samples.len(), 2);
        let bad: Vec<_> = skipped.iter().map(|s| (s.key.as_str(), s.fault)).collect();
        let expected = [
            ("train/0.tar/b", Fault::NoCaption),
            ("train/0.tar/b", Fault::Duplicate),
            ("train/0.tar/a", Fault::Duplicate),
        ];
        assert_eq!(bad, expected);
    }

    #[test]
    fn a_packed_shard_is_read_and_an_unknown_packer_is_not_damage() {
        use std::io::Write as _;
        let base = tempfile::tempdir().unwrap();
        let shard = base.path().join("train/0.tar");
        write(&shard, &[("a.png", png(1)), ("a.txt", text("a"))]);
        let tar = std::fs::read(&shard).unwrap();
        let level = flate2::Compression::default();
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), level);
        writer.write_all(&tar).unwrap();
        let packed = writer.finish().unwrap();
        for name in ["0.tar", "0.tar.gz", "0.tgz"] {
            std::fs::remove_file(&shard).ok();
            let path = base.path().join("train").join(name);
            std::fs::write(&path, &packed).unwrap();
            let (found, skipped) = collected(&config(base.path(), 0.0)).unwrap();
            assert_eq!((found.samples.len(), skipped.len()), (1, 0), "{name}");
            // Cut short, it is damaged like any other shard.
            std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
            let error = collected(&config(base.path(), 0.0)).unwrap_err().to_string();
            assert!(error.contains("damaged from here on"), "{name}: {error}");
            std::fs::remove_file(path).unwrap();
        }
        for (magic, packer) in UNSUPPORTED {
            std::fs::write(&shard, [magic, &[0; 600]].concat()).unwrap();
            let error = collected(&config(base.path(), 1.0)).unwrap_err();
            let error = format!("{error:?}");
            assert!(error.contains("not supported") && error.contains(packer), "{error}");
            assert!(error.contains("0.tar") && !error.contains("damaged"), "{error}");
        }
    }

    #[test]
    fn a_class_without_a_name_leaves_the_captions_alone() {
        let base = tempfile::tempdir().unwrap();
        let members = [
            ("a.png", png(1)),
            ("a.txt", text("a")),
            ("a.cls", text("3")),
            ("b.png", png(2)),
            ("b.cls", text("3")),
        ];
        write(&base.path().join("train/0.tar"), &members);
        let (found, skipped) = collected(&config(base.path(), 0.5)).unwrap();
        assert_eq!((found.samples.len(), skipped.len()), (1, 1));
        assert_eq!(found.concepts[0].label, "a");
        assert!(skipped[0].reason.contains("put a classnames.txt"), "{skipped:?}");
    }

    #[test]
    fn damage_is_counted_named_and_tolerated_only_up_to_the_share() {
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
        assert!(error.to_string().contains("holds no file to read"), "{error}");
        let mut nowhere = config(base.path(), 0.0);
        nowhere.folder.clear();
        assert!(collected(&nowhere).is_err());
    }
}
