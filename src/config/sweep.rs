//! Section `sweep`: hyperparameters chosen on the validation split, one factor at a time.
//!
//! A factor is a name, a run, and values; a value is a list of assignments as of `--set`, laid
//! over the configuration as it is. Everything else stays at its default, so that what a value
//! changes is what its numbers show. Whoever plans or reports asks for the [`SweepPoint`]s of a
//! factor and knows nothing of assignments.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Config, FactorConfig, SweepConfig, assignments};
use crate::error::{Context as _, Error, Result};

/// One value of a factor, as a configuration that is complete and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepPoint {
    /// What is assigned; of a default that the factor does not list, what its keys have.
    pub value: String,
    /// What folders call it: `tau-0.9`.
    pub name: String,
    /// The configuration with the value, without sweeps of its own.
    pub config: Config,
    /// Whether the value is what the configuration has anyway.
    pub is_default: bool,
}

impl Config {
    /// The points of a factor in the order of its values. The default comes first unless it is
    /// among them.
    pub fn sweep_points(
        &self,
        name: &str,
        factor: &FactorConfig,
    ) -> Result<Vec<SweepPoint>> {
        let plain = Self {
            sweep: SweepConfig { factors: BTreeMap::new(), ..self.sweep.clone() },
            ..self.clone()
        };

        let mut points = Vec::new();
        for value in &factor.values {
            let assignments = assignments(value);
            let place = format!("sweep.factors.{name}, value {value}");
            let config = plain.with(&assignments, &place)?;
            let is_default = config == plain;
            let name = format!("{name}-{}", slug(&assignments));
            points.push(SweepPoint { value: value.clone(), name, config, is_default });
        }

        // Every value is compared with the default, so it is always a point.
        if !points.iter().any(|point| point.is_default) {
            let value = default_value(&plain, factor)?;
            let name = format!("{name}-default");
            points.insert(0, SweepPoint { value, name, config: plain, is_default: true });
        }
        Ok(points)
    }

    /// Refuses a sweep that cannot be planned.
    pub(super) fn check_sweep(&self) -> Result<()> {
        for (name, factor) in &self.sweep.factors {
            let key = format!("sweep.factors.{name}");
            let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || !name.chars().all(fine) {
                return Err(Error::usage(format!(
                    "{key}: found a name that folders cannot have, expected letters, digits, \
                     `-`, `_` and `.`"
                )));
            }
            if factor.values.is_empty() {
                return Err(Error::usage(format!(
                    "{key}.values: found no value, expected at least one, such as \
                     [train.balance=0.01]; or take the factor out"
                )));
            }

            // Points of one name would overwrite each other.
            let mut names = BTreeSet::new();
            for point in self.sweep_points(name, factor)? {
                if !names.insert(point.name.clone()) {
                    let values = &factor.values;
                    return Err(Error::usage(format!(
                        "{key}.values: found {values:?}, of which two are called {}, \
                         expected values of different names; make a factor of each key",
                        point.name
                    )));
                }
            }
        }
        Ok(())
    }
}

/// What a configuration has at the keys that a factor assigns, as assignments.
fn default_value(config: &Config, factor: &FactorConfig) -> Result<String> {
    let tree = serde_json::to_value(config)
        .context(|| "describing the configuration".to_owned())?;
    let all: Vec<String> = factor.values.iter().flat_map(|v| assignments(v)).collect();
    let mut keys: Vec<&str> = Vec::new();
    for key in all.iter().filter_map(|text| text.split_once('=')).map(|(key, _)| key) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    let at = |key: &str| match tree.pointer(&format!("/{}", key.replace('.', "/"))) {
        Some(Value::String(text)) => format!("{key}={text}"),
        Some(value) => format!("{key}={value}"),
        None => format!("{key} unset"),
    };
    Ok(keys.into_iter().map(at).collect::<Vec<_>>().join(" "))
}

/// The values of assignments as a part of a folder's name: `a.b={list: [1]} c=2` is `list-1-2`.
fn slug(assignments: &[String]) -> String {
    let values = assignments.iter().filter_map(|text| text.split_once('='));
    let values: Vec<&str> = values.map(|(_, value)| value).collect();
    let kept = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let joined = values.join(" ");
    let words = joined.split(|c| !kept(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, load_default};
    use super::*;

    fn swept(values: &str) -> Result<Config> {
        let set = vec![
            "sweep.seeds=[11]".to_owned(),
            format!("sweep.factors.it={{run: cluster-aware, values: {values}}}"),
        ];
        load_default(&Overrides { profile: None, set })
    }

    fn points(values: &str) -> Vec<SweepPoint> {
        let config = swept(values).unwrap();
        config.sweep_points("it", &config.sweep.factors["it"]).unwrap()
    }

    #[test]
    fn every_factor_has_its_default_once_and_each_value_changes_what_it_says() {
        let found = points("[subspaces.paper.tau=0.9, subspaces.paper.tau=0.999]");
        let names: Vec<_> = found.iter().map(|p| (&*p.name, p.is_default)).collect();
        assert_eq!(names, [("it-0.9", false), ("it-0.999", true)]);
        assert!((found[0].config.subspaces["paper"].tau - 0.9).abs() < 1e-12);

        // A default that is not listed comes first, and a value may assign several keys.
        let found =
            points("[\"moe.vision_blocks={list: [1]} moe.text_blocks={list: [0]}\"]");
        let names: Vec<_> = found.iter().map(|p| (&*p.name, p.is_default)).collect();
        assert_eq!(names, [("it-default", true), ("it-list-1-list-0", false)]);
        assert_eq!(found[1].config.moe.vision_blocks.indices(4), [1]);

        // A key that the configuration leaves out can be given.
        let found = points("[inits.cluster-aware.router_scale=2.0]");
        assert_eq!(found[1].config.inits["cluster-aware"].router_scale, Some(2.0));
        assert_eq!(found[0].value, "inits.cluster-aware.router_scale unset");
        let found = points("[\"train.balance=0.5 moe.vision_blocks={last: 1}\"]");
        assert_eq!(found[0].value, "train.balance=0.02 moe.vision_blocks=every-2");
    }

    #[test]
    fn values_that_cannot_run_are_refused_by_their_factor() {
        for (values, says) in [
            ("[]", "sweep.factors.it.values: found no value"),
            ("[train.balanse=1]", "did you mean balance?"),
            ("[moe.top_k=0]", "sweep.factors.it, value moe.top_k=0: moe.top_k"),
            ("[train.balance]", "expected path.to.key=value"),
            ("[train.balance=1, train.router_z=1]", "two are called it-1"),
        ] {
            let error = swept(values).unwrap_err().to_string();
            assert!(error.contains(says), "{values}: {error}");
        }
        let set = |text: &str| {
            let set = vec![text.to_owned()];
            load_default(&Overrides { profile: None, set }).unwrap_err().to_string()
        };
        let found = set("sweep.factors.it={run: nowhere, values: [train.balance=1]}");
        assert!(found.contains("sweep.factors.it.run: found nowhere"), "{found}");
        let found = set("sweep={seeds: [], factors: {it: {run: sparse, values: [a=1]}}}");
        assert!(found.contains("sweep.seeds"), "{found}");
    }
}
