//! The JSON of an icon set, as iconify packs it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Context, Result};

/// An icon set.
#[derive(Debug, Deserialize)]
pub(in crate::data) struct IconSet {
    /// The drawings by name.
    pub icons: BTreeMap<String, Icon>,
    /// Further names of drawings.
    #[serde(default)]
    pub aliases: BTreeMap<String, Alias>,
    /// Who made the set; absent from the packages of single sets.
    pub info: Option<Information>,
    /// Words that follow the names of a style, by word; the empty one for none.
    #[serde(default)]
    pub suffixes: BTreeMap<String, String>,
    /// Words that precede the names of a style.
    #[serde(default)]
    pub prefixes: BTreeMap<String, String>,
    #[serde(default = "default_extent")]
    width: f64,
    #[serde(default = "default_extent")]
    height: f64,
    #[serde(default)]
    left: f64,
    #[serde(default)]
    top: f64,
}

/// One drawing.
#[derive(Debug, Deserialize)]
pub(in crate::data) struct Icon {
    body: String,
    width: Option<f64>,
    height: Option<f64>,
    left: Option<f64>,
    top: Option<f64>,
    /// Whether the set has given it up.
    #[serde(default)]
    pub hidden: bool,
}

/// Another name of a drawing, or of the drawing changed.
#[derive(Debug, Deserialize)]
pub(in crate::data) struct Alias {
    /// The name that it stands for.
    pub parent: String,
    #[serde(default, rename = "hFlip")]
    mirrored: bool,
    #[serde(default, rename = "vFlip")]
    upside_down: bool,
    #[serde(default)]
    rotate: u8,
}

impl Alias {
    /// Whether it is the drawing itself, neither flipped nor turned.
    pub(in crate::data) fn is_same_drawing(&self) -> bool {
        !self.mirrored && !self.upside_down && self.rotate == 0
    }
}

/// Who made a set, and under which license.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::data) struct Information {
    /// What the set is called.
    pub name: String,
    /// Its makers.
    pub author: Author,
    /// Its license.
    pub license: License,
    /// What kind of set it is.
    pub category: Option<String>,
}

impl Information {
    /// Whether the set draws emoji; one that iconify has given up has no category.
    pub(in crate::data) fn is_of_emoji(&self) -> bool {
        self.category.as_deref() == Some("Emoji") || self.name.contains("Emoji")
    }
}

/// The makers of a set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::data) struct Author {
    /// Their name.
    pub name: String,
}

/// The license of a set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::data) struct License {
    /// Its name.
    pub title: String,
    /// Its name in the list of SPDX.
    pub spdx: Option<String>,
}

/// iconify's default for sets that do not say.
fn default_extent() -> f64 {
    16.0
}

impl IconSet {
    /// Reads the JSON of `set`.
    pub(in crate::data) fn parse(json: &[u8], set: &str) -> Result<Self> {
        serde_json::from_slice(json).context(|| format!("reading the icon set {set}"))
    }

    /// The icon as an SVG document.
    pub(in crate::data) fn svg(&self, icon: &Icon) -> String {
        let (left, top) = (icon.left.unwrap_or(self.left), icon.top.unwrap_or(self.top));
        let width = icon.width.unwrap_or(self.width);
        let height = icon.height.unwrap_or(self.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" \
             xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
             viewBox=\"{left} {top} {width} {height}\">{}</svg>",
            icon.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_icon_says_what_differs_from_its_set() {
        let json = br#"{"width": 24, "left": -2, "icons": {
            "a": {"body": "<g/>"}, "b": {"body": "<g/>", "width": 8, "left": 1}}}"#;
        let set = IconSet::parse(json, "x").unwrap();
        let view = |name: &str| {
            let svg = set.svg(&set.icons[name]);
            svg.split('"').nth(5).unwrap().to_owned()
        };
        assert_eq!(view("a"), "-2 0 24 16");
        assert_eq!(view("b"), "1 0 8 16");
    }

    #[test]
    fn a_turned_alias_is_another_drawing() {
        let json = br#"{"icons": {}, "aliases": {"same": {"parent": "a"},
            "left": {"parent": "a", "hFlip": true}, "up": {"parent": "a", "rotate": 1},
            "down": {"parent": "a", "vFlip": true}}}"#;
        let aliases = IconSet::parse(json, "x").unwrap().aliases;
        let same: Vec<&str> = aliases
            .iter()
            .filter(|(_, alias)| alias.is_same_drawing())
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(same, ["same"]);
    }
}
