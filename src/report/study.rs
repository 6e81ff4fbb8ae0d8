//! An index of the inputs: which runs there are, their names and colors, and the values of
//! every metric as a map over seeds.

use std::collections::{BTreeMap, BTreeSet};

use super::inputs::{ReportInputs, RunInputs, is_dense, ordered_runs};
use super::stats::{BySeed, Difference, Summary, over_examples, paired, summary};
use crate::config::{Config, RunConfig, Source, Trains};
use crate::error::{Error, Result};
use crate::tables::{Layer, WHOLE_LAYER};

/// The point before training.
pub(super) const INIT: &str = "init";
/// The point after training.
pub(super) const FINAL: &str = "final";

/// Number of hues in the style sheet.
const HUES: u32 = 8;

/// The colors of the runs of the shipped configuration. Runs that are often seen side by side
/// have hues far apart; controls are dashed.
const COLORS: [(&str, &str); 18] = [
    ("dense", "c0"),
    ("sparse", "c1"),
    ("sparse-eesd", "c3"),
    ("cluster-aware", "c2"),
    ("cluster-aware-eesd", "c4"),
    ("router-only", "c5"),
    ("drop", "c6"),
    ("ders-lm", "c7"),
    ("cluster-aware-mean", "c2 dashed"),
    ("cluster-aware-mean-eesd", "c4 dashed"),
    ("drop-svd", "c6 dashed"),
    ("svd-only", "c7 dashed"),
    ("random-clusters", "c5 dashed"),
    ("random-subspace", "c3 dashed"),
    ("mismatched-clusters", "c1 dashed"),
    ("soft-truncation", "c0 dashed"),
    ("random-subspace-rank", "c2 dashed"),
    ("random-subspace-energy", "c6 dashed"),
];

/// A model of the study: a run before or after training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Model<'a> {
    pub(super) run: &'a str,
    pub(super) point: &'a str,
}

/// What one value of `metrics.parquet` measures, apart from the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MetricKey<'a> {
    pub(super) run: &'a str,
    pub(super) point: &'a str,
    pub(super) task: &'a str,
    pub(super) split: &'a str,
    pub(super) metric: &'a str,
}

/// What one value of `analysis.parquet` measures, apart from the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LayerKey<'a> {
    pub(super) run: &'a str,
    pub(super) point: &'a str,
    pub(super) layer: &'a Layer,
    pub(super) metric: &'a str,
}

/// What an interval is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basis {
    /// Training seeds, dense bases and test pictures at once.
    Pictures,
    /// Training seeds.
    Seeds,
    /// Test examples of one seed.
    Examples,
    /// There is no interval.
    Nothing,
}

impl Basis {
    /// What stands below a difference, as the end of a sentence.
    pub(super) fn below(self) -> &'static str {
        match self {
            Self::Pictures => {
                "with the 95 % interval over seeds, dense bases and test pictures below; bold where it excludes zero"
            }
            Self::Seeds => {
                "with the 95 % t interval over seeds below; bold where it excludes zero"
            }
            Self::Examples => {
                "with the 95 % paired bootstrap interval over test examples below; bold where it excludes zero"
            }
            Self::Nothing => {
                "without an interval, because one seed does not tell the spread"
            }
        }
    }
}

/// The inputs with their indices.
#[derive(Debug)]
pub(super) struct Study<'a> {
    pub(super) inputs: &'a ReportInputs,
    /// Runs with data, in report order.
    pub(super) runs: Vec<String>,
    metrics: BTreeMap<MetricKey<'a>, BySeed>,
    resamples: BTreeMap<MetricKey<'a>, &'a [f32]>,
    layers: BTreeMap<LayerKey<'a>, BySeed>,
    experts: BTreeMap<LayerKey<'a>, BTreeMap<u64, Vec<f64>>>,
    names: BTreeMap<String, String>,
}

impl<'a> Study<'a> {
    /// Indexes the inputs; refuses a report without a run.
    pub(super) fn new(inputs: &'a ReportInputs) -> Result<Self> {
        let present: BTreeSet<_> = inputs.runs.iter().map(|r| r.run.as_str()).collect();

        // A configured run without inputs is left out, which is not an error.
        let mut runs = ordered_runs(&inputs.config);
        runs.retain(|run| present.contains(run.as_str()));
        if runs.is_empty() {
            return Err(Error::failed(
                "the report has no run to show: none of the runs in the configuration has \
                 results",
            ));
        }

        let mut study = Self {
            inputs,
            runs,
            metrics: BTreeMap::new(),
            resamples: BTreeMap::new(),
            layers: BTreeMap::new(),
            experts: BTreeMap::new(),
            names: names(&inputs.config),
        };
        for run in &inputs.runs {
            study.index(run);
        }
        Ok(study)
    }

