//! The shape of `pipeline.yaml`: one struct per section, one field per key.
//!
//! Field documentation is short here; the reasons for the values stand beside them in
//! `pipeline.yaml`. Every struct refuses unknown fields.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Compute, Device, Precision};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Run seeds; each is one repetition of the whole comparison.
    pub seeds: Vec<u64>,
    /// What runs models.
    pub device: Device,
    /// The numbers that models are multiplied in.
    pub precision: Precision,
    /// Where the pictures and captions come from and how they are prepared.
    pub dataset: DatasetConfig,
    /// Architecture of the dense model.
    pub model: ModelConfig,
    /// Dense training from scratch.
    pub pretrain: PretrainConfig,
    /// Recording of FFN inputs.
    pub activations: ActivationsConfig,
    /// Spherical k-means.
    pub cluster: ClusterConfig,
    /// Fine-tunings that give the experts of CLIP-MoE.
    pub multiplet: MultipletConfig,
    /// Data-aware subspaces: one entry per variant.
    pub subspaces: BTreeMap<String, SubspacesConfig>,
    /// Where the experts go and how tokens are routed.
    pub moe: MoeConfig,
    /// How a dense model becomes an MoE: one entry per initialization.
    pub inits: BTreeMap<String, InitConfig>,
    /// MoE training after upcycling.
    pub train: TrainConfig,
    /// The compared runs: an initialization and a loss.
    pub runs: BTreeMap<String, RunConfig>,
    /// Hyperparameters tried on the validation split, one factor at a time.
    pub sweep: SweepConfig,
    /// Evaluation on the held-out splits.
    pub evaluate: EvaluateConfig,
    /// Analyses of experts and routing.
    pub analyze: AnalyzeConfig,
    /// The report.
    pub report: ReportConfig,
}

impl Config {
    /// Device and precision.
    pub fn compute(&self) -> Compute {
        Compute { device: self.device, precision: self.precision }
    }

    /// The seeds that train a dense model.
    pub fn base_seeds(&self) -> &[u64] {
        match self.pretrain.bases {
            Bases::PerSeed => &self.seeds,
            Bases::Shared => self.seeds.get(..1).unwrap_or_default(),
        }
    }

    /// The seed whose dense model the runs of `seed` start from.
    pub fn base_of(&self, seed: u64) -> u64 {
        match self.pretrain.bases {
            Bases::PerSeed => seed,
            Bases::Shared => self.seeds.first().copied().unwrap_or(seed),
        }
    }
}

/// Where the pictures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Emoji drawn by many vendors, from pinned npm packages.
    Emoji,
    /// Icons of all of iconify's sets, from one pinned npm package.
    Icons,
    /// A folder of images with a `captions.csv`, or of one folder per class.
    Folder,
    /// Tables of picture paths and captions, CSV or TSV.
    Csv,
    /// Parquet with the pictures inside (Hugging Face's layout).
    Parquet,
    /// Captions in JSON: COCO's or Karpathy's.
    Coco,
    /// Tar shards of `WebDataset`: `*.tar` or `SPLIT/*.tar`.
    Webdataset,
    /// A small picture set drawn by this program, for tests without a network.
    Shapes,
}

impl Source {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Emoji => "emoji",
            Self::Icons => "icons",
            Self::Folder => "folder",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Coco => "coco",
            Self::Webdataset => "webdataset",
            Self::Shapes => "shapes",
        }
    }

    /// Whether it reads pairs out of the user's files.
    pub fn reads_pairs(self) -> bool {
        !matches!(self, Self::Emoji | Self::Icons | Self::Shapes)
    }
}

/// Which columns of a table or a Parquet file are read; empty for the usual names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColumnNames {
    /// Path or bytes of the picture.
    pub image: String,
    /// Its caption.
    pub caption: String,
    /// What it shows: the name or the number of a class.
    pub label: String,
    /// The split it belongs to.
    pub split: String,
}

