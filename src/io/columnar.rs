//! Opening a Parquet file from anywhere: its headers are walked before its reader sees
//! them.
//!
//! Footer and page headers are written in Thrift's compact protocol. The reader of the parquet
//! crate passes over fields that it does not know, and there it trusts every length, even
//! beyond the end: lists in lists of two thousand million nothings take it years (found by
//! `tests/fuzz`). So every header is walked here first, strictly, and what a page claims to
//! hold is bounded before anything is unpacked.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;

use super::hostile::guarded;
use crate::error::{Error, Result};

/// Largest page, unpacked. Writers aim at 1 MiB, but do not part one picture.
const MOST_UNPACKED: u64 = 512 << 20;

/// Values that any page may hold: a constant column of a row group of a million rows, the
/// most that writers make unasked, is one page of some twenty bytes.
const FREE_VALUES: u64 = 1 << 21;

/// Most values of a larger page for each of its bytes.
const VALUES_PER_BYTE: u64 = 1 << 14;

/// Deepest nesting of a header.
const MOST_LEVELS: usize = 32;

/// Longest header of a page; statistics of long texts stand in it.
const LONGEST_HEADER: u64 = 1 << 20;

/// What is said of a file that only its owner can read.
const ENCRYPTED: &str = "it is encrypted, which is not supported";

/// A reader of a Parquet file whose headers make sense.
pub type Builder = ParquetRecordBatchReaderBuilder<File>;

/// Opens a Parquet file. An error does not name it: the caller does.
pub fn open(file: File) -> Result<Builder> {
    guarded(|| {
        let not = |why: String| {
            if why == ENCRYPTED {
                return Error::usage(why);
            }
            Error::corrupt(format!("not a Parquet file: {why}"))
        };

        let size = file.metadata().map_err(|e| not(e.to_string()))?.len();
        check_footer(&file, size).map_err(not)?;
        let pages = file.try_clone().map_err(|e| not(e.to_string()))?;

        let builder = Builder::try_new(file)
            .map_err(|e| Error::corrupt("not a Parquet file").caused_by(e))?;

        // The footer can be trusted from here on, but not the pages that it points to.
        for group in builder.metadata().row_groups() {
            for column in group.columns() {
                let (start, length) = column.byte_range();
                let name = column.column_path().string();
                check_pages(&pages, size, start, length).map_err(|why| {
                    Error::corrupt(format!("damaged: a page of column {name}: {why}"))
                })?;
            }
        }
        Ok(builder)
    })
}

fn check_footer(file: &File, size: u64) -> std::result::Result<(), String> {
    let mut tail = [0_u8; 8];
    let at = size.checked_sub(8).ok_or("it is too short")?;
    file.read_exact_at(&mut tail, at).map_err(|e| e.to_string())?;

    // The file ends with the footer's length and four letters.
    let [a, b, c, d, magic @ ..] = tail;
    if magic == *b"PARE" {
        return Err(ENCRYPTED.to_owned());
    }
    if magic != *b"PAR1" {
        return Err("it does not end in PAR1".to_owned());
    }

    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    let start = at.checked_sub(length).ok_or("its footer is longer than the file")?;
    let bytes = read(file, start, length)?;
    Walk::new(&bytes).structure(FOOTER)
}

