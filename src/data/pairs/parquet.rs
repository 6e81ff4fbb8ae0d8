//! Parquet with the pictures inside, as Hugging Face's `datasets` stores them.
//!
//! ```text
//! image    struct {bytes: binary, path: text}, or binary
//! caption  text, or a list of text              and/or
//! label    a number with names (ClassLabel in the schema, or classnames.txt), or text
//! ```
//!
//! Only these columns are read, a few rows at a time, so that memory is bounded by a page and
//! not by the file. A row without picture or caption is a bad pair; a file that cannot be read
//! on counts as one. A sound file in a form that is not supported is an error, and never a bad
//! pair: tolerating it would lose all of its rows. A column of labels that nobody asked for
//! and that cannot be one is left alone where there are captions.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::basic::Compression;

use super::columns::{self, Role};
use super::files::{Input, Inputs};
use super::picture::MAX_BYTES;
use super::webdataset::{CLASSES, lines};
use super::{Counts, Fault, Found, Pair, Stream, Visit};
use crate::config::ColumnNames;
use crate::error::{Context, Error, Kind, Result};
use crate::io::columnar;
use crate::io::hostile::guarded;

/// Rows read at a time.
const ROWS: usize = 64;

/// Files of one schema each.
#[derive(Debug)]
pub(super) struct Parquets {
    inputs: Vec<Input>,
    left_out: Counts,
    names: ColumnNames,
}

impl Parquets {
    /// Opens nothing yet but the list: a damaged file must not hide the others.
    pub(super) fn open(found: Inputs, names: &ColumnNames) -> Result<Self> {
        let Inputs { inputs, left_out } = found;
        if inputs.is_empty() {
            return Err(Error::failed("there is no Parquet file"));
        }
        Ok(Self { inputs, left_out, names: names.clone() })
    }
}

impl Stream for Parquets {
    fn each(&self, visit: Visit<'_>) -> Result<()> {
        for input in &self.inputs {
            let place = || format!("reading {}", input.path.display());
            let file = File::open(&input.path).context(place)?;

            let damaged = |why: &str| {
                let reason = format!("damaged: {why}");
                Found::bad(Fault::DamagedFile, input.name.clone(), reason)
            };

            let builder = match columnar::open(file) {
                Ok(builder) => builder.with_batch_size(ROWS),
                // What is sound but not supported is the user's to change.
                Err(error) if error.kind() == Kind::Usage => {
                    return Err(error).context(place);
                }
                Err(error) => {
                    visit(damaged(&error.chain()))?;
                    continue;
                }
            };

            // A column that is missing is not damage, so this error is not tolerated.
            let columns =
                Columns::of(builder.schema(), &self.names, input).context(place)?;

            let roots = ProjectionMask::roots(builder.parquet_schema(), columns.roots());
            check_codecs(&builder, &roots).context(place)?;
            match builder.with_projection(roots).build() {
                Ok(reader) => read(reader, &columns, input, visit)?,
                Err(error) => visit(damaged(&error.to_string()))?,
            }
        }
        Ok(())
    }

    fn left_out(&self) -> Counts {
        self.left_out.clone()
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let mut files = Vec::new();
        for input in &self.inputs {
            files.push((input.name.clone(), input.path.clone()));
            if let Some(path) = classes_beside(input) {
                files.push((format!("{}/{CLASSES}", input.name), path));
            }
        }
        files
    }
}

fn classes_beside(input: &Input) -> Option<PathBuf> {
    let folders = input.path.ancestors().skip(1).take(2);
    folders.map(|folder| folder.join(CLASSES)).find(|path| path.is_file())
}

/// Refuses a codec that cannot be unpacked, in the columns that are read.
fn check_codecs(builder: &columnar::Builder, roots: &ProjectionMask) -> Result<()> {
    for group in builder.metadata().row_groups() {
        let columns = group.columns().iter().enumerate();
        for (_, column) in columns.filter(|(leaf, _)| roots.leaf_included(*leaf)) {
            if column.compression() == Compression::LZO {
                let name = column.column_path().string();
                return Err(not_supported(&format!("the codec LZO of column {name}")));
            }
        }
    }
    Ok(())
}