impl ColumnNames {
    /// Whether no name is given; such a section is left out of the key.
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

/// Section `dataset`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// Which data set.
    pub source: Source,
    /// Folder of the user's pictures or files; empty for sources that need none.
    pub folder: String,
    /// Files of `csv`, `coco`, `parquet` and `webdataset`: `{000..099}` is a range, `::` stands
    /// between parts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// How often the training pairs of each part of `file` are repeated; empty for once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// Columns of `csv` and `parquet`.
    #[serde(default, skip_serializing_if = "ColumnNames::is_unset")]
    pub columns: ColumnNames,
    /// Number of pictures `source: shapes` draws.
    pub shapes: usize,
    /// Side of the stored square pictures, in pixels.
    pub image_size: usize,
    /// Keep images with skin tones (emoji and icons only).
    pub skin_tones: bool,
    /// Entries of the BPE vocabulary trained on the training captions.
    pub vocabulary: usize,
    /// Tokens of a caption, start and end included.
    pub context: usize,
    /// Folder of an imported CLIP whose tokenizer, mean and deviation are used; empty for
    /// own ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub like: String,
    /// Fraction of the user's pairs that may be unreadable: they are skipped instead of refused.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub corrupt_share: f64,
}

/// Whether a fraction is 0; such a value is left out of the key.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(share: &f64) -> bool {
    share.abs() <= 0.0
}

/// The FFN's activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Activation {
    /// Exact GELU, x Φ(x) (`open_clip`'s default).
    Gelu,
    /// x sigmoid(1.702 x) (the models of `OpenAI`).
    QuickGelu,
}

impl Activation {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
        }
    }
}

/// Section `model`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Activation of every FFN.
    pub activation: Activation,
    /// Width P of the shared embedding.
    pub embed_dim: usize,
    /// The image tower; its picture size is `dataset.image_size`.
    pub vision: VisionShape,
    /// The text tower; context and vocabulary come from `dataset`.
    pub text: TextShape,
}

/// Shape of the image tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionShape {
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Width d.
    pub width: usize,
    /// Blocks L.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width h of the FFN.
    pub hidden: usize,
}

/// Shape of the text tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextShape {
    /// Width d.
    pub width: usize,
    /// Blocks L.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width h of the FFN.
    pub hidden: usize,
}

/// Which seeds get a dense model of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bases {
    /// Every run seed trains its own dense model: intervals cover the base's luck too.
    PerSeed,
    /// All run seeds share the dense model of the first seed.
    Shared,
}

/// Section `pretrain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// How many dense models are trained.
    pub bases: Bases,
    /// A checkpoint to start from instead of training; empty to train.
    pub checkpoint: String,
    /// Optimization.
    pub optim: OptimConfig,
}

/// Optimization of one training stage (METHOD §5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Image-text pairs per step.
    pub batch: usize,
    /// Pairs whose activations are in memory at a time; 0 for the whole batch. The gradient is
    /// that of the whole batch in any case. On cards the bits of a result depend on it, and
    /// ranks share micro-batches.
    #[serde(default)]
    pub micro_batch: usize,
    /// Sums of gradients that are formed side by side, a power of two: the most threads of a
    /// backward pass, and the most ranks, on processors, where the bits of a result depend on it.
    #[serde(default = "usual_lanes")]
    pub lanes: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine.
    pub final_learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup: usize,
    /// AdamW's first decay.
    pub beta1: f64,
    /// AdamW's second decay.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// Decoupled weight decay of weights; other roles get none.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down.
    pub clip_norm: f64,
    /// Image augmentation.
    pub augment: Augment,
    /// Steps between validations; 0 for only the last.
    pub validate_every: usize,
    /// Steps between resumable checkpoints; 0 for none.
    pub checkpoint_every: usize,
}

/// Lanes of a file that does not say.
fn usual_lanes() -> usize {
    4
}

/// How training pictures are varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Pictures as they are.
    None,
    /// CLIP's random resized crop: area (.9, 1), ratio (3/4, 4/3).
    Crop,
    /// Random affine and color jitter, for drawings.
    Affine,
}

/// Section `activations`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationsConfig {
    /// Training samples that are run through the dense model.
    pub samples: usize,
    /// Tokens kept of each sample and tower, drawn uniformly; 0 keeps all.
    pub tokens_per_sample: usize,
    /// Samples per forward pass.
    pub batch: usize,
}

/// Section `cluster`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Number of Lloyd iterations at most.
    pub iterations: usize,
    /// Independent k-means++ starts; the best objective wins.
    pub restarts: usize,
    /// Stop when the objective gains less than this.
    pub tolerance: f64,
}

