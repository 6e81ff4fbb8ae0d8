//! Opening a Parquet file of anybody: its headers are walked before its reader sees them.
//!
//! Footer and page headers are written in Thrift's compact protocol. The reader of the parquet
//! crate passes over fields that it does not know, and there it trusts every length: lists in
//! lists of two thousand million nothings take it years (found by `tests/fuzz`). So every
//! header is walked here first, strictly, and what a page claims to hold is bounded before
//! anything is unpacked.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::hostile::guarded;
use crate::error::{Error, Result};

/// Largest page, unpacked. Writers aim at 1 MiB, but do not part one picture.
const MOST_UNPACKED: u64 = 512 << 20;

/// Values that any page may hold: a constant column of a row group of a million rows, the
/// most that writers make unasked, is one page of some twenty bytes.
const FREE_VALUES: u64 = 1 << 21;

/// Values of a larger page for each of its bytes.
const VALUES_A_BYTE: u64 = 1 << 14;

/// Deepest nesting of a header.
const MOST_LEVELS: usize = 32;

/// Longest header of a page; statistics of long texts stand in it.
const LONGEST_HEADER: u64 = 1 << 20;

/// A reader of a Parquet file whose headers make sense.
pub type Builder = ParquetRecordBatchReaderBuilder<File>;

/// Opens a Parquet file. An error does not name it: the caller does.
pub fn open(file: File) -> Result<Builder> {
    guarded(|| {
        let not = |why: String| Error::corrupt(format!("not a Parquet file: {why}"));
        let size = file.metadata().map_err(|e| not(e.to_string()))?.len();
        check_footer(&file, size).map_err(not)?;
        let pages = file.try_clone().map_err(|e| not(e.to_string()))?;
        let builder = Builder::try_new(file)
            .map_err(|e| Error::corrupt("not a Parquet file").caused_by(e))?;
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
    let [a, b, c, d, magic @ ..] = tail;
    if magic != *b"PAR1" {
        return Err("it does not end in PAR1".to_owned());
    }
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    let start = at.checked_sub(length).ok_or("its footer is longer than the file")?;
    let bytes = read(file, start, length)?;
    Walk::new(&bytes).structure(&mut Vec::new())
}

/// Walks the headers of all pages of a column.
fn check_pages(
    file: &File,
    size: u64,
    start: u64,
    length: u64,
) -> std::result::Result<(), String> {
    let end = start.checked_add(length).filter(|end| *end <= size);
    let end = end.ok_or("it lies beyond the end of the file")?;
    let mut at = start;
    while at < end {
        let mut window = 1 << 12;
        let header = loop {
            let bytes = read(file, at, window.min(end - at))?;
            let mut walk = Walk::new(&bytes);
            match walk.structure(&mut Vec::new()) {
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
        if values > FREE_VALUES.max(bytes.saturating_mul(VALUES_A_BYTE)) {
            return Err(format!("{values} values in {bytes} bytes"));
        }
        at = at.saturating_add(bytes);
    }
    if at == end { Ok(()) } else { Err("it ends beyond its column".to_owned()) }
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

/// A strict walk through Thrift's compact protocol.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    header: Header,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, header: Header::default() }
    }

    /// Walks a structure whose fields lie below `path`.
    fn structure(&mut self, path: &mut Vec<u64>) -> std::result::Result<(), String> {
        if path.len() > MOST_LEVELS {
            return Err(format!("its header is nested deeper than {MOST_LEVELS} levels"));
        }
        let mut id = 0_u64;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                self.header.length = self.at as u64;
                return Ok(());
            }
            // Steps of 1 to 15; anything else spells the number out, doubled (zigzag).
            id = match byte >> 4 {
                0 => self.number()? >> 1,
                step => id.saturating_add(step.into()),
            };
            path.push(id);
            // The value of a Boolean field is its type.
            if !matches!(byte & 15, 1 | 2) {
                self.value(byte & 15, path)?;
            }
            path.pop();
        }
    }

    fn value(
        &mut self,
        kind: u8,
        path: &mut Vec<u64>,
    ) -> std::result::Result<(), String> {
        match kind {
            3 => drop(self.byte()?),
            4..=6 => {
                let number = self.number()?;
                self.note(path, number);
            }
            7 => self.skip(8)?,
            8 => {
                let length = self.number()?;
                self.skip(length)?;
            }
            9 | 10 => {
                let head = self.byte()?;
                let count =
                    if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
                if matches!(head & 15, 0..=2) {
                    return Err("its header has a list of nothings".to_owned());
                }
                path.push(0);
                for _ in 0..count {
                    self.item(head & 15, path)?;
                }
                path.pop();
            }
            12 => self.structure(path)?,
            other => return Err(format!("its header has a field of type {other}")),
        }
        Ok(())
    }

    /// An item of a list; each takes a byte at least.
    fn item(&mut self, kind: u8, path: &mut Vec<u64>) -> std::result::Result<(), String> {
        if path.len() > MOST_LEVELS {
            return Err(format!("its header is nested deeper than {MOST_LEVELS} levels"));
        }
        self.value(kind, path)
    }

    /// Keeps what is asked of a page header. Numbers are zigzag; a negative one becomes huge.
    fn note(&mut self, path: &[u64], zigzag: u64) {
        let number = if zigzag & 1 == 0 { zigzag >> 1 } else { u64::from(u32::MAX) };
        match path {
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
        Walk::new(bytes).structure(&mut Vec::new())
    }

    #[test]
    fn lists_that_take_years_to_pass_over_are_refused_at_once() {
        // A field of lists in lists, each of 2^31 - 1 items.
        let lists = [0x19, 0xf9, 0xff, 0xff, 0xff, 0xff, 0x07].repeat(6);
        assert!(walk(&lists).unwrap_err().contains("too early"));
        let nothings = [0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0];
        assert!(walk(&nothings).unwrap_err().contains("list of nothings"));
        let deep = [0x1c_u8].repeat(100_000);
        assert!(walk(&deep).unwrap_err().contains("nested deeper"));
        let text = [0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert!(walk(&text).unwrap_err().contains("too early"));
    }
}
