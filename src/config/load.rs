//! From YAML text to a checked [`Config`]: defaults, user file, profile, overrides.
//!
//! The tree of the shipped `pipeline.yaml` is the list of known keys. A mapping below
//! [`FREE_MAPS`] has names of the user's choice; everywhere else an unknown key is an error
//! that names the nearest known one.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Check, Config};
use crate::error::{Context as _, Error, Result, did_you_mean};

/// The shipped configuration, compiled in: defaults and known keys.
const SHIPPED: &str = include_str!("../../pipeline.yaml");

/// Mappings whose keys are the user's names; a file that sets one replaces it whole.
const FREE_MAPS: &[&str] = &["subspaces", "inits", "runs", "sweep.factors"];

/// What is laid over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Name of an entry of `profiles`.
    pub profile: Option<String>,
    /// `path.to.key=value` assignments, the value in YAML.
    pub set: Vec<String>,
}

/// Loads, merges and checks the configuration of `path`.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Config> {
    Layers::read(path, overrides)?.build(None)
}

/// The shipped configuration with overrides, for tests and tools.
pub fn load_default(overrides: &Overrides) -> Result<Config> {
    build(SHIPPED, "pipeline.yaml", overrides)
}

/// The text of the shipped configuration.
pub fn shipped() -> &'static str {
    SHIPPED
}

fn build(text: &str, name: &str, overrides: &Overrides) -> Result<Config> {
    Layers::of(text, name, overrides)?.build(None)
}

/// What a person says, layer by layer, before it is laid over the defaults.
///
/// Between the two there is room for what a checkpoint says: its model need not be repeated.
#[derive(Debug)]
pub struct Layers {
    name: String,
    shipped: Value,
    /// The file, the profile and the assignments, each with its place for messages.
    said: Vec<(Value, String)>,
}

impl Layers {
    /// Reads the file at `path`.
    pub fn read(path: &Path, overrides: &Overrides) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| {
            let remedy = if e.kind() == std::io::ErrorKind::NotFound {
                ": write one with upcycle-init, or name one with --config"
            } else {
                ""
            };
            Error::usage(format!("cannot read the configuration {name}{remedy}"))
                .caused_by(e)
        })?;
        Self::of(&text, &name, overrides)
    }

    fn of(text: &str, name: &str, overrides: &Overrides) -> Result<Self> {
        let mut shipped = parse(SHIPPED, "the shipped pipeline.yaml")?;
        let shipped_profiles = take_profiles(&mut shipped);

        // The shipped file says nothing of its own: all of it is defaults.
        let mut said = Vec::new();
        let mut profiles = Map::new();
        if text != SHIPPED {
            let mut user = parse(text, name)?;
            profiles = take_profiles(&mut user);
            said.push((user, name.to_owned()));
        }

        if let Some(profile) = &overrides.profile {
            let layer = profiles
                .get(profile)
                .or_else(|| shipped_profiles.get(profile))
                .ok_or_else(|| {
                unknown_profile(profile, &shipped_profiles, &profiles)
            })?;
            said.push((layer.clone(), format!("profile {profile} of {name}")));
        }
        for assignment in &overrides.set {
            let place = format!("--set {assignment}");
            said.push((parse_assignment(assignment, &place)?, place));
        }
        Ok(Self { name: name.to_owned(), shipped, said })
    }

    /// The text at a path of keys, from the last layer that says it; empty if none does.
    pub fn text(&self, path: &[&str]) -> &str {
        let layers = self.said.iter().rev();
        let found = layers.map(|(layer, _)| {
            path.iter().try_fold(layer, |value, key| value.get(key))?.as_str()
        });
        found.flatten().next().unwrap_or_default()
    }

    /// Lays the layers over the defaults, and what a checkpoint says between the two.
    pub fn build(self, checkpoint: Option<Value>) -> Result<Config> {
        let Self { name, shipped, said } = self;
        let known = shipped.clone();
        let mut merged = shipped;
        let beneath = checkpoint.map(|layer| (layer, "pretrain.checkpoint".to_owned()));
        for (layer, place) in beneath.into_iter().chain(said) {
            let reach =
                if place.starts_with("--set") { Reach::Entry } else { Reach::Map };
            lay_over(&mut merged, layer, &known, Said { place: &place, reach }, "")?;
        }
        checked(merged, &name)
    }
}

