//! A user's own pictures: a folder with `captions.csv`.
//!
//! Columns `filepath` and `caption`; optional `concept` and `split`. Several rows of one
//! file are its captions. Without `concept`, pictures with the same first caption show the
//! same thing. Without `split`, one file in ten is a test picture and one in ten validates,
//! by a hash of its name. Any mistake names the file and the line, and nothing is written.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use super::collection::{Collection, Concept, Layout, Sample};
use super::splits::{TRAIN, VAL, hash};
use crate::config::DatasetConfig;
use crate::error::{Context, Error, Result};
use crate::image;
use crate::par;

/// Split of the pictures that are neither trained nor chosen with.
const TEST: &str = "test";
/// Largest picture file read.
const MAX_BYTES: u64 = 256 << 20;
/// Pictures decoded between two reports of progress.
const CHUNK: usize = 256;

/// One row of the table.
#[derive(Debug)]
struct Row {
    line: u64,
    file: String,
    caption: String,
    concept: Option<String>,
    split: Option<String>,
}

/// The rows of one file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) line: u64,
    pub(super) file: String,
    pub(super) captions: Vec<String>,
    pub(super) concept: String,
    pub(super) split: String,
}

/// Reads the table and all pictures.
pub(super) fn collect(
    config: &DatasetConfig,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Collection> {
    if config.folder.is_empty() {
        return Err(Error::usage(
            "dataset.folder: a folder is needed for source: folder",
        ));
    }
    let folder = Path::new(&config.folder);
    let table = folder.join("captions.csv");
    let entries = group(&read(&table)?, &table)?;
    let mut pngs = Vec::with_capacity(entries.len());
    for chunk in entries.chunks(CHUNK) {
        pngs.extend(par::try_map(chunk.len(), |i| {
            let entry = &chunk[i];
            picture(&folder.join(&entry.file), config.image_size)
                .map_err(|e| at(&table, entry.line, &format!("{e}{}", causes(&e))))
        })?);
        progress(pngs.len(), entries.len());
    }
    Ok(assemble(entries, pngs))
}

fn at(table: &Path, line: u64, message: &str) -> Error {
    Error::failed(format!("{} line {line}: {message}", table.display()))
}

/// The causes of an error in one line: a broken picture is explained by its decoder.
fn causes(error: &Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Parses the table.
fn read(table: &Path) -> Result<Vec<Row>> {
    let place = || format!("reading {}", table.display());
    let mut reader = csv::ReaderBuilder::new().from_path(table).context(place)?;
    let header = reader.headers().context(place)?.clone();
    let known = ["filepath", "caption", "concept", "split"];
    let mut columns: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, name) in header.iter().enumerate() {
        let name = name.trim_start_matches('\u{feff}').trim();
        let Some(known) = known.iter().find(|known| **known == name) else {
            return Err(at(
                table,
                1,
                &format!("unknown column {name:?}; known are {}", known.join(", ")),
            ));
        };
        if columns.insert(known, index).is_some() {
            return Err(at(table, 1, &format!("column {name} stands there twice")));
        }
    }
    let required = |name: &str| {
        let missing = || at(table, 1, &format!("there is no column {name}"));
        columns.get(name).copied().ok_or_else(missing)
    };
    let (file, caption) = (required("filepath")?, required("caption")?);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.context(place)?;
        let line = record.position().map_or(0, csv::Position::line);
        let field =
            |index: usize| record.get(index).unwrap_or_default().trim().to_owned();
        let optional = |name: &str| {
            columns.get(name).map(|&i| field(i)).filter(|value| !value.is_empty())
        };
        let row = Row {
            line,
            file: field(file),
            caption: field(caption),
            concept: optional("concept"),
            split: optional("split"),
        };
        check(&row).map_err(|message| at(table, line, &message))?;
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(at(table, 1, "there are no rows"));
    }
    Ok(rows)
}

fn check(row: &Row) -> Result<(), String> {
    if row.file.is_empty() {
        return Err("the filepath is empty".to_owned());
    }
    if row.caption.is_empty() {
        return Err(format!("the caption of {} is empty", row.file));
    }
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&row.file).components().all(inside) {
        return Err(format!("{} leads out of the folder", row.file));
    }
    match &row.split {
        Some(split) if !is_plain_split(split) => Err(format!(
            "split {split:?}: expected lower-case letters, digits and dashes"
        )),
        _ => Ok(()),
    }
}

/// Whether a word can name a split: lower-case letters, digits and dashes.
pub(super) fn is_plain_split(split: &str) -> bool {
    split.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Joins the rows of each file, in the order of first appearance.
fn group(rows: &[Row], table: &Path) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        let split = row.split.clone().unwrap_or_else(|| default_split(&row.file));
        let Some(&known) = index.get(row.file.as_str()) else {
            index.insert(&row.file, entries.len());
            let concept = row.concept.clone().unwrap_or_else(|| row.caption.clone());
            entries.push(Entry {
                line: row.line,
                file: row.file.clone(),
                captions: vec![row.caption.clone()],
                concept: concept.to_lowercase(),
                split,
            });
            continue;
        };
        let entry = &mut entries[known];
        let same = row.concept.as_ref().is_none_or(|c| c.to_lowercase() == entry.concept);
        if !same || split != entry.split {
            return Err(at(
                table,
                row.line,
                &format!(
                    "{} has another concept or split than on line {}",
                    row.file, entry.line
                ),
            ));
        }
        entry.captions.push(row.caption.clone());
    }
    if !entries.iter().any(|entry| entry.split == TRAIN) {
        return Err(at(table, 1, "no picture is in the split train"));
    }
    Ok(entries)
}