/// Section `multiplet` (METHOD §3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultipletConfig {
    /// Clusters of the pictures' embeddings.
    pub image_clusters: usize,
    /// Clusters of the captions' embeddings.
    pub text_clusters: usize,
    /// Fraction of the contrastive target that is spread evenly over the batch.
    pub label_smoothing: f64,
    /// Optimisation of each fine-tuning.
    pub optim: OptimConfig,
}

/// Whose labels a subspace variant uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// The clusters found by k-means.
    Clusters,
    /// The same labels shuffled over the tokens: the control for "any subspace will do".
    Shuffled,
}

impl Labels {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Shuffled => "shuffled",
        }
    }
}

/// Which directions of the outputs a subspace variant keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// Those of the largest energy: the paper's.
    #[default]
    Top,
    /// Random ones inside the column space of W, as many as `top` keeps.
    RandomRank,
    /// Random ones inside the column space of W, as many as it takes to retain τ.
    RandomEnergy,
}

impl Directions {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Top => "top",
            Self::RandomRank => "random-rank",
            Self::RandomEnergy => "random-energy",
        }
    }

    /// Whether these are the default, which is left out of the key.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    fn is_top(&self) -> bool {
        *self == Self::Top
    }
}

/// What the moments are taken about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Center {
    /// About the origin: the paper's form.
    None,
    /// About the cluster's mean: exact on the mean (METHOD §2.3).
    Mean,
}

/// One entry of `subspaces`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubspacesConfig {
    /// Whose labels.
    pub labels: Labels,
    /// Which directions; those of the largest energy if absent.
    #[serde(default, skip_serializing_if = "Directions::is_top")]
    pub directions: Directions,
    /// What the moments are taken about.
    #[serde(rename = "centre")]
    pub center: Center,
    /// Energy τ that the kept rank must retain.
    pub tau: f64,
    /// Smallest rank.
    pub min_rank: usize,
    /// Clusters below this many tokens are shrunk towards the whole.
    pub min_tokens: usize,
    /// Shrinkage α of those clusters.
    pub shrinkage: f64,
}

/// Section `moe`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Experts E of a layer.
    pub experts: usize,
    /// Experts K a token visits.
    pub top_k: usize,
    /// Blocks of the image tower that become MoE layers.
    pub vision_blocks: Blocks,
    /// Blocks of the text tower that become MoE layers.
    pub text_blocks: Blocks,
}

/// Which blocks of a tower become MoE layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blocks {
    /// Every second block, the odd indices.
    #[serde(rename = "every-2")]
    EverySecond,
    /// The last n blocks.
    Last(usize),
    /// These blocks.
    List(Vec<usize>),
}

impl Blocks {
    /// The block indices of a tower of `layers` blocks, ascending.
    pub fn indices(&self, layers: usize) -> Vec<usize> {
        match self {
            Self::EverySecond => (0..layers).filter(|index| index % 2 == 1).collect(),
            Self::Last(n) => (layers.saturating_sub(*n)..layers).collect(),
            Self::List(list) => list.clone(),
        }
    }
}

/// One entry of `inits`: a method of `src/upcycle` with its parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// Name of the method.
    pub method: String,
    /// Variant of `subspaces` the method reads, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subspaces: Option<String>,
    /// Fraction of hidden units (drop) or singular directions (drop-svd) drawn anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// How much of what the subspace discards is taken away (soft-truncation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Rank of what tells experts of `ders-lm` apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Drop: one set of indices per matrix instead of one that both share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub independent_indices: Option<bool>,
    /// Factor on centroid routers; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_scale: Option<f64>,
    /// Standard deviation of random routers; 0.02 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_std: Option<f64>,
    /// Accept equal experts with equal router rows, which training cannot tell apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_identical: Option<bool>,
}

/// Section `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimization.
    pub optim: OptimConfig,
    /// λ of the load-balance loss.
    pub balance: f64,
    /// λ of the router z-loss.
    pub router_z: f64,
    /// Expert-ensemble self-distillation; its weight stands with each run.
    pub eesd: EesdConfig,
}

/// What the student learns to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EesdTarget {
    /// Each MoE layer's output to its own EMA ensemble on the same input.
    Layer,
    /// The final embeddings to those of a full EMA model with dense routing.
    Embedding,
}

