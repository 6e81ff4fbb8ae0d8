//! What a pickle of PyTorch would cost to read, counted before it is read.
//!
//! A pickle is a program: a few bytes of it can copy an object onto itself until the memory
//! is full, or nest objects until the stack is. candle's reader runs no code of the pickle,
//! but it has no limits either. So the program is walked here first with counters in place of
//! objects, and only a state dict of ordinary size is handed on.

use candle_core::pickle::{Object, Stack};

use crate::error::{Error, Result};
use crate::num;

/// Most bytes of a pickle; that of a billion-parameter checkpoint has a few hundred thousand.
pub(super) const MOST_BYTES: u64 = 64 << 20;

/// Most objects, copies included, that a pickle may make; each takes candle about 60 bytes.
const MOST_OBJECTS: u64 = 4_000_000;

/// Deepest nesting; a training checkpoint has about ten levels.
const MOST_LEVELS: u32 = 100;

/// The newest protocol that `torch.save` writes unasked.
const PROTOCOL: u8 = 2;

/// Reads the object at the start of `bytes`, after a walk that bounds its cost; returns it
/// with the number of its bytes.
///
/// # Panics
/// candle's reader indexes without looking, so a hostile pickle can make it panic.
pub(super) fn read(bytes: &[u8], place: &str) -> Result<(Object, usize)> {
    let length = Walk::new(bytes)
        .run()
        .map_err(|(at, why)| Error::corrupt(format!("{place}, byte {at}: {why}")))?;
    let damaged =
        |e| Error::corrupt(format!("{place} is not a readable pickle")).caused_by(e);

    let mut stack = Stack::empty();
    // Nothing behind the walked part is shown to candle.
    stack.read_loop(&mut &bytes[..length]).map_err(damaged)?;
    Ok((stack.finalize().map_err(damaged)?, length))
}

/// An object by what it costs.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// The object and all objects inside of it.
    objects: u64,
    /// How deep they are nested, 1 for an object without parts.
    levels: u32,
    /// Whether it is a mark, from which later operations collect their parts.
    mark: bool,
}

impl Cost {
    const ONE: Self = Self { objects: 1, levels: 1, mark: false };

    /// An object around others.
    fn around(parts: &[Self]) -> Self {
        let objects = parts.iter().fold(1, |sum, part| part.objects.saturating_add(sum));
        let levels = parts.iter().map(|part| part.levels).max().unwrap_or(0) + 1;
        Self { objects, levels, mark: false }
    }
}

/// The state of a walk through a pickle.
struct Walk<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    stack: Vec<Cost>,
    /// Objects kept by number, of which each later use is a copy.
    memo: std::collections::BTreeMap<u32, Cost>,
    /// Objects made so far, copies included.
    made: u64,
}

