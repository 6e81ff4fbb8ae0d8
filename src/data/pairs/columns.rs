//! Which column of somebody's table holds what.
//!
//! A configured name is taken at its word. Without one, the usual names are looked for, and
//! two candidates are an error: a guess would train on the wrong text without a sound.

use crate::config::ColumnNames;
use crate::error::{Error, Result};

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Image,
    Caption,
    Label,
    Split,
}

impl Role {
    /// Every role.
    pub(super) const ALL: [Self; 4] =
        [Self::Image, Self::Caption, Self::Label, Self::Split];

    /// Its key below `dataset.columns`.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Caption => "caption",
            Self::Label => "label",
            Self::Split => "split",
        }
    }

    /// Names that mean it: `open_clip`'s, `CLIP_benchmark`'s, Hugging Face's.
    pub(super) fn usual(self) -> &'static [&'static str] {
        match self {
            Self::Image => &[
                "filepath",
                "file_path",
                "path",
                "image",
                "image_path",
                "file_name",
                "filename",
                "img",
                "jpg",
                "png",
                "webp",
            ],
            Self::Caption => &[
                "caption",
                "captions",
                "title",
                "text",
                "texts",
                "txt",
                "raw",
                "sentences",
            ],
            Self::Label => &["concept", "label", "labels", "class", "cls", "fine_label"],
            Self::Split => &["split"],
        }
    }

    fn configured(self, names: &ColumnNames) -> &str {
        match self {
            Self::Image => &names.image,
            Self::Caption => &names.caption,
            Self::Label => &names.label,
            Self::Split => &names.split,
        }
    }
}

/// The position of the column with this role among `columns`; `None` if there is none.
pub(super) fn find(
    role: Role,
    names: &ColumnNames,
    columns: &[&str],
) -> Result<Option<usize>> {
    let (key, wanted) = (role.key(), role.configured(names));
    let known = || columns.join(", ");

    if !wanted.is_empty() {
        let found: Vec<usize> =
            (0..columns.len()).filter(|&i| columns[i] == wanted).collect();
        return match found[..] {
            [index] => Ok(Some(index)),
            [] => Err(Error::usage(format!(
                "dataset.columns.{key}: there is no column {wanted}; there are: {}",
                known()
            ))),
            _ => Err(Error::failed(format!("column {wanted} stands there twice"))),
        };
    }

    let is_usual = |name: &str| role.usual().contains(&name.to_lowercase().as_str());
    let found: Vec<usize> =
        (0..columns.len()).filter(|&i| is_usual(columns[i])).collect();

    match found[..] {
        [] => Ok(None),
        [index] => Ok(Some(index)),
        [a, b, ..] if columns[a] == columns[b] => {
            Err(Error::failed(format!("column {} stands there twice", columns[a])))
        }
        [a, b, ..] => Err(Error::usage(format!(
            "columns {} and {} both look like the {key}: rename one of them, or with source csv \
             or parquet set dataset.columns.{key}",
            columns[a], columns[b]
        ))),
    }
}

/// Like [`find`], for a role that must be there.
pub(super) fn required(
    role: Role,
    names: &ColumnNames,
    columns: &[&str],
) -> Result<usize> {
    find(role, names, columns)?.ok_or_else(|| {
        let (key, usual, known) =
            (role.key(), role.usual().join(", "), columns.join(", "));
        Error::failed(format!(
            "there is no column of the {key} ({usual}): rename it, or with source csv or \
             parquet set dataset.columns.{key}; there are: {known}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_found_and_two_of_them_are_asked_about() {
        let none = ColumnNames::default();
        let columns = ["url", "Image", "title"];
        assert_eq!(find(Role::Image, &none, &columns).unwrap(), Some(1));
        assert_eq!(required(Role::Caption, &none, &columns).unwrap(), 2);
        assert_eq!(find(Role::Label, &none, &columns).unwrap(), None);
        let two = ["title", "caption"];
        let error = find(Role::Caption, &none, &two).unwrap_err().to_string();
        assert!(error.contains("set dataset.columns.caption"), "{error}");
        let named = ColumnNames { caption: "title".to_owned(), ..none };
        assert_eq!(find(Role::Caption, &named, &two).unwrap(), Some(0));
        let error = find(Role::Caption, &named, &["text"]).unwrap_err().to_string();
        assert!(error.contains("no column title; there are: text"), "{error}");
    }
}
