//! Shards of `WebDataset`: tar files whose members belong together by name.
//!
//! `000017.jpg` and `000017.txt` are one pair: the key is the path up to the first dot of the
//! file's name. Pictures are jpg, jpeg, png or webp; captions are the lines of `txt`, the
//! `caption` of `json`, or the class of `cls` by `classnames.txt` beside or above the shard.
//! A shard in a folder of its own, as in `CLIP_benchmark`'s layout (`test/0.tar`), gives the
//! split its name; other pairs are split by a hash of their keys.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::collection::Collection;
use super::folder::{Entry, assemble, default_split, is_plain_split};
use super::stream::{Found, Pair, Skipped, Stream, Tolerance};
use crate::config::DatasetConfig;
use crate::error::{Context, Error, Result};
use crate::image;
use crate::par;

/// Largest member that is read.
const MAX_BYTES: u64 = 64 << 20;
/// Pairs decoded at a time.
const CHUNK: usize = 256;
/// Extensions of pictures.
const PICTURES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Names of classes, one a line.
const CLASSES: &str = "classnames.txt";

/// Reads every shard below `config.folder`.
pub(super) fn collect(
    config: &DatasetConfig,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Collection, Vec<Skipped>)> {
    if config.folder.is_empty() {
        return Err(Error::usage(
            "dataset.folder: a folder is needed for source: webdataset",
        ));
    }
    let shards = Shards::open(Path::new(&config.folder))?;
    let mut gathered = Gathered {
        side: config.image_size,
        tolerance: Tolerance::new(config.corrupt_share),
        waiting: Vec::new(),
        entries: Vec::new(),
        pngs: Vec::new(),
    };
    shards.each(&mut |found| {
        match found {
            Found::Bad(bad) => gathered.tolerance.reject(bad)?,
            Found::Pair(pair) => gathered.waiting.push(pair),
        }
        if gathered.waiting.len() == CHUNK {
            gathered.decode()?;
            let done = gathered.pngs.len();
            progress(done, done);
        }
        Ok(())
    })?;
    gathered.decode()?;
    let skipped = gathered.tolerance.finish()?;
    let mut collection = assemble(gathered.entries, gathered.pngs);
    "webdataset".clone_into(&mut collection.layout.source);
    Ok((collection, skipped))
}

/// Pairs on their way into a collection.
struct Gathered {
    side: usize,
    tolerance: Tolerance,
    waiting: Vec<Pair>,
    entries: Vec<Entry>,
    pngs: Vec<Vec<u8>>,
}

impl Gathered {
    /// Decodes what waits, side by side; what cannot be decoded is a bad pair.
    fn decode(&mut self) -> Result<()> {
        let (waiting, side) = (std::mem::take(&mut self.waiting), self.side);
        let one = |pair: &Pair| -> Result<Vec<u8>> {
            let picture = image::decode(&pair.image, &pair.key)?;
            image::encode_png(&image::fit_square(&picture, side)?)
        };
        let made = par::try_map(waiting.len(), |i| Ok::<_, Error>(one(&waiting[i])))?;
        for (pair, png) in waiting.into_iter().zip(made) {
            match png {
                Ok(png) => {
                    self.tolerance.accept();
                    self.entries.push(entry(pair));
                    self.pngs.push(png);
                }
                Err(error) => {
                    let reason = chain(&error);
                    self.tolerance.reject(Skipped { key: pair.key, reason })?;
                }
            }
        }
        Ok(())
    }
}

fn entry(pair: Pair) -> Entry {
    let concept = pair.class.as_ref().unwrap_or(&pair.captions[0]).to_lowercase();
    let split = pair.split.unwrap_or_else(|| default_split(&pair.key));
    Entry { line: 0, file: pair.key, captions: pair.captions, concept, split }
}

/// An error with its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The shards of a folder, in the order of their names.
#[derive(Debug)]
struct Shards {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    /// Its name within the folder.
    name: String,
    split: Option<String>,
    classes: Vec<String>,
}

impl Shards {
    fn open(folder: &Path) -> Result<Self> {
        let mut shards = Vec::new();
        let above = classes(folder)?;
        for path in sorted(folder)? {
            let name =
                path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && is_plain_split(&name) {
                let own = classes(&path)?;
                let own = if own.is_empty() { above.clone() } else { own };
                for inner in sorted(&path)?.into_iter().filter(|path| is_tar(path)) {
                    let file = inner.file_name().unwrap_or_default().to_string_lossy();
                    shards.push(Shard {
                        name: format!("{name}/{file}"),
                        split: Some(name.clone()),
                        classes: own.clone(),
                        path: inner,
                    });
                }
            } else if is_tar(&path) {
                shards.push(Shard { path, name, split: None, classes: above.clone() });
            }
        }
        if shards.is_empty() {
            let place = folder.display();
            return Err(Error::failed(format!(
                "{place} holds no shard: expected *.tar or SPLIT/*.tar"
            )));
        }
        Ok(Self { shards })
    }
}