fn not_supported(what: &str) -> Error {
    Error::usage(format!(
        "{what} is not supported: write the file again, for example with the codec zstd"
    ))
}

/// Reads one file to its end or to its damage.
fn read(
    mut reader: ParquetRecordBatchReader,
    columns: &Columns,
    input: &Input,
    visit: Visit<'_>,
) -> Result<()> {
    let mut first = 0;
    loop {
        // A panic of the reader is an error, too.
        let why = match guarded(|| Ok(reader.next())) {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(batch))) => match guarded(|| columns.rows(&batch)) {
                Ok(rows) => {
                    for (index, row) in rows.into_iter().enumerate() {
                        visit(columns.found(row, input, first + index))?;
                    }
                    first += batch.num_rows();
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Ok(Some(Err(error))) => error.to_string(),
            Err(error) => error.to_string(),
        };

        // The reader's word for a part of the format that it does not know.
        if why.contains("NYI") || why.contains("not supported") {
            return Err(not_supported(&format!("a part of its format ({why})")))
                .context(|| format!("reading {}", input.path.display()));
        }
        let reason = format!("damaged from row {first} on: {why}");
        return visit(Found::bad(Fault::DamagedFile, input.name.clone(), reason));
    }
}

/// Where the columns are, and what numbers of classes mean.
#[derive(Debug)]
struct Columns {
    image: (usize, String),
    caption: Option<(usize, String)>,
    label: Option<(usize, String)>,
    split: Option<(usize, String)>,
    classes: Vec<String>,
}

/// A row as it stands there.
#[derive(Debug, Default)]
struct Row {
    image: Option<Vec<u8>>,
    captions: Vec<String>,
    label: Label,
    split: Option<String>,
}

#[derive(Debug, Default)]
enum Label {
    #[default]
    None,
    Number(i64),
    Name(String),
}

impl Columns {
    fn of(schema: &Arc<Schema>, names: &ColumnNames, input: &Input) -> Result<Self> {
        let words: Vec<&str> =
            schema.fields().iter().map(|f| f.name().as_str()).collect();
        // A text beside the picture is its path or address, not the picture.
        let is_picture = |name: &str| {
            schema.field_with_name(name).is_ok_and(|field| holds_bytes(field.data_type()))
        };

        let pictures: Vec<&str> =
            words.iter().map(|&name| if is_picture(name) { name } else { "" }).collect();

        let find = |role| {
            let found = columns::find(role, names, &words)?;
            Ok::<_, Error>(found.map(|index| (index, words[index].to_owned())))
        };
        // Of columns with usual names, those count whose type fits their role.
        let among = |role, fits: &dyn Fn(&DataType) -> bool| {
            let kind = |name: &str| schema.field_with_name(name).map(Field::data_type);
            let fitting = words
                .iter()
                .map(|&name| if kind(name).is_ok_and(fits) { name } else { "" });

            let unasked = ColumnNames::default();
            let asked = match role {
                Role::Label => !names.label.is_empty(),
                _ => !names.caption.is_empty(),
            };
            if asked {
                return Ok(None);
            }

            let found = columns::find(role, &unasked, &fitting.collect::<Vec<_>>())?;
            Ok::<_, Error>(found.map(|index| (index, words[index].to_owned())))
        };

        if !names.image.is_empty() && words.contains(&names.image.as_str()) {
            let field = schema.field_with_name(&names.image);
            if let Ok(field) = field.map(Field::data_type)
                && !holds_bytes(field)
            {
                let name = &names.image;
                return Err(Error::usage(format!(
                    "column {name} is {field}, expected binary or a struct with bytes"
                )));
            }
        }

        let index = columns::required(Role::Image, names, &pictures)
            .context(|| format!("its columns are {}", words.join(", ")))?;
        let image = (index, words[index].to_owned());

        let caption = match among(Role::Caption, &is_textual)? {
            None => find(Role::Caption)?,
            found => found,
        };

        let label = match among(Role::Label, &is_label)? {
            // Not asked for, and not needed: it is about something else.
            None if caption.is_some() && names.label.is_empty() => None,
            None => find(Role::Label)?,
            found => found,
        };

        if caption.is_none() && label.is_none() {
            columns::required(Role::Caption, names, &words)?;
        }

        // The schema's own names of classes count before those of a file beside it.
        let mut classes = label
            .as_ref()
            .and_then(|(_, name)| class_names(schema, name))
            .unwrap_or_default();
        if classes.is_empty()
            && let Some(path) = classes_beside(input)
        {
            classes = lines(&path)?;
        }

        let split = find(Role::Split)?;
        let columns = Self { image, caption, label, split, classes };
        columns.check(schema)?;
        Ok(columns)
    }