    fn index(&mut self, inputs: &'a RunInputs) {
        let RunInputs { run, seed, .. } = inputs;

        for row in &inputs.metrics {
            let key = MetricKey {
                run,
                point: &row.point,
                task: &row.measured.task,
                split: &row.measured.split,
                metric: &row.measured.metric,
            };
            self.metrics.entry(key).or_default().insert(*seed, row.measured.value);
        }

        for row in &inputs.resamples {
            let key = MetricKey {
                run,
                point: &row.point,
                task: &row.task,
                split: &row.split,
                metric: &row.metric,
            };
            self.resamples.insert(key, &row.values);
        }

        for row in &inputs.analysis {
            let (layer, metric) = (&row.layer, row.metric.as_str());
            let key = LayerKey { run, point: &row.point, layer, metric };

            // Experts' values are a list per seed: their numbers mean nothing across seeds.
            if row.expert == WHOLE_LAYER {
                self.layers.entry(key).or_default().insert(*seed, row.value);
            } else {
                let seeds = self.experts.entry(key).or_default();
                seeds.entry(*seed).or_default().push(row.value);
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
    pub(super) fn metric(&self, key: MetricKey<'_>) -> BySeed {
        self.metrics.get(&key).cloned().unwrap_or_default()
    }

    /// The metric on every bootstrap resample of its examples, where the report has one seed.
    pub(super) fn resampled(&self, key: MetricKey<'_>) -> &'a [f32] {
        self.resamples.get(&key).copied().unwrap_or_default()
    }

    /// What the intervals of differences are taken over.
    pub(super) fn basis(&self) -> Basis {
        let pictures = self.inputs.runs.iter().any(|run| !run.outcomes.is_empty());
        let resampled = !self.resamples.is_empty();
        match self.most_seeds() {
            2.. if pictures => Basis::Pictures,
            2.. => Basis::Seeds,
            // Of one seed, single pictures and resamples say the same.
            _ if pictures || resampled => Basis::Examples,
            _ => Basis::Nothing,
        }
    }

    /// The paired difference of one metric between two models.
    pub(super) fn difference(
        &self,
        ours: MetricKey<'_>,
        theirs: MetricKey<'_>,
        coverage: f64,
    ) -> Option<Difference> {
        let values = (self.metric(ours), self.metric(theirs));
        if self.basis() != Basis::Examples {
            return paired(&values.0, &values.1, coverage);
        }
        let one = |values: &BySeed| values.values().next().copied();
        let resampled = self.resampled(ours).iter().zip(self.resampled(theirs));
        let differences = resampled.map(|(a, b)| f64::from(*a) - f64::from(*b));
        over_examples((one(&values.0)?, one(&values.1)?), differences, coverage)
    }

    /// One analysis of a whole layer, by seed.
    pub(super) fn layer(&self, key: LayerKey<'_>) -> BySeed {
        self.layers.get(&key).cloned().unwrap_or_default()
    }

    /// Experts' values in descending order within each seed, averaged over seeds: expert
    /// numbers mean nothing across seeds.
    pub(super) fn ranked_experts(&self, key: LayerKey<'_>) -> Vec<f64> {
        self.experts.get(&key).map_or_else(Vec::new, ranked)
    }

    /// The MoE layers that any run was analyzed at, image tower first.
    pub(super) fn moe_layers(&self) -> Vec<Layer> {
        let keys = self.layers.keys().chain(self.experts.keys());
        distinct(keys.map(|key| key.layer))
    }

    /// Seeds of a run, ascending.
    pub(super) fn seeds(&self, run: &str) -> Vec<u64> {
        let seeds: BTreeSet<_> = self.of(run).map(|r| r.seed).collect();
        seeds.into_iter().collect()
    }

    /// The number of seeds of the run that has most.
    pub(super) fn most_seeds(&self) -> usize {
        self.runs.iter().map(|run| self.seeds(run).len()).max().unwrap_or(0)
    }

    /// The inputs of a run, one per seed.
    pub(super) fn of(&self, run: &str) -> impl Iterator<Item = &'a RunInputs> {
        self.inputs.runs.iter().filter(move |r| r.run == run)
    }

    /// The readable name of a run: `Cluster-aware + EESD`.
    pub(super) fn name(&self, run: &str) -> String {
        self.names.get(run).cloned().unwrap_or_else(|| run.to_owned())
    }

    /// CSS classes of a run's color: the same in every report, whatever else it compares.
    pub(super) fn class(run: &str) -> String {
        let known = COLORS.iter().find(|(name, _)| *name == run);
        if let Some((_, class)) = known {
            return (*class).to_owned();
        }
        // Another name gets a color by its letters, dashed to tell it from the shipped runs.
        let sum: u32 = run.bytes().map(u32::from).sum();
        format!("c{} dashed", sum % HUES)
    }

    /// Whether the pictures are those that come with the program, or drawn by it: their splits
    /// have the meanings that their sources give them.
    pub(super) fn shipped_pictures(&self) -> bool {
        let source = self.config().dataset.source;
        matches!(source, Source::Emoji | Source::Icons | Source::Shapes)
    }

    /// Whether the dense model was brought by the user instead of trained here.
    pub(super) fn imported(&self) -> bool {
        !self.config().pretrain.checkpoint.is_empty()
    }

    /// What the dense model is called that all runs start from.
    pub(super) fn checkpoint(&self) -> &'static str {
        if self.imported() {
            "the checkpoint you brought"
        } else {
            "the pretrained dense model"
        }
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

    /// The runs that the main figures show: dense, ablation, reference and showcase.
    pub(super) fn focus(&self) -> Vec<String> {
        let report = &self.config().report;
        let wanted = |run: &&String| {
            !self.is_moe(run)
                || report.ablation.contains(run)
                || **run == report.reference
                || **run == report.showcase
        };
        self.runs.iter().filter(wanted).cloned().collect()
    }

    /// Reference and showcase, where they have experts and data.
    pub(super) fn pair(&self) -> Vec<String> {
        let report = &self.config().report;
        let mut pair = vec![report.reference.clone(), report.showcase.clone()];

        // The showcase may be the reference itself, and is then shown once.
        pair.dedup();
        pair.retain(|run| self.has(run) && self.is_moe(run));
        pair
    }
}

/// Values sorted in descending order within each seed, then averaged rank by rank.
pub(super) fn ranked(seeds: &BTreeMap<u64, Vec<f64>>) -> Vec<f64> {
    let mut ranks: Vec<Vec<f64>> = Vec::new();
    for values in seeds.values() {
        let finite = values.iter().copied().filter(|v| v.is_finite());
        let mut values: Vec<f64> = finite.collect();
        values.sort_by(|a, b| b.total_cmp(a));

        for (rank, value) in values.into_iter().enumerate() {
            match ranks.get_mut(rank) {
                Some(list) => list.push(value),
                None => ranks.push(vec![value]),
            }
        }
    }

    ranks.iter().map(|values| crate::num::mean(values)).collect()
}

/// The layers that occur, in their order.
pub(super) fn distinct<'l>(layers: impl Iterator<Item = &'l Layer>) -> Vec<Layer> {
    let distinct: BTreeSet<&Layer> = layers.collect();
    distinct.into_iter().cloned().collect()
}

/// Mean and spread over seeds.
pub(super) fn over_seeds(values: &BySeed) -> Option<Summary> {
    summary(values.values().copied())
}

/// A difference of fractions as percentage points.
pub(super) fn in_points(difference: Difference) -> Difference {
    let interval = difference.interval.map(|(low, high)| (100.0 * low, 100.0 * high));
    Difference { mean: 100.0 * difference.mean, interval, ..difference }
}

/// Readable names of runs. Where two would be equal, both keep their key.
fn names(config: &Config) -> BTreeMap<String, String> {
    let all: Vec<String> = config.runs.values().map(readable).collect();
    let unique = |name: &String| all.iter().filter(|other| *other == name).count() == 1;

    // A run is found again by its key, which cannot be ambiguous.
    let name = |(run, name): (&String, &String)| {
        (run.clone(), if unique(name) { name } else { run }.clone())
    };
    config.runs.keys().zip(&all).map(name).collect()
}

/// Initializations whose names have capitals of their own.
const SPELLED: [(&str, &str); 4] = [
    ("svd", "SVD"),
    ("drop-svd", "Drop-SVD"),
    ("clip-moe", "CLIP-MoE"),
    ("ders-lm", "DeRS-LM"),
];

/// `Cluster-aware + EESD`, from the name of the initialization, what trains and whether it has
/// EESD.
fn readable(run: &RunConfig) -> String {
    let spelled = SPELLED.iter().find_map(|(key, name)| {
        let rest = run.init.strip_prefix(key)?;
        Some(format!("{name}{rest}"))
    });
    let mut name = spelled.unwrap_or_else(|| super::words::capital(&run.init));

    if run.trains == Trains::Routers {
        name.push_str(", routers alone");
    }
    if run.eesd > 0.0 {
        name.push_str(" + EESD");
    }
    name
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
    fn runs_are_named_as_people_write_them() {
        let run = |init: &str, trains, eesd| {
            let all = crate::config::load_default(&crate::config::Overrides::default());
            let sparse = all.unwrap().runs["sparse"].clone();
            readable(&RunConfig { init: init.to_owned(), trains, eesd, ..sparse })
        };
        assert_eq!(run("clip-moe", Trains::All, 0.0), "CLIP-MoE");
        assert_eq!(run("clip-moe", Trains::Routers, 0.0), "CLIP-MoE, routers alone");
        assert_eq!(run("drop-svd", Trains::All, 0.0), "Drop-SVD");
        assert_eq!(run("cluster-aware", Trains::All, 0.1), "Cluster-aware + EESD");
    }

    #[test]
    fn the_image_tower_comes_first() {
        let layers = [("text", 1), ("vision", 3), ("vision", 1), ("text", 1)];
        let layers = layers.map(|(tower, block)| Layer::new(tower, block));
        let layers = distinct(layers.iter());
        let order: Vec<_> = layers.iter().map(|l| (l.tower.as_str(), l.block)).collect();
        assert_eq!(order, [("vision", 1), ("vision", 3), ("text", 1)]);
    }
}