fn is_tar(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "tar")
}

/// The entries of a folder; numbers in names count as numbers (`2.tar` before `10.tar`).
fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("listing {}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).context(unreadable)? {
        paths.push(entry.context(unreadable)?.path());
    }
    paths.sort_by_key(|path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        (name.parse::<u64>().unwrap_or(u64::MAX), path.clone())
    });
    Ok(paths)
}

fn classes(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(CLASSES);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path)
        .context(|| format!("reading {}", path.display()))?;
    Ok(text
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect())
}

impl Stream for Shards {
    fn each(&self, visit: &mut dyn FnMut(Found) -> Result<()>) -> Result<()> {
        for shard in &self.shards {
            let place = shard.path.display();
            let file =
                File::open(&shard.path).context(|| format!("reading shard {place}"))?;
            shard.read(BufReader::new(file), visit)?;
        }
        Ok(())
    }
}

/// The members of one key by their suffixes.
type Members = BTreeMap<String, Vec<u8>>;

impl Shard {
    /// Reads a tar from front to back; damage ends the shard as one bad pair.
    fn read(
        &self,
        file: impl Read,
        visit: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        let damaged = |e: std::io::Error| {
            let reason = format!("the shard is damaged from here on: {e}");
            Found::Bad(Skipped { key: self.name.clone(), reason })
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
        let key = format!("{}/{key}", self.name);
        let bad = |reason: &str| {
            Found::Bad(Skipped { key: key.clone(), reason: reason.to_owned() })
        };
        let picture = PICTURES.iter().find_map(|suffix| members.remove(*suffix));
        let Some(image) = picture else { return bad("there is no picture") };
        if image.len() as u64 > MAX_BYTES {
            return bad("the picture's file is too large");
        }
        let class = match members.get("cls").map(|bytes| self.class(bytes)) {
            Some(Err(reason)) => return bad(&reason),
            Some(Ok(class)) => Some(class),
            None => None,
        };
        let mut captions = match captions(&members) {
            Ok(captions) => captions,
            Err(reason) => return bad(&reason),
        };
        if captions.is_empty() {
            captions.extend(class.clone());
        }
        if captions.is_empty() {
            return bad("there is no caption");
        }
        Found::Pair(Pair { key, split: self.split.clone(), image, captions, class })
    }

    fn class(&self, bytes: &[u8]) -> std::result::Result<String, String> {
        let text = String::from_utf8_lossy(bytes);
        let index = text.trim().parse::<usize>().ok();
        let name = index.and_then(|index| self.classes.get(index));
        name.cloned().ok_or_else(|| {
            format!(
                "class {:?} is none of {} in {CLASSES}",
                text.trim(),
                self.classes.len()
            )
        })
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
    use super::*;
    use crate::config::{Overrides, Source, load_default};
    use crate::image::{Picture, encode_png};

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
        let (collection, skipped) =
            collect(&config(base.path(), 0.0), &mut |_, _| ()).unwrap();
        assert!(skipped.is_empty());
        let captions: Vec<_> =
            collection.samples.iter().map(|s| s.captions.clone()).collect();
        let pair =
            [vec!["first".to_owned(), "second".to_owned()], vec!["from json".to_owned()]];
        assert_eq!(captions, [pair.clone(), pair].concat());
        assert!(collection.samples.iter().all(|s| s.split == "train"));
        assert_eq!(collection.layout.source, "webdataset");
        let first = image::decode(&collection.samples[0].png, "x").unwrap();
        assert_eq!(first.rgb[0], 20, "2.tar comes before 10.tar");
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
        let (collection, skipped) =
            collect(&config(base.path(), 0.7), &mut |_, _| ()).unwrap();
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
        let (collection, skipped) =
            collect(&config(base.path(), 0.1), &mut |_, _| ()).unwrap();
        assert_eq!((collection.samples.len(), skipped.len()), (18, 2));
        let keys: Vec<_> = skipped.iter().map(|s| s.key.as_str()).collect();
        assert!(keys.contains(&"0.tar/002") && keys.contains(&"0.tar/004"), "{keys:?}");
        let error = collect(&config(base.path(), 0.01), &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("2 of 20"), "{error}");
        assert!(collect(&config(base.path(), 0.0), &mut |_, _| ()).is_err());
        // Any truncation of a shard is at most one more bad pair or a torn picture.
        let bytes = std::fs::read(&shard).unwrap();
        for length in (0..bytes.len()).step_by(997) {
            std::fs::write(&shard, &bytes[..length]).unwrap();
            let _ = collect(&config(base.path(), 1.0), &mut |_, _| ());
        }
    }

    #[test]
    fn a_folder_without_shards_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let error = collect(&config(base.path(), 0.0), &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("holds no shard"), "{error}");
        let mut nowhere = config(base.path(), 0.0);
        nowhere.folder.clear();
        assert!(collect(&nowhere, &mut |_, _| ()).is_err());
    }
}
