//! One object of a foreign JSON file, read field by field with its place for messages.
//!
//! Every field has a [`Rule`]: it is read, it changes nothing that is computed here, or only
//! one value of it is supported. A field without a rule is refused by its name, so that a
//! setting that this crate does not know can never be dropped silently.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Context, Error, Result};
use crate::num::truncate_usize;

/// No model has more of anything; what is beyond is an attack or a mistake.
pub(super) const LARGEST: usize = 1 << 24;

/// What is done with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// It is read and applied.
    Read,
    /// It changes nothing that is computed here.
    Ignored,
    /// Only these values, written as JSON, are supported; the first is the default.
    Only(&'static [&'static str]),
}

/// The rules of the fields of one object.
pub(super) type Rules = [(&'static str, Rule)];

/// One object of a JSON file, with its place for messages.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) place: String,
    pub(super) map: Map<String, Value>,
}

impl Section {
    /// Reads the object that a file holds.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let text =
            std::fs::read_to_string(path).context(|| format!("reading {place}"))?;
        Self::parse(&text, place)
    }

    /// Reads the object that a text holds; `place` is what messages call it.
    pub(super) fn parse(text: &str, place: String) -> Result<Self> {
        let map = serde_json::from_str(text).map_err(|e| {
            Error::corrupt(format!("{place} is not a JSON object")).caused_by(e)
        })?;
        Ok(Self { place, map })
    }

    /// The error for a field that has another value than `expected`.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let (place, found) = (&self.place, self.map.get(key).unwrap_or(&Value::Null));
        Error::failed(format!("{place}: {key} is {found}, expected {expected}"))
    }

    /// The field, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The object in a field that must be there.
    pub(super) fn section(&self, key: &str) -> Result<Self> {
        self.optional(key)?.ok_or_else(|| self.wrong(key, "an object"))
    }

    /// The object in a field that may be absent.
    pub(super) fn optional(&self, key: &str) -> Result<Option<Self>> {
        let place = format!("{}: {key}", self.place);
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { place, map: map.clone() })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// A whole number, or a list of equal ones as for the sides of a square.
    pub(super) fn count(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };

        let sides = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let first = sides.first().filter(|first| sides.iter().all(|side| side == *first));
        first
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=LARGEST).contains(n))
            .ok_or_else(|| self.wrong(key, "a positive whole number"))
    }

    /// The width `key` times `width`, rounded down as `open_clip` does.
    pub(super) fn multiple(&self, key: &str, width: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(4 * width) };

        let ratio = value.as_f64().filter(|ratio| *ratio > 0.0 && *ratio < 1e3);
        let ratio = ratio.ok_or_else(|| self.wrong(key, "a positive number"))?;
        Ok(truncate_usize(width as f64 * ratio))
    }

    /// A switch.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// Refuses fields without a rule, and values that their rule does not allow.
    ///
    /// Null means the default everywhere, as in the libraries that write these files.
    pub(super) fn obey(&self, rules: &[&Rules]) -> Result<()> {
        for (key, value) in self.map.iter().filter(|(_, value)| !value.is_null()) {
            let place = &self.place;
            let rule = rules.iter().copied().flatten().find(|(known, _)| known == key);

            let supported = match rule.map(|(_, rule)| rule) {
                None => "this field is not known",
                Some(Rule::Read | Rule::Ignored) => continue,
                Some(Rule::Only(values)) => {
                    if values.iter().any(|text| is(value, text)) {
                        continue;
                    }
                    &format!("only {} is supported", values[0])
                }
            };
            return Err(Error::failed(format!(
                "{place}: {key} = {value} is not supported; {supported}"
            )));
        }
        Ok(())
    }
}

/// Whether a value is the one that JSON text says; 0 and 0.0 are the same.
fn is(value: &Value, text: &str) -> bool {
    let Ok(other) = serde_json::from_str::<Value>(text) else { return false };
    // Files write one number in several ways: 0 and 0.0, or 1/255 with fewer digits.
    let equal_numbers = match (value.as_f64(), other.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-12,
        _ => false,
    };
    *value == other || equal_numbers
}

/// Three numbers, or one for all colors.
pub(super) fn colors(
    section: &Section,
    key: &str,
    default: [f64; 3],
) -> Result<[f64; 3]> {
    let Some(value) = section.get(key) else { return Ok(default) };

    let three = match value {
        Value::Array(list) => {
            let list: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
            list.and_then(|list| <[f64; 3]>::try_from(list).ok())
        }
        value => value.as_f64().map(|value| [value; 3]),
    };
    three.ok_or_else(|| section.wrong(key, "three numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_allowed_by_its_rule_or_refused_by_its_name() {
        const RULES: &Rules = &[
            ("read", Rule::Read),
            ("spare", Rule::Ignored),
            ("fixed", Rule::Only(&["false", "0"])),
        ];
        let obey = |text: &str| {
            let section = Section::parse(text, "x.json".to_owned()).unwrap();
            section.obey(&[RULES]).map_err(|e| e.to_string())
        };
        for fine in [
            r#"{"read": [1], "spare": {"a": 2}}"#,
            r#"{"fixed": false}"#,
            r#"{"fixed": 0.0, "unheard_of": null}"#,
        ] {
            assert_eq!(obey(fine), Ok(()), "{fine}");
        }
        let error = obey(r#"{"fixed": true}"#).unwrap_err();
        assert_eq!(
            error,
            "x.json: fixed = true is not supported; only false is supported"
        );
        assert!(obey(r#"{"other": false}"#).unwrap_err().contains("other = false"));
    }
}
