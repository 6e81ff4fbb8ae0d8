//! What the report is made of: the rows of all stages' tables, run by run.
//!
//! This is plain data without paths, hosts or times, so that rendering is a pure function of
//! it. [`super::load()`] fills it from artifacts; tests fill it with synthetic rows.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::gallery::Gallery;
use crate::config::{Config, RunConfig};
use crate::tables::{
    AnalysisRow, ClusterRow, ExpertSimilarityRow, IterationRow, LogRow, MetricRow,
    PixelRow, ResampleRow, RetrievalRow, RoutingRow, SetMetricRow, SetResampleRow,
    SimilarityRow, SpectrumRow, SubspaceRow, ValidationRow,
};

/// Everything the report shows.
#[derive(Debug, Clone)]
pub struct ReportInputs {
    /// The checked configuration of the pipeline.
    pub config: Config,
    /// What `dataset.json` says.
    pub dataset: DatasetMeta,
    /// One entry per run and seed.
    pub runs: Vec<RunInputs>,
    /// Clusterings, one entry per dense base.
    pub clusterings: Vec<Clustering>,
    /// Subspaces, one entry per variant and dense base.
    pub subspaces: Vec<Subspaces>,
    /// Example retrievals of the showcase run at its first seed.
    pub retrievals: Vec<RetrievalRow>,
    /// PNG bytes of the pictures that those rows name, by sample.
    pub pictures: BTreeMap<u32, Vec<u8>>,
    /// What models made of single validation samples.
    pub gallery: Gallery,
    /// Classifiers on pixels: `pixels.parquet`; empty where they are not asked for.
    pub pixels: Vec<PixelRow>,
    /// Trainings of section `sweep`, one entry per factor and value, in their order.
    pub sweep: Vec<SweepInputs>,
    /// Measurements on the sets of `evaluate.sets`, one entry per model and set.
    pub sets: Vec<SetInputs>,
}

/// One value of a factor of section `sweep`.
#[derive(Debug, Clone, Default)]
pub struct SweepInputs {
    /// Name of the factor.
    pub factor: String,
    /// Name of the run that is trained.
    pub run: String,
    /// The value, as assignments.
    pub value: String,
    /// Whether it is what the configuration has anyway.
    pub is_default: bool,
    /// Its trainings by seed.
    pub seeds: BTreeMap<u64, Swept>,
}

/// A training of a sweep.
#[derive(Debug, Clone, Default)]
pub struct Swept {
    /// `log.parquet`.
    pub log: Vec<LogRow>,
    /// `validation.parquet`.
    pub validation: Vec<ValidationRow>,
}

/// One model on one set of `evaluate.sets`.
#[derive(Debug, Clone, Default)]
pub struct SetInputs {
    /// Name of the set.
    pub set: String,
    /// Name of the run; `None` for the dense model that the runs start from, untouched.
    pub run: Option<String>,
    /// Seed of the run, or of the dense model.
    pub seed: u64,
    /// `set_metrics.parquet`.
    pub metrics: Vec<SetMetricRow>,
    /// `set_resamples.parquet`.
    pub resamples: Vec<SetResampleRow>,
}

/// The keys of `dataset.json` that the report uses.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct DatasetMeta {
    /// Kind of source the pictures come from.
    pub source: String,
    /// Number of pictures of each split.
    #[serde(default)]
    pub splits: BTreeMap<String, u64>,
    /// Test splits in report order.
    #[serde(default)]
    pub tests: Vec<String>,
    /// Test splits whose mean is the shift score.
    #[serde(default)]
    pub shifts: Vec<String>,
    /// Split that the retrieval task uses.
    #[serde(default)]
    pub retrieval: String,
    /// Split of concepts that are never trained on.
    #[serde(default)]
    pub held_out: Option<String>,
    /// Number of classes, where not all concepts are.
    #[serde(default)]
    pub classes: Option<u64>,
    /// Zero-shot prompts.
    #[serde(default)]
    pub templates: Vec<String>,
    /// Credits for the pictures.
    #[serde(default)]
    pub attribution: Vec<String>,
}

