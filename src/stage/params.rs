//! What each stage may see of the configuration: its slice, and so its key.
//!
//! A parameter that is not in a stage's struct cannot reach that stage and cannot make it
//! stale. Paths are not parameters; they come by [`super::Job::path`].

use serde::{Deserialize, Serialize};

use crate::config::{
    ActivationsConfig, AnalyzeConfig, ClusterConfig, Config, DatasetConfig,
    EvaluateConfig, InitConfig, ModelConfig, MoeConfig, OptimConfig, SubspacesConfig,
    TrainConfig,
};

/// Stage `dataset`. `folder` and `file` are blank: paths do not enter keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetParams {
    /// Section `dataset`.
    pub dataset: DatasetConfig,
}

/// Stage `pretrain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum PretrainParams {
    /// Train a dense model from scratch.
    Train {
        /// Section `model`.
        model: ModelConfig,
        /// Section `pretrain.optim`.
        optim: OptimConfig,
        /// Seed of this base.
        seed: u64,
    },
    /// Take over the checkpoint at `path("checkpoint")`.
    Import {},
}

/// Stage `activations`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationsParams {
    /// Section `activations`.
    pub activations: ActivationsConfig,
    /// Blocks of the image tower to record.
    pub vision_blocks: Vec<usize>,
    /// Blocks of the text tower to record.
    pub text_blocks: Vec<usize>,
    /// Seed of this base.
    pub seed: u64,
}

/// Stage `cluster`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterParams {
    /// Section `cluster`.
    pub cluster: ClusterConfig,
    /// Clusters of a layer: `moe.experts`.
    pub clusters: usize,
    /// Seed of this base.
    pub seed: u64,
}

/// Stage `subspaces`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubspacesParams {
    /// One entry of section `subspaces`.
    pub subspaces: SubspacesConfig,
    /// Seed of this base.
    pub seed: u64,
}

/// Stage `upcycle`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpcycleParams {
    /// One entry of section `inits`, without the name of its variant.
    pub init: InitConfig,
    /// Section `moe`.
    pub moe: MoeConfig,
    /// Seed of this run.
    pub seed: u64,
}

/// Stage `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainParams {
    /// Section `train`.
    pub train: TrainConfig,
    /// λ of EESD in this run.
    pub eesd: f64,
    /// Seed of this run.
    pub seed: u64,
}

/// Stage `evaluate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateParams {
    /// Section `evaluate`.
    pub evaluate: EvaluateConfig,
    /// Seed of this run.
    pub seed: u64,
}

/// Stage `analyze`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyzeParams {
    /// Section `analyze`.
    pub analyze: AnalyzeConfig,
    /// Seed of this run.
    pub seed: u64,
}

/// Stage `report`: it shows the configuration, so it sees all of it but the paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportParams {
    /// The whole configuration.
    pub config: Config,
}