impl Config {
    /// This configuration with assignments as of `--set` laid over it; `place` says in errors
    /// where they come from.
    pub fn with(&self, assignments: &[String], place: &str) -> Result<Self> {
        let mut known = parse(SHIPPED, "the shipped pipeline.yaml")?;
        take_profiles(&mut known);
        let mut tree = serde_json::to_value(self)
            .context(|| "describing the configuration".to_owned())?;

        for assignment in assignments {
            let layer = parse_assignment(assignment, place)?;
            lay_over(&mut tree, layer, &known, Said { place, reach: Reach::Entry }, "")?;
        }
        checked(tree, place)
    }
}

/// The configuration that a tree says; `name` is that of its source.
fn checked(tree: Value, name: &str) -> Result<Config> {
    let config: Config = serde_path_to_error::deserialize(tree).map_err(|e| {
        // The path is empty where a whole section is missing, and serde names it then.
        let (path, what) = (e.path().to_string(), plain(&e.inner().to_string()));
        Error::usage(format!("{name}: {path}: {what}"))
    })?;
    config
        .check()
        .map_err(|e| Error::new(e.kind(), format!("{name}: {}", e.message())))?;
    Ok(config)
}

/// The error for a profile that neither file has.
fn unknown_profile(
    profile: &str,
    shipped: &Map<String, Value>,
    user: &Map<String, Value>,
) -> Error {
    let mut names: Vec<_> = shipped.keys().chain(user.keys()).cloned().collect();
    names.sort();
    names.dedup();

    let hint = did_you_mean(profile, names.iter().map(String::as_str));
    let known = names.join(", ");
    Error::usage(format!("there is no profile named {profile}; there are: {known}{hint}"))
}

/// Parses a YAML file that is a mapping; an empty file is an empty one.
fn parse(text: &str, name: &str) -> Result<Value> {
    let value: Value = serde_saphyr::from_str(text)
        .map_err(|e| Error::usage(format!("{name} is not valid YAML: {}", brief(&e))))?;

    match value {
        Value::Object(_) => Ok(value),
        Value::Null => Ok(Value::Object(Map::new())),
        other => Err(Error::usage(format!("{name}: expected a mapping, found {other}"))),
    }
}

/// The first line of an error about YAML; the others show the place in the text.
fn brief(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.trim_start_matches("error: ").to_owned()
}

/// serde's words for a wrong type, with the types of this program in plain English.
fn plain(what: &str) -> String {
    let types = [
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected f64", "expected a number"),
    ];
    types.iter().fold(what.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Takes the section `profiles` out of a tree.
fn take_profiles(tree: &mut Value) -> Map<String, Value> {
    match tree.as_object_mut().and_then(|map| map.remove("profiles")) {
        Some(Value::Object(profiles)) => profiles,
        _ => Map::new(),
    }
}

/// Divides `a.b=c d.e=[1, 2] title='x y'` into assignments: at blanks outside of quotes and
/// brackets. Quotes stay, because values are YAML.
pub fn assignments(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];

    // Open brackets, the open quote, and whether a backslash stands before the character.
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    let mut before = ' ';

    for c in text.chars() {
        match quote {
            // A backslash escapes in double quotes only.
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            // An apostrophe inside of a word is a letter.
            None if matches!(c, '\'' | '"') && !before.is_alphanumeric() => {
                quote = Some(c);
            }

            None if matches!(c, '[' | '{') => depth += 1,
            None if matches!(c, ']' | '}') => depth = depth.saturating_sub(1),
            None if c.is_whitespace() && depth == 0 => {
                found.push(String::new());
                before = c;
                continue;
            }

            // Inside of quotes every other character is a part of the value, as outside.
            Some(_) | None => {}
        }

        before = c;
        if let Some(last) = found.last_mut() {
            last.push(c);
        }
    }

    // Several blanks in a row leave empty ones.
    found.retain(|assignment| !assignment.is_empty());
    found
}

/// Turns `a.b.c=value` into nested mappings.
fn parse_assignment(assignment: &str, place: &str) -> Result<Value> {
    let (path, text) = assignment
        .split_once('=')
        .ok_or_else(|| Error::usage(format!("{place}: expected path.to.key=value")))?;

    let value: Value = serde_saphyr::from_str(text).map_err(|e| {
        let why = brief(&e);
        Error::usage(format!("{place}: the value is not valid YAML: {why}"))
    })?;

    // From the last key outwards, each wraps what is below it.
    Ok(path.rsplit('.').fold(value, |inner, key| {
        let mut map = Map::new();
        map.insert(key.trim().to_owned(), inner);
        Value::Object(map)
    }))
}

/// Where a layer comes from, and how far it reaches.
#[derive(Debug, Clone, Copy)]
struct Said<'a> {
    /// Its place, for messages.
    place: &'a str,
    /// What it replaces of a free map.
    reach: Reach,
}