/// One file in ten is a test picture and one in ten validates.
pub(super) fn default_split(file: &str) -> String {
    match hash(&format!("split:{file}"), 10) {
        0 => TEST,
        1 => VAL,
        _ => TRAIN,
    }
    .to_owned()
}

fn picture(path: &Path, side: usize) -> Result<Vec<u8>> {
    let name = path.display().to_string();
    let size =
        std::fs::metadata(path).context(|| format!("reading picture {name}"))?.len();
    if size > MAX_BYTES {
        return Err(Error::failed(format!(
            "picture {name} has {size} bytes; accepted are {MAX_BYTES}"
        )));
    }
    let bytes = std::fs::read(path).context(|| format!("reading picture {name}"))?;
    let picture = image::decode(&bytes, &name)?;
    let square =
        image::fit_square(&picture, side).context(|| format!("resizing {name}"))?;
    image::encode_png(&square)
}

/// Entries with their pictures as a collection.
pub(super) fn assemble(entries: Vec<Entry>, pngs: Vec<Vec<u8>>) -> Collection {
    let mut keys: Vec<String> = entries.iter().map(|e| e.concept.clone()).collect();
    keys.sort();
    keys.dedup();
    let mut tests: Vec<String> = entries.iter().map(|e| e.split.clone()).collect();
    tests.sort();
    tests.dedup();
    tests.retain(|split| split != TRAIN && split != VAL);
    let concepts = keys.iter().map(|key| Concept {
        key: key.clone(),
        label: key.clone(),
        tags: Vec::new(),
        group: 0,
        subgroup: 0,
        held_out: false,
    });
    let samples = entries.into_iter().zip(pngs).map(|(entry, png)| Sample {
        split: entry.split,
        png,
        names: entry.captions.clone(),
        captions: entry.captions,
        concept: keys.partition_point(|key| *key < entry.concept),
        style: "folder".to_owned(),
    });
    let mut splits = vec![TRAIN.to_owned(), VAL.to_owned()];
    splits.extend(tests.iter().cloned());
    Collection {
        samples: samples.collect(),
        concepts: concepts.collect(),
        groups: vec!["all".to_owned()],
        subgroups: vec!["all".to_owned()],
        splits,
        layout: Layout {
            source: "folder".to_owned(),
            retrieval: tests.first().cloned().unwrap_or_else(|| VAL.to_owned()),
            shifts: tests.clone(),
            tests,
            held_out: None,
            templates: ["{}", "a photo of {}", "a picture of {}"]
                .map(str::to_owned)
                .to_vec(),
            attribution: vec!["the user's own pictures".to_owned()],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, load_default};
    use crate::image::{Picture, encode_png};

    fn folder(csv: &str) -> (tempfile::TempDir, DatasetConfig) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("captions.csv"), csv).unwrap();
        for (name, colour) in [("a.png", [255, 0, 0]), ("b.png", [0, 0, 255])] {
            let png = encode_png(&Picture::filled(20, 10, colour)).unwrap();
            std::fs::write(folder.path().join(name), png).unwrap();
        }
        std::fs::write(folder.path().join("bad.png"), b"\x89PNG\r\n\x1a\nno").unwrap();
        let mut config =
            load_default(&crate::config::Overrides::default()).unwrap().dataset;
        config.source = Source::Folder;
        config.folder = folder.path().display().to_string();
        config.image_size = 8;
        (folder, config)
    }

    fn error(csv: &str) -> String {
        let (_folder, config) = folder(csv);
        collect(&config, &mut |_, _| ()).unwrap_err().to_string()
    }

    #[test]
    fn rows_of_one_file_are_its_captions() {
        let (_folder, config) = folder(
            "filepath,caption,split\na.png,red,train\nb.png,blue,test\na.png,\"all, red\",train\n",
        );
        let collection = collect(&config, &mut |_, _| ()).unwrap();
        assert_eq!(collection.samples.len(), 2);
        assert_eq!(collection.samples[0].captions, ["red", "all, red"]);
        assert_eq!(collection.splits, ["train", "val", "test"]);
        assert_eq!(collection.concepts.len(), 2);
    }

    #[test]
    fn every_mistake_names_file_and_line() {
        let head = "filepath,caption,split\na.png,red,train\n";
        for (csv, expected) in [
            (format!("{head}missing.png,x,test\n"), "line 3: reading picture"),
            (format!("{head}bad.png,x,test\n"), "line 3: decoding picture"),
            (format!("{head}b.png,,test\n"), "line 3: the caption of b.png is empty"),
            (format!("{head},x,test\n"), "line 3: the filepath is empty"),
            (format!("{head}../b.png,x,test\n"), "line 3: ../b.png leads out"),
            (format!("{head}b.png,x,A/B\n"), "line 3: split \"A/B\""),
            (format!("{head}a.png,x,test\n"), "line 3: a.png has another"),
            ("filepath,caption,colour\n".to_owned(), "line 1: unknown column \"colour\""),
            ("filepath\na.png\n".to_owned(), "line 1: there is no column caption"),
            ("filepath,caption\n".to_owned(), "line 1: there are no rows"),
            ("filepath,caption,split\na.png,x,test\n".to_owned(), "split train"),
        ] {
            let error = error(&csv);
            assert!(error.contains(expected), "{csv}: {error}");
            assert!(error.contains("captions.csv"), "{error}");
        }
    }

    #[test]
    fn a_folder_without_table_is_an_error() {
        let (folder, config) = folder("");
        std::fs::remove_file(folder.path().join("captions.csv")).unwrap();
        let error = collect(&config, &mut |_, _| ()).unwrap_err().to_string();
        assert!(error.contains("captions.csv"), "{error}");
        let nowhere = DatasetConfig { folder: String::new(), ..config };
        assert!(collect(&nowhere, &mut |_, _| ()).is_err());
    }
}