/// Section `train.eesd` (METHOD §4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EesdConfig {
    /// What is distilled.
    pub target: EesdTarget,
    /// Fraction of tokens, the most uncertain first; 1 takes all.
    pub tokens: f64,
    /// Half-life of the EMA teacher, as a fraction of the run's steps.
    pub half_life: f64,
    /// Decay of the EMA teacher per step, instead of a half-life; 0 for the half-life.
    pub decay: f64,
}

impl EesdConfig {
    /// The decay of the EMA teacher per step of a run.
    pub fn decay_over(&self, steps: usize) -> f64 {
        if self.decay > 0.0 {
            return self.decay;
        }
        // A half-life below a step would leave no teacher but the student itself.
        0.5_f64.powf(1.0 / (self.half_life * steps as f64).max(1.0))
    }
}

/// One entry of `runs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Entry of `inits`.
    pub init: String,
    /// λ of EESD; 0 if absent.
    #[serde(default)]
    pub eesd: f64,
    /// Which tensors train; all if absent.
    #[serde(default, skip_serializing_if = "Trains::is_all")]
    pub trains: Trains,
    /// `train.eesd.tokens` of this run; as in that section if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eesd_tokens: Option<f64>,
}

/// Which tensors a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trains {
    /// All of them.
    #[default]
    All,
    /// The routers of the MoE layers: CLIP-MoE as published.
    Routers,
}

impl Trains {
    /// Whether it is the default.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
}

/// Section `sweep`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// Seeds of the swept runs, all of them on the dense model of the first seed.
    pub seeds: Vec<u64>,
    /// The factors by name; none for no sweep.
    pub factors: BTreeMap<String, FactorConfig>,
}

/// One entry of `sweep.factors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactorConfig {
    /// Entry of `runs` that is trained with each value.
    pub run: String,
    /// Its values, each one or several assignments as of `--set`.
    pub values: Vec<String>,
}

/// Section `evaluate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateConfig {
    /// k of the retrieval recalls.
    pub recall_at: Vec<usize>,
    /// Shots of the probes.
    pub shots: Vec<usize>,
    /// Draws of the few-shot training sets.
    pub probe_draws: usize,
    /// Most classes of a probe, those with the most training pictures; 0 for all.
    #[serde(default)]
    pub probe_classes: usize,
    /// Inverse regularization is chosen among these ℓ2 weights on the validation split.
    pub probe_l2: Vec<f64>,
    /// Optimisation of the full fine-tuning; 0 steps for none.
    pub fine_tuning: OptimConfig,
    /// Bootstrap resamples of each interval.
    pub bootstrap: usize,
    /// Samples per forward pass.
    pub batch: usize,
    /// Training pictures that the classifiers on pixels are fitted on, at most; 0 for none.
    #[serde(default)]
    pub pixels: usize,
    /// Folders of evaluation sets, as `CLIP_benchmark` stores them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<String>,
}

impl EvaluateConfig {
    /// What results call the set in `folder`: the folder's name without `CLIP_benchmark`'s
    /// `wds_`.
    pub fn set_name(folder: &str) -> String {
        let name = Path::new(folder).file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("wds_").unwrap_or(&name).to_owned()
    }
}

/// Section `analyze`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyzeConfig {
    /// Validation samples whose tokens are analyzed.
    pub samples: usize,
}

/// Section `report`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportConfig {
    /// Heading of the report.
    pub title: String,
    /// Run that the others are compared with, pair by pair.
    pub reference: String,
    /// Run whose retrievals are shown as pictures.
    pub showcase: String,
    /// The 2×2 ablation: no, init only, EESD only, both.
    pub ablation: Vec<String>,
    /// Example retrievals to show.
    pub examples: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_its_half_life_half_of_the_teacher_is_left() {
        let eesd = |half_life: f64, decay: f64| EesdConfig {
            target: EesdTarget::Layer,
            tokens: 1.0,
            half_life,
            decay,
        };
        let left = eesd(0.05, 0.0).decay_over(1200).powi(60);
        assert!((left - 0.5).abs() < 1e-12, "{left}");
        // A decay that is given is taken as it is, and no half-life is shorter than a step.
        assert!((eesd(0.05, 0.999).decay_over(1200) - 0.999).abs() < 1e-15);
        assert!((eesd(0.05, 0.0).decay_over(2) - 0.5).abs() < 1e-15);
    }
}
