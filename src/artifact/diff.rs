//! What differs between two preimages, named key by key, old and new.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

/// One difference; `None` where the key is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Path of the key, for example `params.train.balance`.
    pub path: String,
    /// The value before.
    pub old: Option<Value>,
    /// The value now.
    pub new: Option<Value>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path == "source" {
            return f.write_str("code changed");
        }

        // Of files only digests are known, which say nothing to people.
        let is_file =
            self.path.starts_with("inputs.") || self.path.starts_with("externals.");

        match (&self.old, &self.new) {
            (Some(_), Some(_)) if is_file => write!(f, "{} changed", self.path),
            (Some(_), None) if is_file => write!(f, "{} is gone", self.path),
            (None, Some(_)) if is_file => write!(f, "{} is new", self.path),
            (Some(old), Some(new)) => {
                write!(f, "{} {} → {}", self.path, Short(old), Short(new))
            }
            (Some(old), None) => write!(f, "{} {} → (absent)", self.path, Short(old)),
            (None, Some(new)) => write!(f, "{} (absent) → {}", self.path, Short(new)),
            (None, None) => write!(f, "{}", self.path),
        }
    }
}

/// A value as text, cut to 40 characters.
struct Short<'a>(&'a Value);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match text.char_indices().nth(40) {
            Some((cut, _)) => write!(f, "{}…", &text[..cut]),
            None => f.write_str(&text),
        }
    }
}

/// All differences, sorted by path. Lists are compared whole.
pub fn changes(old: &Value, new: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", Some(old), Some(new), &mut found);
    found
}

/// Adds the differences between two values at `path`; mappings are compared key by key.
fn compare(
    path: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    found: &mut Vec<Change>,
) {
    if old == new {
        return;
    }

    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (old, new) {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let here = join(path, key);
            compare(&here, a.get(key), b.get(key), found);
        }
        return;
    }

    found.push(Change { path: path.to_owned(), old: old.cloned(), new: new.cloned() });
}

/// The path of a key inside of a mapping.
fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_names_the_key_and_both_values() {
        let old =
            json!({"params": {"train": {"balance": 0.01}, "gone": 1}, "source": "a"});
        let new =
            json!({"params": {"train": {"balance": 0.02}, "fresh": []}, "source": "b"});
        let lines: Vec<String> =
            changes(&old, &new).iter().map(Change::to_string).collect();
        assert_eq!(
            lines,
            [
                "params.fresh (absent) → []",
                "params.gone 1 → (absent)",
                "params.train.balance 0.01 → 0.02",
                "code changed",
            ]
        );
    }

    #[test]
    fn falsy_values_differ_from_each_other_and_from_absence() {
        for (old, new) in
            [(json!(0), json!(null)), (json!(false), json!(0)), (json!(""), json!([]))]
        {
            assert_eq!(changes(&json!({"a": old}), &json!({"a": new})).len(), 1);
        }
        assert_eq!(changes(&json!({}), &json!({"a": null})).len(), 1);
    }
}
