//! The tables of stages `pretrain` and `train`.
//!
//! These rows are also part of a resumable checkpoint in JSON, where numbers are kept as
//! their bits: JSON's decimals do not survive exactly, and it has no NaN.

use serde::{Deserialize, Serialize};

use super::{Field, Layer, Row};

/// A training step. Losses are unweighted but for the total.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogRow {
    /// Number of the step, from 0.
    pub step: u32,
    /// Samples seen after it.
    pub samples: u32,
    /// Learning rate.
    #[serde(with = "bits")]
    pub learning_rate: f64,
    /// Total loss, weighted.
    #[serde(with = "bits")]
    pub loss: f64,
    /// Contrastive loss.
    #[serde(with = "bits")]
    pub clip: f64,
    /// Load-balance loss.
    #[serde(with = "bits")]
    pub balance: f64,
    /// Router z-loss.
    #[serde(with = "bits")]
    pub router_z: f64,
    /// Self-distillation loss.
    #[serde(with = "bits")]
    pub eesd: f64,
    /// Global gradient norm before clipping.
    #[serde(with = "bits")]
    pub gradient_norm: f64,
    /// Logit scale before the step.
    #[serde(with = "bits")]
    pub logit_scale: f64,
    /// Length of the self-distillation's gradient on the experts over that of all other
    /// losses, as it was measured last; 0 without distillation.
    #[serde(with = "bits")]
    pub eesd_gradient_ratio: f64,
}

impl Row for LogRow {
    const FILE: &'static str = "log.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("step", |row| &mut row.step),
            Field::new("samples", |row| &mut row.samples),
            Field::new("learning_rate", |row| &mut row.learning_rate),
            Field::new("loss", |row| &mut row.loss),
            Field::new("clip", |row| &mut row.clip),
            Field::new("balance", |row| &mut row.balance),
            Field::new("router_z", |row| &mut row.router_z),
            Field::new("eesd", |row| &mut row.eesd),
            Field::new("gradient_norm", |row| &mut row.gradient_norm),
            Field::new("logit_scale", |row| &mut row.logit_scale),
            Field::new("eesd_gradient_ratio", |row| &mut row.eesd_gradient_ratio),
        ]
    }
}

/// Routing of one MoE layer in one training step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RoutingRow {
    /// Number of the step, from 0.
    pub step: u32,
    /// The MoE layer.
    pub layer: Layer,
    /// Entropy of the router's softmax in nats, mean over tokens.
    #[serde(with = "bits")]
    pub entropy: f64,
    /// Fraction of the assignments that go to each expert.
    #[serde(with = "bits")]
    pub utilisation: Vec<f32>,
}

impl Row for RoutingRow {
    const FILE: &'static str = "routing.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("step", |row| &mut row.step),
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("entropy", |row| &mut row.entropy),
            Field::new("utilisation", |row| &mut row.utilisation),
        ]
    }
}

/// How alike the experts of one MoE layer are during training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ExpertSimilarityRow {
    /// Steps done before it.
    pub step: u32,
    /// The MoE layer.
    pub layer: Layer,
    /// Mean cosine of the flattened weights over pairs of experts.
    #[serde(with = "bits")]
    pub similarity: f64,
}

impl Row for ExpertSimilarityRow {
    const FILE: &'static str = "similarity.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("step", |row| &mut row.step),
            Field::new("tower", |row| &mut row.layer.tower),
            Field::new("layer", |row| &mut row.layer.block),
            Field::new("similarity", |row| &mut row.similarity),
        ]
    }
}

/// One metric of a validation during training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ValidationRow {
    /// Steps done before it.
    pub step: u32,
    /// Name of the metric.
    pub metric: String,
    /// Its value.
    #[serde(with = "bits")]
    pub value: f64,
}

impl Row for ValidationRow {
    const FILE: &'static str = "validation.parquet";

    fn columns() -> Vec<Field<Self>> {
        vec![
            Field::new("step", |row| &mut row.step),
            Field::new("metric", |row| &mut row.metric),
            Field::new("value", |row| &mut row.value),
        ]
    }
}

/// Numbers as their bits.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// What can be written as its bits and read back.
    pub(super) trait Bits {
        type Whole: Serialize + for<'de> Deserialize<'de>;

        fn to_bits(&self) -> Self::Whole;

        fn from_bits(bits: Self::Whole) -> Self;
    }

    impl Bits for f64 {
        type Whole = u64;

        fn to_bits(&self) -> u64 {
            Self::to_bits(*self)
        }

        fn from_bits(bits: u64) -> Self {
            Self::from_bits(bits)
        }
    }

    impl Bits for Vec<f32> {
        type Whole = Vec<u32>;

        fn to_bits(&self) -> Vec<u32> {
            self.iter().map(|value| value.to_bits()).collect()
        }

        fn from_bits(bits: Vec<u32>) -> Self {
            bits.into_iter().map(f32::from_bits).collect()
        }
    }

    pub(super) fn serialize<T: Bits, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Bits, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        T::Whole::deserialize(deserializer).map(T::from_bits)
    }
}
