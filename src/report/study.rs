//! The inputs indexed: which runs there are, how they are called and coloured, and every
//! figure as a map over seeds.

use std::collections::{BTreeMap, BTreeSet};

use super::chart::layers::Layer;
use super::inputs::{ReportInputs, RunInputs, WHOLE_LAYER, is_dense, ordered_runs};
use super::stats::{BySeed, COVERAGE, Difference, Summary, paired, summary};
use crate::config::Config;
use crate::error::{Error, Result};

/// The point before training.
pub(super) const INIT: &str = "init";
/// The point after training.
pub(super) const FINAL: &str = "final";

/// Hues in the style sheet; further runs use them again, dashed.
const HUES: usize = 8;

type MetricKey<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);
type LayerKey<'a> = (&'a str, &'a str, &'a str, u32, &'a str);

/// The inputs with their indices.
#[derive(Debug)]
pub(super) struct Study<'a> {
    pub(super) inputs: &'a ReportInputs,
    /// Runs with data, in report order.
    pub(super) runs: Vec<String>,
    metrics: BTreeMap<MetricKey<'a>, BySeed>,
    layers: BTreeMap<LayerKey<'a>, BySeed>,
    experts: BTreeMap<LayerKey<'a>, BTreeMap<u64, Vec<f64>>>,
    names: BTreeMap<String, String>,
}

impl<'a> Study<'a> {
    /// Indexes the inputs; refuses a report without a run.
    pub(super) fn new(inputs: &'a ReportInputs) -> Result<Self> {
        let present: BTreeSet<_> = inputs.runs.iter().map(|r| r.run.as_str()).collect();
        let mut runs = ordered_runs(&inputs.config);
        runs.retain(|run| present.contains(run.as_str()));
        if runs.is_empty() {
            return Err(Error::failed(
                "the report has no run of the configuration to show",
            ));
        }
        let mut study = Self {
            inputs,
            runs,
            metrics: BTreeMap::new(),
            layers: BTreeMap::new(),
            experts: BTreeMap::new(),
            names: names(&inputs.config),
        };
        for run in &inputs.runs {
            study.index(run);
        }
        Ok(study)
    }

    fn index(&mut self, run: &'a RunInputs) {
        for row in &run.metrics {
            let key = (&*run.run, &*row.point, &*row.task, &*row.split, &*row.metric);
            self.metrics.entry(key).or_default().insert(run.seed, row.value);
        }
        for row in &run.analysis {
            let key = (&*run.run, &*row.point, &*row.tower, row.layer, &*row.metric);
            if row.expert == WHOLE_LAYER {
                self.layers.entry(key).or_default().insert(run.seed, row.value);
            } else {
                let seeds = self.experts.entry(key).or_default();
                seeds.entry(run.seed).or_default().push(row.value);
            }
        }
    }

    pub(super) fn config(&self) -> &'a Config {
        &self.inputs.config
    }

    /// All metrics with their values.
    pub(super) fn metrics(&self) -> &BTreeMap<MetricKey<'a>, BySeed> {
        &self.metrics
    }

    /// One metric of one run, by seed.
    pub(super) fn metric(
        &self,
        run: &str,
        point: &str,
        (task, split, metric): (&str, &str, &str),
    ) -> BySeed {
        self.metrics.get(&(run, point, task, split, metric)).cloned().unwrap_or_default()
    }

    /// One analysis of a whole layer, by seed.
    pub(super) fn layer(
        &self,
        run: &str,
        point: &str,
        layer: &Layer,
        metric: &str,
    ) -> BySeed {
        let key = (run, point, layer.0.as_str(), layer.1, metric);
        self.layers.get(&key).cloned().unwrap_or_default()
    }

    /// Experts' values in descending order within each seed, averaged over seeds: expert
    /// numbers mean nothing across seeds.
    pub(super) fn ranked_experts(
        &self,
        run: &str,
        point: &str,
        layer: &Layer,
        metric: &str,
    ) -> Vec<f64> {
        let key = (run, point, layer.0.as_str(), layer.1, metric);
        self.experts.get(&key).map_or_else(Vec::new, ranked)
    }

    /// The MoE layers that any run was analysed at, image tower first.
    pub(super) fn moe_layers(&self) -> Vec<Layer> {
        let keys = self.layers.keys().chain(self.experts.keys());
        in_tower_order(keys.map(|key| (key.2.to_owned(), key.3)))
    }

    /// Seeds of a run, ascending.
    pub(super) fn seeds(&self, run: &str) -> Vec<u64> {
        let seeds: BTreeSet<_> = self.of(run).map(|r| r.seed).collect();
        seeds.into_iter().collect()
    }

    /// The inputs of a run, one a seed.
    pub(super) fn of(&self, run: &str) -> impl Iterator<Item = &'a RunInputs> {
        self.inputs.runs.iter().filter(move |r| r.run == run)
    }

    /// How a run is called: `Cluster-aware + EESD`.
    pub(super) fn name(&self, run: &str) -> String {
        self.names.get(run).cloned().unwrap_or_else(|| run.to_owned())
    }

    /// CSS classes of a run's colour.
    pub(super) fn class(&self, run: &str) -> String {
        let order = ordered_runs(self.config());
        let index = order.iter().position(|r| r == run).unwrap_or(0);
        let dash = if index >= HUES { " dashed" } else { "" };
        format!("c{}{dash}", index % HUES)
    }

    /// Whether a run of this name has data.
    pub(super) fn has(&self, run: &str) -> bool {
        self.runs.iter().any(|r| r == run)
    }

    /// Whether a run is an MoE.
    pub(super) fn is_moe(&self, run: &str) -> bool {
        self.config().runs.get(run).is_some_and(|r| !is_dense(self.config(), r))
    }

    /// The run that others are compared with, if it has data.
    pub(super) fn reference(&self) -> Option<&'a str> {
        Some(self.config().report.reference.as_str()).filter(|run| self.has(run))
    }

    /// The runs of the main figures: dense, ablation, reference and showcase.
    pub(super) fn focus(&self) -> Vec<String> {
        let report = &self.config().report;
        let named = |run: &String| *run == report.reference || *run == report.showcase;
        let wanted = |run: &String| {
            !self.is_moe(run) || report.ablation.contains(run) || named(run)
        };
        self.runs.iter().filter(|run| wanted(run)).cloned().collect()
    }

    /// Reference and showcase, where they have experts and data.
    pub(super) fn pair(&self) -> Vec<String> {
        let report = &self.config().report;
        let mut pair = vec![report.reference.clone()];
        if report.showcase != report.reference {
            pair.push(report.showcase.clone());
        }
        pair.retain(|run| self.has(run) && self.is_moe(run));
        pair
    }
}