    /// Refuses columns of another type than their role needs.
    fn check(&self, schema: &Schema) -> Result<()> {
        let kind = |column: &(usize, String)| schema.field(column.0).data_type().clone();
        if let Some(column) = &self.caption {
            let kind = kind(column);
            if !is_textual(&kind) {
                let name = &column.1;
                return Err(Error::usage(format!(
                    "column {name} is {kind}, expected text or a list of text: set \
                     dataset.columns.caption"
                )));
            }
        }

        let Some(column) = &self.label else { return Ok(()) };

        let (name, kind) = (&column.1, kind(column));
        if !is_label(&kind) {
            return Err(Error::usage(format!(
                "column {name} is {kind}, expected numbers or text: set \
                 dataset.columns.label"
            )));
        }

        if kind.is_integer() && self.classes.is_empty() && self.caption.is_none() {
            return Err(Error::failed(format!(
                "column {name} holds numbers of classes, and nothing says what the classes \
                 are called: put a {CLASSES} beside the file"
            )));
        }
        Ok(())
    }

    fn roots(&self) -> Vec<usize> {
        let others = [&self.caption, &self.label, &self.split];
        let others = others.into_iter().flatten().map(|column| column.0);
        std::iter::once(self.image.0).chain(others).collect()
    }

    /// The rows of a batch of the projected columns.
    fn rows(&self, batch: &RecordBatch) -> Result<Vec<Row>> {
        let column = |column: &(usize, String)| {
            let name = &column.1;
            let found = batch.column_by_name(name);
            found.ok_or_else(|| Error::corrupt(format!("column {name} is gone")))
        };

        let mut rows: Vec<Row> = Vec::new();
        rows.resize_with(batch.num_rows(), Row::default);

        let images = binary(column(&self.image)?)?;
        for (row, image) in rows.iter_mut().zip(images) {
            row.image = image;
        }

        if let Some(caption) = &self.caption {
            for (row, captions) in rows.iter_mut().zip(text_lists(column(caption)?)?) {
                row.captions = captions;
            }
        }

        if let Some(label) = &self.label {
            for (row, label) in rows.iter_mut().zip(labels(column(label)?)?) {
                row.label = label;
            }
        }

        if let Some(split) = &self.split {
            for (row, split) in rows.iter_mut().zip(texts(column(split)?)?) {
                row.split = split;
            }
        }
        Ok(rows)
    }

    fn found(&self, row: Row, input: &Input, index: usize) -> Found {
        let key = format!("{} row {index}", input.name);
        let Row { image, mut captions, label, split } = row;
        let Some(image) = image.filter(|bytes| !bytes.is_empty()) else {
            return Found::bad(Fault::NoPicture, key, "there are no bytes of a picture");
        };

        if image.len() as u64 > MAX_BYTES {
            return Found::bad(Fault::TooLarge, key, "the picture's file is too large");
        }

        let (label, class) = match label {
            Label::None => (None, None),
            Label::Name(name) => (None, Some(name)),
            Label::Number(number) => {
                let index = usize::try_from(number).ok();
                let class = index.and_then(|index| self.classes.get(index)).cloned();
                if class.is_none() && !self.classes.is_empty() {
                    let count = self.classes.len();
                    let why = format!("class {number} is none of the {count} named");
                    return Found::bad(Fault::UnknownClass, key, why);
                }
                (index, class)
            }
        };

        if captions.is_empty() {
            captions.extend(class.clone());
        }
        if captions.is_empty() {
            return Found::bad(Fault::NoCaption, key, "there is no caption");
        }

        // The column says the split of its row; without one, the name of the file does.
        let split = split.or_else(|| input.split.clone());
        if let Some(split) = split.as_ref().filter(|s| !super::files::is_plain_split(s)) {
            let why = format!("split {split:?}: expected lower-case letters and digits");
            return Found::bad(Fault::Malformed, key, why);
        }

        let weight = input.weight;
        Found::Pair(Pair { key, split, image, captions, class, label, weight })
    }
}

