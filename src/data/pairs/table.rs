//! Tables of picture paths and captions: CSV, TSV, and a folder's `captions.csv`.
//!
//! Several rows of one file are its captions. Without a column `concept` (or `label`), pictures
//! with the same first caption show the same thing. Without `split`, one file in ten is a test
//! picture and one in ten validates, by a hash of its name. A row that cannot be used is a bad
//! pair with its line; a table that contradicts itself, or whose quotation marks do not close
//! where they should, is an error: rows may have become part of a caption.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use csv::StringRecord;

use super::columns::{self, Role};
use super::files::{Input, is_plain_split};
use super::gather::default_split;
use super::picture::{self, Located};
use super::quotes;
use super::{Fault, Found, Pair, Skipped, Stream, Visit};
use crate::config::ColumnNames;
use crate::error::{Context, Error, Result};

/// The table of `source: folder`.
const CAPTIONS: &str = "captions.csv";

/// Tables with the pictures they name.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Vec<Table>,
}

/// One table, its rows joined by file.
#[derive(Debug)]
struct Table {
    input: Input,
    /// Where the pictures are.
    folder: PathBuf,
    entries: Vec<Entry>,
    bad: Vec<Skipped>,
}

/// The rows of one file.
#[derive(Debug)]
struct Entry {
    line: u64,
    file: String,
    path: PathBuf,
    captions: Vec<String>,
    concept: Option<String>,
    split: String,
}

/// What a table may hold beside the columns that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Ignored,
    Refused,
}

impl Tables {
    /// `captions.csv` of a folder; the file is the user's own, so an unknown column is a typo.
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(CAPTIONS);
        let (name, split) = (CAPTIONS.to_owned(), None);
        let input = Input { name, path, split, weight: 1.0 };
        let table = Table::read(input, folder, &ColumnNames::default(), Others::Refused)?;
        Ok(Self { tables: vec![table] })
    }

    /// Tables by path; pictures lie in `folder`, or beside the table if it is empty.
    pub(super) fn open(
        inputs: &[Input],
        folder: &Path,
        names: &ColumnNames,
    ) -> Result<Self> {
        let read = |input: &Input| {
            let beside = input.path.parent().unwrap_or_else(|| Path::new(""));
            let folder = if folder.as_os_str().is_empty() { beside } else { folder };
            Table::read(input.clone(), folder, names, Others::Ignored)
        };
        Ok(Self { tables: inputs.iter().map(read).collect::<Result<_>>()? })
    }
}

impl Tables {
    /// The rows of one split.
    pub(super) fn only(mut self, split: &str) -> Result<Self> {
        for table in &mut self.tables {
            table.entries.retain(|entry| entry.split == split);
        }
        if self.tables.iter().all(|table| table.entries.is_empty()) {
            let places = self.tables.iter().map(|t| t.input.path.display().to_string());
            let places = places.collect::<Vec<_>>().join(", ");
            return Err(Error::failed(format!(
                "{places}: no picture is in split {split}"
            )));
        }
        Ok(self)
    }
}