/// Sorted descending within each seed, then averaged place by place.
pub(super) fn ranked(seeds: &BTreeMap<u64, Vec<f64>>) -> Vec<f64> {
    let mut places: Vec<Vec<f64>> = Vec::new();
    for values in seeds.values() {
        let mut values: Vec<f64> =
            values.iter().copied().filter(|v| v.is_finite()).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        for (place, value) in values.into_iter().enumerate() {
            match places.get_mut(place) {
                Some(list) => list.push(value),
                None => places.push(vec![value]),
            }
        }
    }
    places.iter().map(|values| crate::num::mean(values)).collect()
}

/// Distinct layers, the image tower before the text tower.
pub(super) fn in_tower_order(layers: impl Iterator<Item = Layer>) -> Vec<Layer> {
    let distinct: BTreeSet<_> = layers.collect();
    let mut layers: Vec<Layer> = distinct.into_iter().collect();
    layers.sort_by(|a, b| (a.0 != "vision", a).cmp(&(b.0 != "vision", b)));
    layers
}

/// Mean and spread over seeds.
pub(super) fn over_seeds(values: &BySeed) -> Option<Summary> {
    summary(values.values().copied())
}

/// The paired difference of two shares in points of percent.
pub(super) fn difference_points(a: &BySeed, b: &BySeed) -> Option<Difference> {
    paired(a, b, COVERAGE).map(in_points)
}

/// A difference of shares as points of percent.
pub(super) fn in_points(difference: Difference) -> Difference {
    let interval = difference.interval.map(|(low, high)| (100.0 * low, 100.0 * high));
    Difference { mean: 100.0 * difference.mean, interval, ..difference }
}

/// Readable names of runs, unless two would read the same.
fn names(config: &Config) -> BTreeMap<String, String> {
    let pretty = |run: &crate::config::RunConfig| {
        let init =
            match run.init.strip_prefix("svd").or(run.init.strip_prefix("drop-svd")) {
                Some(rest) if run.init.starts_with("svd") => format!("SVD{rest}"),
                Some(rest) => format!("Drop-SVD{rest}"),
                None => super::words::capital(&run.init),
            };
        if run.eesd > 0.0 { format!("{init} + EESD") } else { init }
    };
    let all: Vec<String> = config.runs.values().map(pretty).collect();
    let unique = |name: &String| all.iter().filter(|n| *n == name).count() == 1;
    config
        .runs
        .keys()
        .zip(&all)
        .map(|(run, name)| (run.clone(), if unique(name) { name } else { run }.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_ranked_within_a_seed_before_averaging() {
        let seeds = BTreeMap::from([(1, vec![0.1, 0.6, 0.3]), (2, vec![0.5, 0.2, 0.3])]);
        let found = ranked(&seeds);
        for (found, expected) in found.iter().zip([0.55, 0.3, 0.15]) {
            assert!((found - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn the_image_tower_comes_first() {
        let layers = [("text", 1), ("vision", 3), ("vision", 1), ("text", 1)];
        let layers = in_tower_order(layers.into_iter().map(|(t, l)| (t.to_owned(), l)));
        let order: Vec<_> = layers.iter().map(|(t, l)| (t.as_str(), *l)).collect();
        assert_eq!(order, [("vision", 1), ("vision", 3), ("text", 1)]);
    }
}
