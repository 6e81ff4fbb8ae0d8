//! Which kind of source a file or a folder is, told by what lies there.
//!
//! Nothing is guessed between two answers: a folder with tables of two kinds is refused, and
//! so is one in which nothing is known. What is found is said with its reason.

use std::path::{Path, PathBuf};

use super::files::{Listing, file_name, is_plain_split};
use super::picture::EXTENSIONS;
use super::webdataset::SHARDS;
use super::{classes, files};
use crate::config::Source;
use crate::error::{Context as _, Error, Result};

/// A source of pairs as `dataset` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// `dataset.source`.
    pub source: Source,
    /// `dataset.folder`; empty where `file` is set.
    pub folder: String,
    /// `dataset.file`; empty where `folder` is set.
    pub file: String,
    /// What it was told by.
    pub reason: String,
}

/// Finds out what `path` is: a folder, a file, or a list of files in braces.
pub fn detect(path: &str) -> Result<Detected> {
    let place = Path::new(path);
    if place.is_dir() {
        let place = place.canonicalize().context(|| format!("looking for {path}"))?;
        return folder(&place);
    }

    let is_list = path.contains('{') || path.contains("::");
    if !is_list && !place.is_file() {
        return Err(Error::usage(format!(
            "--data: {path} does not exist, expected a folder of pictures, a table (.csv, \
             .tsv), Parquet files, tar shards or COCO's JSON"
        )));
    }
    let Some(source) = of_file(&path.to_lowercase()) else {
        return Err(Error::usage(format!(
            "--data: {path} is not one of .csv, .tsv, .parquet, .tar, .tar.gz, .tgz and .json"
        )));
    };

    // Stages run in another folder than this program, so paths have to be absolute.
    let absolute =
        |part: &str| std::path::absolute(part).context(|| format!("looking for {part}"));
    let parts = path.split("::").map(absolute).collect::<Result<Vec<PathBuf>>>()?;
    let parts: Vec<String> =
        parts.iter().map(|part| part.display().to_string()).collect();
    let file = parts.join("::");
    let reason = format!("{path} is named so");
    Ok(Detected { source, folder: String::new(), file, reason })
}

/// The source of a file by the end of its name, in lower case.
fn of_file(name: &str) -> Option<Source> {
    let ends = |extension: &str| name.ends_with(&format!(".{extension}"));
    if ends("csv") || ends("tsv") {
        Some(Source::Csv)
    } else if ends("parquet") {
        Some(Source::Parquet)
    } else if SHARDS.into_iter().any(ends) {
        Some(Source::Webdataset)
    } else {
        ends("json").then_some(Source::Coco)
    }
}

/// What a folder is.
fn folder(place: &Path) -> Result<Detected> {
    let found = |source: Source, folder: &Path, reason: &str| Detected {
        source,
        folder: folder.display().to_string(),
        file: String::new(),
        reason: reason.to_owned(),
    };
    if place.join("captions.csv").is_file() {
        return Ok(found(Source::Folder, place, "it holds captions.csv"));
    }

    // A folder in it counts as a split, and so does the `data` of Hugging Face.
    for (source, extensions, reason) in [
        (Source::Parquet, &["parquet"][..], "it holds Parquet files"),
        (Source::Webdataset, &SHARDS[..], "it holds tar shards"),
    ] {
        if files::in_folder(place, extensions).is_ok() {
            return Ok(found(source, place, reason));
        }
    }

    let listing = Listing::of(place)?;
    let named = |wanted: Source| -> Vec<&PathBuf> {
        let is =
            |path: &&PathBuf| of_file(&file_name(path).to_lowercase()) == Some(wanted);
        listing.files.iter().filter(is).collect()
    };
    // A folder may hold JSON of any kind; annotations are named so.
    let annotations = named(Source::Coco).into_iter().filter(|path| {
        let name = file_name(path).to_lowercase();
        ["captions", "dataset_", "coco", "karpathy"]
            .iter()
            .any(|word| name.contains(word))
    });
    let tables: Vec<&PathBuf> =
        named(Source::Csv).into_iter().chain(annotations).collect();
    match tables.as_slice() {
        [table] => {
            let mut detected = detect(&table.display().to_string())?;
            detected.reason = format!("it holds one table, {}", file_name(table));
            return Ok(detected);
        }
        [] => {}
        [first, second, ..] => {
            let (first, second) = (file_name(first), file_name(second));
            return Err(Error::usage(format!(
                "--data: {} holds several tables ({first}, {second}): name the one to read",
                place.display()
            )));
        }
    }

    if classes::is_layout(place) && has_pictures(&listing) {
        return Ok(found(Source::Folder, place, "it holds a folder for each class"));
    }
    Err(unknown(place, &listing))
}

/// Whether any folder of a listing holds a picture, itself or one level deeper.
fn has_pictures(listing: &Listing) -> bool {
    let holds = |folder: &PathBuf| {
        Listing::of(folder)
            .is_ok_and(|inner| inner.files.iter().any(|path| is_picture(path)))
    };
    listing.folders.iter().any(|folder| {
        let is_split = is_plain_split(&file_name(folder));
        holds(folder)
            || (is_split
                && Listing::of(folder).is_ok_and(|i| i.folders.iter().any(holds)))
    })
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

fn unknown(place: &Path, listing: &Listing) -> Error {
    let pictures = listing.files.iter().filter(|path| is_picture(path)).count();
    let place = place.display();
    if pictures > 0 {
        return Error::usage(format!(
            "--data: {place} holds {pictures} pictures and nothing that says what they show: \
             write {place}/captions.csv with the columns filepath and caption, or put the \
             pictures of each class into a folder that is named after it"
        ));
    }
    Error::usage(format!(
        "--data: {place} holds nothing that is known: expected captions.csv, one table (.csv, \
         .tsv, COCO's .json), Parquet files, tar shards, or a folder of pictures for each class"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(files: &[&str]) -> Result<Detected> {
        let base = tempfile::tempdir().unwrap();
        for file in files {
            let path = base.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        detect(base.path().to_str().unwrap())
    }

    #[test]
    fn a_source_is_told_by_what_lies_there() {
        for (files, source, tail) in [
            (&["captions.csv", "a.png"][..], Source::Folder, ""),
            (&["cat/a.jpg", "dog/b.jpg"], Source::Folder, ""),
            (&["train/cat/a.jpg"], Source::Folder, ""),
            (&["pairs.tsv", "a.png"], Source::Csv, "pairs.tsv"),
            (
                &["images/1.jpg", "captions_train.json"],
                Source::Coco,
                "captions_train.json",
            ),
            (&["0.tar", "1.tar"], Source::Webdataset, ""),
            (&["data/train-00000-of-00001.parquet", "README.md"], Source::Parquet, ""),
        ] {
            let found = detected(files).unwrap();
            assert_eq!(found.source, source, "{files:?}");
            let place = format!("{}{}", found.folder, found.file);
            assert!(place.ends_with(tail) && place.starts_with('/'), "{place}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_to_do() {
        for (files, word) in [
            (&["a.png", "b.png"][..], "2 pictures and nothing that says what they show"),
            (&["a.csv", "b.csv"], "name the one to read"),
            (&["a.zip"], "nothing that is known"),
        ] {
            let error = detected(files).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(detect("/nowhere/x.csv").unwrap_err().to_string().contains("not exist"));
    }
}