impl Stream for Tables {
    fn each(&self, visit: Visit<'_>) -> Result<()> {
        for table in &self.tables {
            for bad in &table.bad {
                visit(Found::Bad(bad.clone()))?;
            }
            for entry in &table.entries {
                visit(table.found(entry))?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let mut files = Vec::new();
        for Table { input, entries, .. } in &self.tables {
            files.push((input.name.clone(), input.path.clone()));
            // A missing picture is a bad pair; its coming back is a changed input.
            let there = entries.iter().filter(|entry| entry.path.is_file());
            files.extend(there.map(|entry| {
                (format!("{}/{}", input.name, entry.file), entry.path.clone())
            }));
        }
        files
    }

    fn total(&self) -> Option<usize> {
        Some(self.tables.iter().map(|t| t.entries.len() + t.bad.len()).sum())
    }
}

impl Table {
    fn read(
        input: Input,
        folder: &Path,
        names: &ColumnNames,
        others: Others,
    ) -> Result<Self> {
        let path = input.path.clone();
        let place = || format!("reading {}", path.display());
        let delimiter = delimiter(&path)?;

        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .from_path(&path)
            .context(place)?;

        let header = reader.headers().context(place)?.clone();
        let columns =
            Columns::of(&header, names, others).map_err(|e| at(&path, 1, e.message()))?;
        let folder = folder.to_owned();

        // The marks are looked at before any row is: the csv crate would read on without
        // an error.
        quotes::check(&path, delimiter)
            .context(place)?
            .map_or(Ok(()), |open| Err(at(&path, open.line, open.reason())))?;

        let mut table = Self { input, folder, entries: Vec::new(), bad: Vec::new() };

        let mut index = BTreeMap::new();
        let mut record = StringRecord::new();
        loop {
            match reader.read_record(&mut record) {
                Ok(false) => break,
                Ok(true) => {
                    let line = record.position().map_or(0, csv::Position::line);
                    columns.refuse_rows_inside(&record, delimiter, &path, line)?;
                    table.row(&columns.row(&record), line, &mut index)?;
                }
                Err(error) if error.is_io_error() => return Err(error).context(place),
                Err(error) => {
                    let line = error.position().map_or(0, csv::Position::line);
                    table.reject(Fault::Malformed, line, &error.to_string());
                }
            }
        }

        if table.entries.is_empty() && table.bad.is_empty() {
            return Err(at(&path, 1, "there are no rows"));
        }
        Ok(table)
    }

    fn at(&self, line: u64) -> String {
        format!("{} line {line}", self.input.path.display())
    }

    fn reject(&mut self, fault: Fault, line: u64, reason: &str) {
        let (key, reason) = (self.at(line), reason.to_owned());
        self.bad.push(Skipped { key, fault, reason });
    }

    /// Joins a row to its file's.
    fn row(
        &mut self,
        row: &Row<'_>,
        line: u64,
        index: &mut BTreeMap<String, usize>,
    ) -> Result<()> {
        let table = self.input.path.clone();
        let wrong = |why: &str| at(&table, line, why);

        if row.file.is_empty() {
            self.reject(Fault::NoPicture, line, "the path of the picture is empty");
            return Ok(());
        }

        let caption = match (row.caption, row.label) {
            (Some(""), _) | (None, None) => {
                let reason = format!("the caption of {} is empty", row.file);
                self.reject(Fault::NoCaption, line, &reason);
                return Ok(());
            }
            (Some(caption), _) | (None, Some(caption)) => caption.to_owned(),
        };

        // An absolute path and a relative one of the same picture are one name.
        let Located { name: file, path } =
            picture::below(&self.folder, row.file).map_err(|e| wrong(e.message()))?;

        let split = row.split.map(str::to_owned).or_else(|| self.input.split.clone());
        let split = split.unwrap_or_else(|| default_split(&file));

        if !is_plain_split(&split) {
            return Err(wrong(&format!(
                "split {split:?}: expected lower-case letters, digits and dashes"
            )));
        }

        let concept = row.label.map(str::to_lowercase);

        // The first row of a picture makes its entry; the others add their captions.
        let Some(&known) = index.get(&file) else {
            let captions = vec![caption];
            index.insert(file.clone(), self.entries.len());
            self.entries.push(Entry { line, file, path, captions, concept, split });
            return Ok(());
        };

        // A further row of a file is a further caption, and may say nothing else.
        let entry = &mut self.entries[known];
        if concept.is_some() && concept != entry.concept || split != entry.split {
            return Err(wrong(&format!(
                "{} has another concept or split than on line {}",
                file, entry.line
            )));
        }

        entry.captions.push(caption);
        Ok(())
    }

    fn found(&self, entry: &Entry) -> Found {
        match picture::read(&entry.path) {
            Err(error) => {
                let key = self.at(entry.line);
                Found::bad(Fault::NoPicture, key, error.chain())
            }
            Ok(image) => Found::Pair(Pair {
                key: entry.file.clone(),
                split: Some(entry.split.clone()),
                image,
                captions: entry.captions.clone(),
                class: entry.concept.clone(),
                label: None,
                weight: self.input.weight,
            }),
        }
    }
}

fn at(table: &Path, line: u64, message: &str) -> Error {
    Error::failed(format!("{} line {line}: {message}", table.display()))
}

/// Tabs where the name or the header has them (`open_clip` writes tabs into `.csv`).
fn delimiter(path: &Path) -> Result<u8> {
    use std::io::{BufRead, BufReader, Read};
    let place = || format!("reading {}", path.display());
    let file = std::fs::File::open(path).context(place)?;
    let mut header = Vec::new();
    BufReader::new(file.take(1 << 16)).read_until(b'\n', &mut header).context(place)?;
    let tabs = path.extension().is_some_and(|e| e == "tsv") || header.contains(&b'\t');
    Ok(if tabs { b'\t' } else { b',' })
}

/// Positions of the columns that are read.
#[derive(Debug)]
struct Columns {
    file: usize,
    caption: Option<usize>,
    label: Option<usize>,
    split: Option<usize>,
}

/// The fields of a row, trimmed; optional ones are absent where they are empty.
#[derive(Debug)]
struct Row<'a> {
    file: &'a str,
    caption: Option<&'a str>,
    label: Option<&'a str>,
    split: Option<&'a str>,
}

impl Columns {
    fn of(header: &StringRecord, names: &ColumnNames, others: Others) -> Result<Self> {
        let columns: Vec<&str> = header
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim())
            .collect();