/// What is wrong, and where.
type Refusal = (usize, String);

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let memo = std::collections::BTreeMap::new();
        Self { bytes, at: 0, stack: Vec::new(), memo, made: 0 }
    }

    /// Walks to the end of the program; returns its length.
    fn run(mut self) -> std::result::Result<usize, Refusal> {
        loop {
            let at = self.at;
            let stop = self.step().map_err(|why| (at, why))?;
            if stop {
                return Ok(self.at);
            }
        }
    }

    /// Runs one operation; true at the end. Those that `torch.save` does not write are refused.
    fn step(&mut self) -> std::result::Result<bool, String> {
        let operation = self.take(1)?[0];
        match operation {
            b'.' => return Ok(true),
            0x80 => {
                let protocol = self.take(1)?[0];
                if protocol > PROTOCOL {
                    return Err(format!(
                        "it is written with pickle protocol {protocol}, expected {PROTOCOL}: \
                         save it again in Python with torch.save(torch.load(path, \
                         weights_only=False), path), if you trust where it is from"
                    ));
                }
            }

            // A class by its module and its name; candle only compares them.
            b'c' => {
                self.line()?;
                self.line()?;
                self.push(Cost::ONE)?;
            }

            // Numbers of fixed length, and one whose length stands before it.
            b'K' => self.value(1)?,
            b'M' => self.value(2)?,
            b'J' => self.value(4)?,
            b'G' => self.value(8)?,
            0x8a => {
                let length = self.take(1)?[0];
                self.value(usize::from(length))?;
            }

            // Text counts by its length, as memory does.
            b'X' => {
                let length = num::widen(self.number(4)?);
                self.take(length)?;
                let objects = 1 + (length / 32) as u64;
                self.push(Cost { objects, ..Cost::ONE })?;
            }

            // None, booleans, empty containers, and a mark.
            b'N' | 0x88 | 0x89 | b')' | b']' | b'}' => self.push(Cost::ONE)?,
            b'(' => self.push(Cost { mark: true, ..Cost::ONE })?,

            // Tuples, persistent ids, calls, and what is put into a list or a dict.
            0x85 | b'Q' => self.join(1)?,
            0x86 | 0x81 | b'R' | b'b' | b'a' => self.join(2)?,
            0x87 | b's' => self.join(3)?,
            b't' | b'd' => self.join_marked(0)?,
            b'u' | b'e' => self.join_marked(1)?,

            // Copies of kept objects, and objects to keep.
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,

            other => {
                return Err(format!(
                    "operation {other:#04x} does not occur in a state dict of tensors"
                ));
            }
        }
        Ok(false)
    }

    /// The next bytes.
    fn take(&mut self, count: usize) -> std::result::Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or("the pickle ends too early")?;
        self.at += count;
        Ok(taken)
    }

    /// A little-endian number of at most four bytes.
    fn number(&mut self, width: usize) -> std::result::Result<u32, String> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    /// Skips a line of text.
    fn line(&mut self) -> std::result::Result<(), String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        self.at += 1 + end.ok_or("a name without end")?;
        Ok(())
    }

    /// Skips a number of `width` bytes, which is one object.
    fn value(&mut self, width: usize) -> std::result::Result<(), String> {
        self.take(width)?;
        self.push(Cost::ONE)
    }

    /// Puts an object on the stack, unless it is nested too deep.
    fn push(&mut self, cost: Cost) -> std::result::Result<(), String> {
        if cost.levels > MOST_LEVELS {
            return Err(format!("objects nested deeper than {MOST_LEVELS} levels"));
        }
        self.stack.push(cost);
        Ok(())
    }

    /// Counts what is made anew; moving an object into another costs nothing.
    fn count(&mut self, objects: u64) -> std::result::Result<(), String> {
        self.made = self.made.saturating_add(objects);
        if self.made > MOST_OBJECTS {
            return Err(format!("it makes more than {MOST_OBJECTS} objects"));
        }
        Ok(())
    }

    /// Joins the last `count` objects to one.
    fn join(&mut self, count: usize) -> std::result::Result<(), String> {
        let from = self.stack.len().checked_sub(count).ok_or("an object is missing")?;
        self.join_from(from)
    }

    /// Joins everything after the last mark, and `before` objects in front of it.
    fn join_marked(&mut self, before: usize) -> std::result::Result<(), String> {
        let mark = self.stack.iter().rposition(|cost| cost.mark);
        let from = mark.and_then(|mark| mark.checked_sub(before));
        self.join_from(from.ok_or("a mark is missing")?)
    }

    /// Joins the objects from an index on to one.
    fn join_from(&mut self, from: usize) -> std::result::Result<(), String> {
        let joined = Cost::around(&self.stack[from..]);
        self.stack.truncate(from);
        self.count(1)?;
        self.push(joined)
    }

    /// Copies a kept object, with everything inside of it.
    fn get(&mut self, width: usize) -> std::result::Result<(), String> {
        let id = self.number(width)?;
        let cost = self.memo.get(&id).copied();
        let cost = cost.ok_or_else(|| format!("object {id} was never kept"))?;
        self.count(cost.objects)?;
        self.push(cost)
    }

    /// Keeps the last object under a number. candle keeps a copy, so it counts as one.
    fn put(&mut self, width: usize) -> std::result::Result<(), String> {
        let id = self.number(width)?;
        let cost = self.stack.last().copied().ok_or("nothing to keep")?;
        self.count(cost.objects)?;
        self.memo.insert(id, cost);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(bytes: &[u8]) -> std::result::Result<usize, String> {
        Walk::new(bytes).run().map_err(|(_, why)| why)
    }

    #[test]
    fn an_object_copied_onto_itself_is_refused_at_the_limit() {
        // A list with itself ten times, kept, and so on: 10^n objects in 30 n bytes.
        let mut bomb = b"\x80\x02]q\x00".to_vec();
        for _ in 0..12 {
            bomb.extend_from_slice(
                b"](h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00eq\x00",
            );
        }
        bomb.push(b'.');
        let error = walk(&bomb).unwrap_err();
        assert!(error.contains("more than 4000000 objects"), "{error}");
    }

    #[test]
    fn deep_nesting_and_foreign_operations_are_refused() {
        let mut deep = b"\x80\x02)".to_vec();
        deep.extend([0x85; 500]);
        deep.push(b'.');
        assert!(walk(&deep).unwrap_err().contains("nested deeper"), "levels");
        let error = walk(b"\x80\x02\x95\x00").unwrap_err();
        assert!(error.contains("operation 0x95"), "{error}");
        let error = walk(b"\x80\x04\x95\x00").unwrap_err();
        assert!(error.contains("protocol 4, expected 2: save it again"), "{error}");
        assert!(walk(b"\x80\x02X\xff\xff\xff\xffabc").is_err());
        assert!(walk(b"\x80\x02\x85.").is_err());
        assert!(walk(b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.").is_ok(), "not run");
    }
}