/// What a layer replaces of a free map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// All of it: a file says which entries there are.
    Map,
    /// What it names of one entry: an assignment changes a detail.
    Entry,
}

/// Lays `layer` over `base`, refusing keys that `known` does not have.
fn lay_over(
    base: &mut Value,
    layer: Value,
    known: &Value,
    said: Said<'_>,
    path: &str,
) -> Result<()> {
    // A value replaces what is below it whole. A mapping in the place of a value does too, and
    // the types refuse it later, by its path.
    let Value::Object(layer) = layer else {
        *base = layer;
        return Ok(());
    };
    let (Value::Object(base), Value::Object(known)) = (&mut *base, known) else {
        *base = Value::Object(layer);
        return Ok(());
    };

    for (key, value) in layer {
        let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let Some(known_value) = known.get(&key) else {
            return Err(unknown_key(&key, &here, known, said.place));
        };

        if FREE_MAPS.contains(&here.as_str()) {
            lay_over_free(base, key, value, said.reach);
        } else if let Some(slot) = base.get_mut(&key) {
            lay_over(slot, value, known_value, said, &here)?;
        } else {
            // A configuration that was written leaves out what is at its default.
            base.insert(key, value);
        }
    }
    Ok(())
}

/// Lays one free map over another. An assignment of no entries empties it: there is no other
/// way to take an entry out.
fn lay_over_free(base: &mut Map<String, Value>, key: String, value: Value, reach: Reach) {
    let empties = value.as_object().is_some_and(Map::is_empty);
    match base.get_mut(&key) {
        Some(slot) if reach == Reach::Entry && !empties => deep_merge(slot, value),
        _ => {
            base.insert(key, value);
        }
    }
}