/// What an outcome is one of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutcomeKey {
    /// `init` (before training) or `final`.
    pub point: String,
    /// Task.
    pub task: String,
    /// Metric.
    pub metric: String,
    /// Split.
    pub split: String,
}

/// The samples of pictures, ascending, and how each fared. The table has a row for every
/// picture and metric: millions, which do not fit into memory as rows.
pub type Outcomes = BTreeMap<OutcomeKey, Vec<(u32, f32)>>;

/// All tables of one run at one seed.
#[derive(Debug, Clone, Default)]
pub struct RunInputs {
    /// Name of the run in the configuration.
    pub run: String,
    /// Seed of the run.
    pub seed: u64,
    /// Size of its model, as far as it is known.
    pub facts: Facts,
    /// What it took to make and to run it, as far as it was measured.
    pub cost: Cost,
    /// `log.parquet`.
    pub log: Vec<LogRow>,
    /// `routing.parquet`; empty for a dense run.
    pub routing: Vec<RoutingRow>,
    /// `validation.parquet`.
    pub validation: Vec<ValidationRow>,
    /// `similarity.parquet`, over the training; empty for a dense run.
    pub trained_similarity: Vec<ExpertSimilarityRow>,
    /// `metrics.parquet`.
    pub metrics: Vec<MetricRow>,
    /// `outcomes.parquet`, gathered.
    pub outcomes: Outcomes,
    /// `resamples.parquet`, where the report has one seed.
    pub resamples: Vec<ResampleRow>,
    /// `analysis.parquet`; empty for a dense run.
    pub analysis: Vec<AnalysisRow>,
    /// `similarity_matrix.parquet`; empty for a dense run.
    pub similarity: Vec<SimilarityRow>,
}

/// Size of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Facts {
    /// Parameters of the model.
    pub parameters_total: Option<u64>,
    /// Parameters that take part in the computation of one token.
    pub parameters_active: Option<u64>,
}

/// What a run took, as the manifests of its results say. It depends on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Seconds of its training.
    pub training: Option<f64>,
    /// Largest resident memory, in bytes, of the process that trained it.
    pub memory: Option<f64>,
    /// Milliseconds that its image tower takes for a picture.
    pub picture: Option<f64>,
    /// Threads of that evaluation.
    pub threads: Option<f64>,
}

/// Clustering of one base.
#[derive(Debug, Clone, Default)]
pub struct Clustering {
    /// Seed of the base.
    pub seed: u64,
    /// `clusters.parquet`.
    pub clusters: Vec<ClusterRow>,
    /// `iterations.parquet`.
    pub iterations: Vec<IterationRow>,
}

/// Subspaces of one variant on one base.
#[derive(Debug, Clone, Default)]
pub struct Subspaces {
    /// Name of the variant in the configuration.
    pub variant: String,
    /// Seed of the base.
    pub seed: u64,
    /// `subspaces.parquet`.
    pub experts: Vec<SubspaceRow>,
    /// `spectra.parquet`.
    pub spectra: Vec<SpectrumRow>,
}

/// The runs in the order of every table: dense ones, the reference, the ablation, the
/// showcase, then the rest by name.
pub(super) fn ordered_runs(config: &Config) -> Vec<String> {
    let report = &config.report;
    let dense = config.runs.iter().filter(|(_, run)| is_dense(config, run));

    // A run may be named for several reasons; the first of them decides its place.
    let names = dense
        .map(|(name, _)| name)
        .chain([&report.reference])
        .chain(&report.ablation)
        .chain([&report.showcase])
        .chain(config.runs.keys());

    let mut order: Vec<String> = Vec::new();
    for name in names {
        if config.runs.contains_key(name) && !order.contains(name) {
            order.push(name.clone());
        }
    }
    order
}

/// Whether a run trains a dense model.
pub(super) fn is_dense(config: &Config, run: &RunConfig) -> bool {
    config.inits.get(&run.init).is_some_and(|init| init.method == "dense")
}