/// Where each value of a column of bytes starts in the file, given the values' lengths: any of
/// them can then be read on its own.
///
/// The column has to be written plainly: without nulls, compression and dictionary, as
/// [`super::table::TableWriter`] writes columns of bytes.
pub fn places(file: &File, name: &str, lengths: &[u32]) -> Result<Vec<u64>> {
    let damaged = |why: String| Error::corrupt(format!("column {name}: {why}"));
    let again = || file.try_clone().map_err(|e| damaged(e.to_string()));
    let size = file.metadata().map_err(|e| damaged(e.to_string()))?.len();

    let builder = open(again()?)?;
    let mut places = Vec::with_capacity(lengths.len());

    for group in builder.metadata().row_groups() {
        let columns = group.columns();
        let column = columns.iter().find(|c| c.column_path().string() == name);
        let column = column.ok_or_else(|| damaged("it is not there".to_owned()))?;

        // Anything else would put other bytes between the values.
        let plain = column.compression() == Compression::UNCOMPRESSED
            && column.column_descr().max_def_level() == 0
            && column.dictionary_page_offset().is_none();
        if !plain {
            return Err(damaged("it is not written plainly".to_owned()));
        }

        let (start, length) = column.byte_range();
        each_page(file, size, start, length, &mut |at, page| {
            let mut at = at + page.length;
            let end = at + page.packed;
            for _ in 0..page.values {
                let length = lengths.get(places.len()).ok_or("it has more values")?;
                // A value is its length and its bytes.
                places.push(at + 4);
                at += 4 + u64::from(*length);
            }

            // The lengths come from another column: if they are wrong, so is every place.
            if at == end {
                Ok(())
            } else {
                Err("its values have other lengths".to_owned())
            }
        })
        .map_err(damaged)?;
    }

    if places.len() != lengths.len() {
        return Err(damaged(format!("{} values, not {}", places.len(), lengths.len())));
    }
    Ok(places)
}

/// Walks the headers of all pages of a column.
fn check_pages(
    file: &File,
    size: u64,
    start: u64,
    length: u64,
) -> std::result::Result<(), String> {
    each_page(file, size, start, length, &mut |_, _| Ok(()))
}

/// Calls `visit` with the place and the header of every page of a column.
fn each_page(
    file: &File,
    size: u64,
    start: u64,
    length: u64,
    visit: &mut dyn FnMut(u64, &Header) -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    let end = start.checked_add(length).filter(|end| *end <= size);
    let end = end.ok_or("it lies beyond the end of the file")?;

    let mut at = start;
    while at < end {
        // A header's length is not known before it was read, so a small window grows as
        // needed.
        let mut window = 1 << 12;
        let header = loop {
            let bytes = read(file, at, window.min(end - at))?;
            let mut walk = Walk::new(&bytes);
            match walk.structure(PAGE) {
                Ok(()) => break walk.header,
                Err(why) if window >= LONGEST_HEADER.min(end - at) => return Err(why),
                Err(_) => window = (window << 4).min(LONGEST_HEADER),
            }
        };

        if header.unpacked > MOST_UNPACKED {
            let unpacked = header.unpacked;
            return Err(format!("{unpacked} bytes, accepted are {MOST_UNPACKED}"));
        }

        let (values, bytes) =
            (header.values, header.length.saturating_add(header.packed));
        if values > FREE_VALUES.max(bytes.saturating_mul(VALUES_PER_BYTE)) {
            return Err(format!("{values} values in {bytes} bytes"));
        }

        let next = at.saturating_add(bytes);
        if next > end {
            return Err("it ends beyond its column".to_owned());
        }
        visit(at, &header)?;
        at = next;
    }
    Ok(())
}

fn read(file: &File, start: u64, length: u64) -> std::result::Result<Vec<u8>, String> {
    let length = usize::try_from(length).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, start).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// What a page header says.
#[derive(Debug, Default)]
struct Header {
    length: u64,
    packed: u64,
    unpacked: u64,
    values: u64,
}

/// The form of a field. The parquet crate takes a field that it knows for what the format says
/// and not for what the bytes say, so the two have to agree; fields that it does not know it
/// passes over.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// Of a field that is passed over.
    Any,
    Bool,
    Byte,
    /// Of 16, 32 or 64 bits: written alike.
    Number,
    Double,
    Binary,
    Struct(Fields),
    List(&'static Self),
}

/// The fields of a structure by number.
type Fields = &'static [(u64, Form)];

use Form::{Any, Binary, Bool, Byte, Double, List, Number, Struct};

/// A structure without fields, as most members of unions are.
const EMPTY: Form = Struct(&[]);

const NUMBERS: Form = List(&Number);

const KEY_VALUES: Form = List(&Struct(&[(1, Binary), (2, Binary)]));

const STATISTICS: Form = Struct(&[
    (1, Binary),
    (2, Binary),
    (3, Number),
    (4, Number),
    (5, Binary),
    (6, Binary),
    (7, Bool),
    (8, Bool),
    (9, Number),
]);