/// Lays a value over another, mapping by mapping, without a list of known keys.
fn deep_merge(base: &mut Value, layer: Value) {
    match (base, layer) {
        (Value::Object(base), Value::Object(layer)) => {
            for (key, value) in layer {
                deep_merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, layer) => *base = layer,
    }
}

fn unknown_key(key: &str, here: &str, known: &Map<String, Value>, place: &str) -> Error {
    let hint = did_you_mean(key, known.keys().map(String::as_str));
    Error::usage(format!("{place}: unknown key {here}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[&str]) -> Result<Config> {
        let set = set.iter().map(|&s| s.to_owned()).collect();
        load_default(&Overrides { profile: None, set })
    }

    #[test]
    fn the_shipped_file_and_its_profiles_are_valid() {
        assert!(with(&[]).is_ok());
        for profile in
            ["smoke", "slice", "icons", "icons-full", "icons-coarse", "compare-quick"]
        {
            let overrides = Overrides { profile: Some(profile.to_owned()), set: vec![] };
            load_default(&overrides).expect(profile);
        }
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = with(&["train.optim.learning_rat=1"]).unwrap_err().to_string();
        assert!(error.contains("train.optim.learning_rat"), "{error}");
        assert!(error.contains("did you mean learning_rate?"), "{error}");
    }

    #[test]
    fn overrides_reach_nested_and_free_keys() {
        let config = with(&["train.balance=0.5", "runs.sparse.eesd=0.3"]).unwrap();
        assert!((config.train.balance - 0.5).abs() < 1e-12);
        assert!((config.runs["sparse"].eesd - 0.3).abs() < 1e-12);
        assert!(config.runs.contains_key("dense"));

        // Nothing is left of a free map that is given no entries.
        let overrides = |set: &[&str]| Overrides {
            profile: Some("smoke".to_owned()),
            set: set.iter().map(|&s| s.to_owned()).collect(),
        };
        assert!(!load_default(&overrides(&[])).unwrap().sweep.factors.is_empty());
        let emptied = load_default(&overrides(&["sweep.factors={}"])).unwrap();
        assert!(emptied.sweep.factors.is_empty());
    }

    #[test]
    fn assignments_are_divided_outside_of_quotes_and_brackets() {
        let text = "a.b=1  report.title='My study' seeds=[1, 2] c={d: 'x y'}\
                    \te=\"q \\\" r\" f=don't g=2";
        let expected = [
            "a.b=1",
            "report.title='My study'",
            "seeds=[1, 2]",
            "c={d: 'x y'}",
            "e=\"q \\\" r\"",
            "f=don't",
            "g=2",
        ];
        assert_eq!(assignments(text), expected);
        assert!(assignments("  ").is_empty());
        let config = with(&[&assignments("report.title='My study'")[0]]).unwrap();
        assert_eq!(config.report.title, "My study");
    }

    #[test]
    fn a_file_replaces_a_free_map_whole() {
        let text = "inits: {sparse: {method: sparse}}\nruns: {sparse: {init: sparse}}\n\
                    report: {showcase: sparse, ablation: []}";
        let config = build(text, "user.yaml", &Overrides::default()).unwrap();
        assert_eq!(config.runs.len(), 1);
    }

    #[test]
    fn what_a_checkpoint_says_lies_between_defaults_and_file() {
        let said = serde_json::json!({"model": {"embed_dim": 12, "text": {"width": 48}}});
        let layers =
            |text: &str| Layers::of(text, "user.yaml", &Overrides::default()).unwrap();
        let config =
            layers("pretrain: {checkpoint: x}").build(Some(said.clone())).unwrap();
        assert_eq!((config.model.embed_dim, config.model.text.width), (12, 48));
        let config = layers("model: {embed_dim: 13}").build(Some(said.clone())).unwrap();
        assert_eq!((config.model.embed_dim, config.model.text.width), (13, 48));
        // All of the shipped file is defaults.
        let config = layers(SHIPPED).build(Some(said)).unwrap();
        assert_eq!(config.model.embed_dim, 12);
    }

    #[test]
    fn the_last_layer_that_says_a_text_counts() {
        let overrides = Overrides {
            profile: None,
            set: vec!["pretrain.checkpoint=b".to_owned(), "seeds=[1]".to_owned()],
        };
        let layers = Layers::of("pretrain: {checkpoint: a}", "x", &overrides).unwrap();
        assert_eq!(layers.text(&["pretrain", "checkpoint"]), "b");
        assert_eq!(layers.text(&["dataset", "like"]), "");
    }

    #[test]
    fn wrong_types_and_impossible_values_are_refused() {
        for bad in [
            "train.optim.steps=many",
            "moe.top_k=0",
            "model.vision.heads=3",
            "runs.sparse.init=nowhere",
            "seeds=[]",
            "seeds=[1,1]",
            "evaluate.recall_at=[1,5,1]",
            "evaluate.shots=[2,2]",
            "dataset.image_size=33",
        ] {
            assert_eq!(with(&[bad]).unwrap_err().kind().exit_code(), 2, "{bad}");
        }
    }
}