        if others == Others::Refused {
            let is_known =
                |name: &str| Role::ALL.iter().any(|role| role.usual().contains(&name));
            if let Some(name) = columns.iter().find(|name| !is_known(name)) {
                return Err(Error::failed(format!(
                    "unknown column {name:?}; known are filepath, caption, concept, split"
                )));
            }
        }

        let find = |role| columns::find(role, names, &columns);
        let (caption, label) = (find(Role::Caption)?, find(Role::Label)?);
        if caption.is_none() && label.is_none() {
            columns::required(Role::Caption, names, &columns)?;
        }

        let file = columns::required(Role::Image, names, &columns)?;
        Ok(Self { file, caption, label, split: find(Role::Split)? })
    }

    /// Refuses a field of several lines one of which looks like a row of its own: the field
    /// was opened by a quotation mark and closed by one of another row.
    fn refuse_rows_inside(
        &self,
        record: &StringRecord,
        delimiter: u8,
        table: &Path,
        line: u64,
    ) -> Result<()> {
        let is_row = |text: &str| {
            let file = text.split(char::from(delimiter)).nth(self.file);
            let has_more = text.contains(char::from(delimiter));
            has_more
                && file.is_some_and(|file| picture::is_picture(Path::new(file.trim())))
        };

        let swallowed = |field: &str| field.lines().skip(1).any(is_row);
        if record.iter().any(swallowed) {
            let reason = quotes::Open { line, is_end: false };
            return Err(at(table, line, reason.reason()));
        }
        Ok(())
    }