const TIME: Form =
    Struct(&[(1, Bool), (2, Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))]);

const LOGICAL_TYPE: Form = Struct(&[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Struct(&[(1, Number), (2, Number)])),
    (6, EMPTY),
    (7, TIME),
    (8, TIME),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Binary)])),
    (18, Struct(&[(1, Binary), (2, Number)])),
]);

const SCHEMA_ELEMENT: Form = Struct(&[
    (1, Number),
    (2, Number),
    (3, Number),
    (4, Binary),
    (5, Number),
    (6, Number),
    (7, Number),
    (8, Number),
    (9, Number),
    (10, LOGICAL_TYPE),
]);

const BOX: Form = Struct(&[
    (1, Double),
    (2, Double),
    (3, Double),
    (4, Double),
    (5, Double),
    (6, Double),
    (7, Double),
    (8, Double),
]);

const COLUMN: Form = Struct(&[
    (1, Number),
    (2, NUMBERS),
    (3, List(&Binary)),
    (4, Number),
    (5, Number),
    (6, Number),
    (7, Number),
    (8, KEY_VALUES),
    (9, Number),
    (10, Number),
    (11, Number),
    (12, STATISTICS),
    (13, List(&Struct(&[(1, Number), (2, Number), (3, Number)]))),
    (14, Number),
    (15, Number),
    (16, Struct(&[(1, Number), (2, NUMBERS), (3, NUMBERS)])),
    (17, Struct(&[(1, BOX), (2, NUMBERS)])),
]);

const CHUNK: Form = Struct(&[
    (1, Binary),
    (2, Number),
    (3, COLUMN),
    (4, Number),
    (5, Number),
    (6, Number),
    (7, Number),
    (9, Binary),
]);

const ROW_GROUP: Form = Struct(&[
    (1, List(&CHUNK)),
    (2, Number),
    (3, Number),
    (4, List(&Struct(&[(1, Number), (2, Bool), (3, Bool)]))),
    (5, Number),
    (6, Number),
    (7, Number),
]);

/// `FileMetaData` of the format.
const FOOTER: Fields = &[
    (1, Number),
    (2, List(&SCHEMA_ELEMENT)),
    (3, Number),
    (4, List(&ROW_GROUP)),
    (5, KEY_VALUES),
    (6, Binary),
    (7, List(&Struct(&[(1, EMPTY), (2, EMPTY)]))),
    (9, Binary),
];

/// `PageHeader` of the format.
const PAGE: Fields = &[
    (1, Number),
    (2, Number),
    (3, Number),
    (4, Number),
    (5, Struct(&[(1, Number), (2, Number), (3, Number), (4, Number), (5, STATISTICS)])),
    (6, EMPTY),
    (7, Struct(&[(1, Number), (2, Number), (3, Bool)])),
    (
        8,
        Struct(&[
            (1, Number),
            (2, Number),
            (3, Number),
            (4, Number),
            (5, Number),
            (6, Number),
            (7, Bool),
            (8, STATISTICS),
        ]),
    ),
];