/// Names of a `ClassLabel` in what `datasets` writes into the schema.
fn class_names(schema: &Schema, column: &str) -> Option<Vec<String>> {
    let json = schema.metadata().get("huggingface")?;
    let json: serde_json::Value = serde_json::from_str(json).ok()?;
    let names = json.pointer("/info/features")?.get(column)?.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

fn is_textual(kind: &DataType) -> bool {
    is_text(kind) || lists_text(kind)
}

fn is_label(kind: &DataType) -> bool {
    is_text(kind) || kind.is_integer()
}

fn lists_text(kind: &DataType) -> bool {
    match kind {
        DataType::List(field) | DataType::LargeList(field) => is_text(field.data_type()),
        _ => false,
    }
}

fn holds_bytes(kind: &DataType) -> bool {
    match kind {
        DataType::Struct(fields) => {
            fields.iter().any(|f| f.name() == "bytes" && is_binary(f.data_type()))
        }
        kind => is_binary(kind),
    }
}

fn converted(array: &ArrayRef, kind: &DataType) -> Result<ArrayRef> {
    cast(array, kind).context(|| format!("reading {} as {kind}", array.data_type()))
}

/// Bytes of binary values, or of the member `bytes`.
fn binary(array: &ArrayRef) -> Result<Vec<Option<Vec<u8>>>> {
    let bytes = match array.as_struct_opt() {
        None => Arc::clone(array),
        Some(members) => {
            let bytes = members.column_by_name("bytes").map(Arc::clone);
            bytes.ok_or_else(|| Error::corrupt("a picture has no member bytes"))?
        }
    };
    let bytes = converted(&bytes, &DataType::LargeBinary)?;
    let values = bytes.as_binary::<i64>();
    let one = |i| {
        let there = array.is_valid(i) && values.is_valid(i);
        there.then(|| values.value(i).to_vec())
    };
    Ok((0..array.len()).map(one).collect())
}

/// Trimmed texts; absent where null or empty.
fn texts(array: &ArrayRef) -> Result<Vec<Option<String>>> {
    let array = converted(array, &DataType::LargeUtf8)?;
    let values = array.as_string::<i64>();
    let one = |i| values.is_valid(i).then(|| values.value(i).trim().to_owned());
    Ok((0..values.len()).map(|i| one(i).filter(|text| !text.is_empty())).collect())
}

/// Texts or lists of texts as lists.
fn text_lists(array: &ArrayRef) -> Result<Vec<Vec<String>>> {
    if is_text(array.data_type()) {
        return Ok(texts(array)?.into_iter().map(|t| t.into_iter().collect()).collect());
    }
    let element = Arc::new(Field::new_list_field(DataType::LargeUtf8, true));
    let array = converted(array, &DataType::LargeList(element))?;
    let lists = array.as_list::<i64>();
    let one = |i| {
        if lists.is_null(i) {
            return Ok(Vec::new());
        }
        Ok(texts(&lists.value(i))?.into_iter().flatten().collect())
    };
    (0..lists.len()).map(one).collect()
}

fn labels(array: &ArrayRef) -> Result<Vec<Label>> {
    if is_text(array.data_type()) {
        let name = |text: Option<String>| text.map_or(Label::None, Label::Name);
        return Ok(texts(array)?.into_iter().map(name).collect());
    }
    let array = converted(array, &DataType::Int64)?;
    let values = array.as_primitive::<Int64Type>();
    let one = |i| {
        if values.is_null(i) { Label::None } else { Label::Number(values.value(i)) }
    };
    Ok((0..values.len()).map(one).collect())
}

#[cfg(test)]
#[path = "parquet_tests.rs"]
mod tests;