    fn row<'a>(&self, record: &'a StringRecord) -> Row<'a> {
        let field = |index: usize| record.get(index).unwrap_or_default().trim();
        let optional =
            |index: Option<usize>| index.map(field).filter(|value| !value.is_empty());
        Row {
            file: field(self.file),
            caption: self.caption.map(field),
            label: optional(self.label),
            split: optional(self.split),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatasetConfig, Source, load_default};
    use crate::data::collection::Collection;
    use crate::image::{Picture, encode_png};

    fn collect(config: &DatasetConfig) -> Result<Collection> {
        let (collection, skipped) = super::super::tests::collected(config)?;
        assert!(skipped.is_empty() || config.corrupt_share > 0.0);
        Ok(collection)
    }

    fn folder(csv: &str) -> (tempfile::TempDir, DatasetConfig) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("captions.csv"), csv).unwrap();
        for (name, color) in [("a.png", [255, 0, 0]), ("b.png", [0, 0, 255])] {
            let png = encode_png(&Picture::filled(20, 10, color)).unwrap();
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
        collect(&config).unwrap_err().to_string()
    }

    #[test]
    fn rows_of_one_file_are_its_captions() {
        let (_folder, config) = folder(
            "filepath,caption,split\na.png,red,train\nb.png,blue,test\na.png,\"all, red\",train\n",
        );
        let collection = collect(&config).unwrap();
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
            (format!("{head}bad.png,x,test\n"), "bad.png: decoding picture"),
            (format!("{head}b.png,,test\n"), "line 3: the caption of b.png is empty"),
            (format!("{head},x,test\n"), "line 3: the path of the picture is empty"),
            (format!("{head}../b.png,x,test\n"), "line 3: ../b.png leads out"),
            (format!("{head}b.png,x,A/B\n"), "line 3: split \"A/B\""),
            (format!("{head}a.png,x,test\n"), "line 3: a.png has another"),
            ("filepath,caption,color\n".to_owned(), "line 1: unknown column \"color\""),
            ("filepath\na.png\n".to_owned(), "line 1: there is no column of the caption"),
            ("filepath,caption\n".to_owned(), "line 1: there are no rows"),
            ("filepath,caption,split\na.png,x,test\n".to_owned(), "split train"),
        ] {
            let error = error(&csv);
            assert!(error.contains(expected), "{csv}: {error}");
            assert!(error.contains("captions.csv") || csv.contains("bad"), "{error}");
        }
    }

    #[test]
    fn a_table_by_path_may_use_tabs_other_names_and_more_columns() {
        let (folder, mut config) = folder("");
        let file = folder.path().join("pairs.csv");
        let absolute = folder.path().join("b.png").display().to_string();
        let text = format!("id\tfilepath\ttitle\n1\ta.png\tred\n2\t{absolute}\tblue\n");
        std::fs::write(&file, &text).unwrap();
        config.source = Source::Csv;
        config.file = file.display().to_string();
        let found = collect(&config).unwrap();
        assert_eq!(found.samples.len(), 2);
        assert_eq!(found.samples[1].captions, ["blue"]);
        let files = super::super::open(&config).unwrap().unwrap().files();
        assert_eq!(files[0].0, "pairs.csv");
        assert!(files[1].0 == "pairs.csv/a.png" && files.len() == 3);
        // A picture that is not there and a broken row are bad pairs, told by their lines.
        std::fs::write(&file, text + "3\tnone.png\tx\n4\ta.png\n").unwrap();
        let error = collect(&config).unwrap_err().to_string();
        assert!(error.contains("pairs.csv line 5"), "{error}");
        config.corrupt_share = 0.5;
        assert_eq!(collect(&config).unwrap().samples.len(), 2);
        config.columns.caption = "text".to_owned();
        let error = collect(&config).unwrap_err().to_string();
        assert!(error.contains("no column text"), "{error}");
        let nothing = DatasetConfig { file: String::new(), ..config };
        assert!(collect(&nothing).unwrap_err().to_string().contains("dataset.file"));
    }

    #[test]
    fn a_folder_without_table_is_an_error() {
        let (folder, config) = folder("");
        std::fs::remove_file(folder.path().join("captions.csv")).unwrap();
        let error = collect(&config).unwrap_err().to_string();
        assert!(error.contains("captions.csv"), "{error}");
        let nowhere = DatasetConfig { folder: String::new(), ..config };
        assert!(collect(&nowhere).is_err());
    }
}