/// A strict walk through Thrift's compact protocol.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    path: Vec<u64>,
    header: Header,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, path: Vec::new(), header: Header::default() }
    }

    /// Walks a structure; fields that are not in `fields` may be anything.
    fn structure(&mut self, fields: Fields) -> std::result::Result<(), String> {
        let mut id = 0_u64;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                self.header.length = self.at as u64;
                return Ok(());
            }

            // Steps of 1 to 15; anything else spells the number out (zigzag).
            id = match byte >> 4 {
                0 => match self.number()? {
                    number if number & 1 == 0 => number >> 1,
                    _ => return Err("its header has a negative field".to_owned()),
                },
                step => id.saturating_add(step.into()),
            };

            let form = fields.iter().find(|(field, _)| *field == id);
            self.path.push(id);
            let kind = byte & 15;

            // The value of a Boolean field is its type.
            if !matches!(kind, 1 | 2) {
                self.value(kind, form.map_or(Any, |(_, form)| *form))?;
            } else if form.is_some_and(|(_, form)| !matches!(form, Bool)) {
                return Err(self.unexpected(kind));
            }
            self.path.pop();
        }
    }

    fn value(&mut self, kind: u8, form: Form) -> std::result::Result<(), String> {
        if self.path.len() > MOST_LEVELS {
            return Err(format!("its header is nested deeper than {MOST_LEVELS} levels"));
        }
        match (kind, form) {
            (3, Any | Byte) => drop(self.byte()?),
            (4..=6, Any | Number) => {
                let number = self.number()?;
                self.note(number);
            }
            (7, Any | Double) => self.skip(8)?,
            (8, Any | Binary) => {
                let length = self.number()?;
                self.skip(length)?;
            }
            (9 | 10, Any | List(_)) => {
                let item = if let List(item) = form { *item } else { Any };
                self.list(item)?;
            }
            (12, Any) => self.structure(&[])?,
            (12, Struct(fields)) => self.structure(fields)?,
            _ => return Err(self.unexpected(kind)),
        }
        Ok(())
    }

    fn list(&mut self, item: Form) -> std::result::Result<(), String> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
        // An item takes a byte at least; Booleans would not, but no header has a list of them.
        self.path.push(0);
        for _ in 0..count {
            self.value(head & 15, item)?;
        }
        self.path.pop();
        Ok(())
    }

    fn unexpected(&self, kind: u8) -> String {
        format!("its header has type {kind} in field {:?}", self.path)
    }

    /// Keeps what is asked of a page header. Numbers are zigzag; a negative one becomes huge.
    fn note(&mut self, zigzag: u64) {
        let number = if zigzag & 1 == 0 { zigzag >> 1 } else { u64::from(u32::MAX) };
        match self.path.as_slice() {
            [2] => self.header.unpacked = number,
            [3] => self.header.packed = number,
            // The values of a data page, a dictionary, and a data page of version 2.
            [5 | 7 | 8, 1] => self.header.values = number,
            _ => {}
        }
    }

    fn byte(&mut self) -> std::result::Result<u8, String> {
        let byte = self.bytes.get(self.at).ok_or("its header ends too early")?;
        self.at += 1;
        Ok(*byte)
    }

    fn skip(&mut self, count: u64) -> std::result::Result<(), String> {
        let left = self.bytes.len() - self.at;
        let count = usize::try_from(count).ok().filter(|count| *count <= left);
        self.at += count.ok_or("its header ends too early")?;
        Ok(())
    }

    fn number(&mut self) -> std::result::Result<u64, String> {
        let mut number = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
            if byte & 128 == 0 {
                return Ok(number);
            }
        }
        Err("its header has a number without end".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(bytes: &[u8]) -> std::result::Result<(), String> {
        Walk::new(bytes).structure(&[])
    }

    #[test]
    fn lists_that_take_years_to_pass_over_are_refused_at_once() {
        // A field of lists in lists, each of 2^31 - 1 items.
        let lists = [0x19, 0xf9, 0xff, 0xff, 0xff, 0xff, 0x07].repeat(6);
        assert!(walk(&lists).unwrap_err().contains("too early"));
        let nothings = [0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0];
        assert!(walk(&nothings).unwrap_err().contains("type 1"));
        let deep = [0x1c_u8].repeat(100_000);
        assert!(walk(&deep).unwrap_err().contains("nested deeper"));
        let text = [0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert!(walk(&text).unwrap_err().contains("too early"));
    }

    #[test]
    fn a_known_field_of_another_type_is_refused_and_an_unknown_one_passed_over() {
        // Field 5 of a page header is a structure; here it is the number 4.
        let error = Walk::new(&[0x55, 0x08, 0]).structure(PAGE).unwrap_err();
        assert!(error.contains("type 5 in field [5]"), "{error}");
        Walk::new(&[0xa5, 0x08, 0]).structure(PAGE).unwrap();
        // The same field 10, its number spelt out.
        Walk::new(&[0x05, 20, 0x08, 0]).structure(PAGE).unwrap();
        let error = Walk::new(&[0x51, 0]).structure(PAGE).unwrap_err();
        assert!(error.contains("type 1 in field [5]"), "{error}");
    }
}
