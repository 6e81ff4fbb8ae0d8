//! What the packages that read our formats let through, refused here.
//!
//! parquet asserts where a file lies about itself, and a panic must not reach who reads other
//! people's files. safetensors reads its header into a map, so that of two tensors of a name
//! one is lost without a word.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

/// Runs a reader of another package; its panic becomes an error without further words, because
/// its message speaks of that package's code.
///
/// Nothing of the reader may be used after an error.
pub fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::corrupt("it is damaged: its sizes or offsets contradict each other"))
    })
}

/// Refuses a safetensors file whose header names a tensor twice. Anything else that is wrong
/// is left to the format's own parser.
pub fn check_names(bytes: &[u8]) -> Result<()> {
    let Some((size, rest)) = bytes.split_first_chunk::<8>() else { return Ok(()) };
    let size = usize::try_from(u64::from_le_bytes(*size)).unwrap_or(usize::MAX);
    rest.get(..size).map_or(Ok(()), check_header)
}

/// [`check_names`] of a header alone.
pub(super) fn check_header(header: &[u8]) -> Result<()> {
    match serde_json::from_slice::<Names>(header) {
        Err(e) if e.to_string().contains(TWICE) => Err(Error::corrupt(e.to_string())),
        _ => Ok(()),
    }
}

const TWICE: &str = "is there twice";

/// The names of a header, each once.
struct Names;

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for Names {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("tensor {name} {TWICE}")));
            }
            seen.insert(name);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_reader_is_an_error_of_ours() {
        let error = guarded::<()>(|| panic!("column start")).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused_however_it_is_spelt() {
        let twice = br#"{"ab":{"x":[1]},"a\u0062":{}}"#;
        assert!(
            check_header(twice).unwrap_err().to_string().contains("ab is there twice")
        );
        assert!(check_header(br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
        assert!(check_header(b"[").is_ok(), "left to the parser");
    }
}
