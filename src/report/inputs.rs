//! What the report is made of: the tables of all stages as small row structs.
//!
//! Plain data without paths, hosts or times, so that rendering is a pure function of it.
//! [`super::load`] fills these from artifacts; tests fill them with drawn figures.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::{Config, RunConfig};

/// The expert number that stands for a whole layer in `analysis.parquet`.
pub const WHOLE_LAYER: u32 = u32::MAX;

/// Everything the report shows.
#[derive(Debug, Clone)]
pub struct ReportInputs {
    /// The checked configuration of the pipeline.
    pub config: Config,
    /// What `dataset.json` says.
    pub dataset: DatasetMeta,
    /// One entry a run and seed.
    pub runs: Vec<RunInputs>,
    /// Clustering, one entry a dense base.
    pub clusterings: Vec<Clustering>,
    /// Subspaces, one entry a variant and base.
    pub subspaces: Vec<Subspaces>,
    /// Example retrievals of the showcase run at its first seed.
    pub retrievals: Vec<RetrievalRow>,
    /// PNG bytes of the pictures those rows name, by sample.
    pub pictures: BTreeMap<u32, Vec<u8>>,
}

/// `dataset.json`, the keys that the report uses.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct DatasetMeta {
    /// Which data set.
    pub source: String,
    /// Pictures of each split.
    #[serde(default)]
    pub splits: BTreeMap<String, u64>,
    /// Test splits in report order.
    #[serde(default)]
    pub tests: Vec<String>,
    /// Those whose mean is the shift score.
    #[serde(default)]
    pub shifts: Vec<String>,
    /// Split of the retrieval task.
    #[serde(default)]
    pub retrieval: String,
    /// Split of concepts never trained on.
    #[serde(default)]
    pub held_out: Option<String>,
    /// Zero-shot prompts.
    #[serde(default)]
    pub templates: Vec<String>,
    /// Credits.
    #[serde(default)]
    pub attribution: Vec<String>,
}

/// All tables of one run at one seed.
#[derive(Debug, Clone, Default)]
pub struct RunInputs {
    /// Name of the run in the configuration.
    pub run: String,
    /// Its seed.
    pub seed: u64,
    /// Size, as far as known.
    pub facts: Facts,
    /// `log.parquet`.
    pub log: Vec<LogRow>,
    /// `routing.parquet`; empty for a dense run.
    pub routing: Vec<RoutingRow>,
    /// `validation.parquet`.
    pub validation: Vec<ValidationRow>,
    /// `metrics.parquet`.
    pub metrics: Vec<MetricRow>,
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
    /// Parameters that one token meets.
    pub parameters_active: Option<u64>,
}

/// A row of `log.parquet`, the columns that are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogRow {
    /// Optimiser step.
    pub step: u32,
    /// Total loss.
    pub loss: f64,
    /// Contrastive loss.
    pub clip: f64,
    /// Load-balance loss, unweighted.
    pub balance: f64,
    /// Self-distillation loss, unweighted.
    pub eesd: f64,
}

/// A row of `routing.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingRow {
    /// Optimiser step.
    pub step: u32,
    /// Tower of the layer.
    pub tower: String,
    /// Block index.
    pub layer: u32,
    /// Mean routing entropy in nats.
    pub entropy: f64,
    /// Share of assignments of each expert.
    pub utilisation: Vec<f32>,
}

/// A row of `validation.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidationRow {
    /// Optimiser step.
    pub step: u32,
    /// Name of the figure.
    pub metric: String,
    /// Its value.
    pub value: f64,
}

/// A row of `metrics.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRow {
    /// `init` or `final`.
    pub point: String,
    /// Task.
    pub task: String,
    /// Split.
    pub split: String,
    /// Metric.
    pub metric: String,
    /// Share in 0..1.
    pub value: f64,
}

/// A row of `analysis.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct AnalysisRow {
    /// `init` or `final`.
    pub point: String,
    /// Tower of the layer.
    pub tower: String,
    /// Block index.
    pub layer: u32,
    /// Metric.
    pub metric: String,
    /// Expert, or [`WHOLE_LAYER`].
    pub expert: u32,
    /// Its value.
    pub value: f64,
}

/// A row of `similarity_matrix.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct SimilarityRow {
    /// `init` or `final`.
    pub point: String,
    /// Tower of the layer.
    pub tower: String,
    /// Block index.
    pub layer: u32,
    /// Row of the matrix.
    pub expert: u32,
    /// Column of the matrix.
    pub other: u32,
    /// Cosine of the two experts' weights.
    pub cosine: f64,
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

/// A row of `clusters.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterRow {
    /// Tower of the layer.
    pub tower: String,
    /// Block index.
    pub layer: u32,
    /// Cluster.
    pub cluster: u32,
    /// Tokens in it.
    pub size: u32,
    /// Mean cosine of its tokens to its centroid.
    pub mean_cosine: f64,
}

/// A row of `iterations.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct IterationRow {
    /// Tower of the layer.
    pub tower: String,
    /// Block index.
    pub layer: u32,
    /// Independent start.
    pub restart: u32,
    /// Lloyd iteration.
    pub iteration: u32,
    /// Mean cosine to the assigned centroid.
    pub objective: f64,
    /// Whether this restart won.
    pub chosen: bool,
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

/// A row of `subspaces.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct SubspaceRow {
    /// Tower of the layer.
    pub tower: String,
    /// Block index.
    pub layer: u32,
    /// Expert.
    pub expert: u32,
    /// `fc1` or `fc2`.
    pub matrix: String,
    /// Tokens of its cluster.
    pub tokens: u32,
    /// Kept rank.
    pub rank: u32,
    /// Rank of the dense matrix's output space.
    pub full_rank: u32,
    /// Share of energy kept.
    pub retained: f64,
    /// Relative squared output error on the own cluster.
    pub error_inside: f64,
    /// The same on the other clusters.
    pub error_outside: f64,
    /// Shrinkage that was applied.
    pub shrinkage: f64,
}

/// A row of `spectra.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct SpectrumRow {
    /// Tower of the layer.
    pub tower: String,
    /// Block index.
    pub layer: u32,
    /// Expert.
    pub expert: u32,
    /// `fc1` or `fc2`.
    pub matrix: String,
    /// Position in descending order.
    pub index: u32,
    /// Share of the total energy.
    pub energy: f64,
}

/// A row of `retrievals.parquet`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalRow {
    /// Number of the query.
    pub query: u32,
    /// Its caption.
    pub text: String,
    /// The picture it describes.
    pub sample: u32,
    /// Place of that picture in the whole ranking from 0, where it is known.
    pub own_rank: Option<u32>,
    /// Place in the ranking, ascending.
    pub rank: u32,
    /// The picture at that place.
    pub retrieved: u32,
    /// Cosine of caption and picture.
    pub score: f32,
}

/// The runs in the order of every table: dense ones, the ablation, the showcase, the rest.
pub(super) fn ordered_runs(config: &Config) -> Vec<String> {
    let dense = config.runs.iter().filter(|(_, run)| is_dense(config, run));
    let dense = dense.map(|(name, _)| name);
    let named = config.report.ablation.iter().chain([&config.report.showcase]);
    let mut order: Vec<String> = Vec::new();
    for name in
        dense.chain([&config.report.reference]).chain(named).chain(config.runs.keys())
    {
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
