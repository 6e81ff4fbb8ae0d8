//! What became of the experts: five analyses of one MoE layer, pure functions on arrays.
//!
//! They answer the paper's questions (arXiv 2604.13508, figures 4, 5 and B.1 to B.4): are
//! the experts different, is the router decided, is the load balanced, are the outputs
//! separated. A layer comes as arrays ([`LayerView`]); where they come from, at which step
//! and of which tower is the caller's business. All sums are in f64 and in index order.
//!
//! Beside them stand what became of single tokens ([`first_experts`]) and a picture of the
//! whole model, its embeddings in two dimensions ([`map()`]).
//!
//! A quantity that is not defined (the similarity of one expert, the routing probability of
//! an expert without tokens) gives no [`Reading`] and never a made-up number.
//!
//! Axes: N tokens, E experts, K experts of a token, d width, h hidden width.

mod compactness;
mod entropy;
mod first;
mod map;
mod routing;
mod routing_probability;
mod similarity;
mod utilization;

pub use compactness::{Compactness, compactness};
pub use entropy::{Entropy, entropy};
pub use first::{First, first_experts};
pub use map::map;
pub use routing::Routing;
pub use routing_probability::routing_probability;
pub use similarity::{SimilarityMatrix, similarity, similarity_about};
pub use utilization::{Utilization, utilization};

use crate::error::{Error, Result};
use crate::ffn::FfnTensors;
use crate::linalg::Matrix;

/// The metric names of `analysis.parquet`.
pub mod metric {
    /// Mean off-diagonal cosine of the experts' weights.
    pub const SIMILARITY: &str = "similarity";
    /// The same on the differences from the dense weights.
    pub const SIMILARITY_OF_DIFFERENCES: &str = "similarity_of_differences";
    /// Mean routing entropy in nats.
    pub const ENTROPY: &str = "entropy";
    /// Mean routing entropy as a fraction of ln E.
    pub const ENTROPY_NORMALIZED: &str = "entropy_normalised";
    /// Fraction of the assignments, per expert.
    pub const UTILIZATION: &str = "utilisation";
    /// Coefficient of variation of the utilization.
    pub const UTILIZATION_CV: &str = "utilisation_cv";
    /// Number of experts with less than a tenth of the fair fraction 1/E.
    pub const DEAD_EXPERTS: &str = "dead_experts";
    /// Mean probability over the tokens assigned to an expert, per expert.
    pub const ROUTING_PROBABILITY: &str = "routing_probability";
    /// [`ENTROPY_NORMALIZED`] over the pooled tokens alone, those that become embeddings.
    pub const POOLED_ENTROPY_NORMALIZED: &str = "pooled_entropy_normalised";
    /// [`UTILIZATION`] over the pooled tokens alone, per expert.
    pub const POOLED_UTILIZATION: &str = "pooled_utilisation";
    /// [`UTILIZATION_CV`] over the pooled tokens alone.
    pub const POOLED_UTILIZATION_CV: &str = "pooled_utilisation_cv";
    /// [`DEAD_EXPERTS`] over the pooled tokens alone.
    pub const POOLED_DEAD_EXPERTS: &str = "pooled_dead_experts";
    /// tr(`S_W` `S_B`⁺) / E.
    pub const COMPACTNESS: &str = "compactness";
    /// tr(`S_W`) / tr(`S_B`).
    pub const COMPACTNESS_TRACE_RATIO: &str = "compactness_trace_ratio";
    /// tr(`S_W`) / tr(`S_W` + `S_B`).
    pub const COMPACTNESS_WITHIN_SHARE: &str = "compactness_within_share";
}

/// One MoE layer and what it did to N tokens.
#[derive(Debug, Clone, Copy)]
pub struct LayerView<'a> {
    /// Routing probabilities `[N, E]`.
    pub probs: &'a Matrix,
    /// K.
    pub top_k: usize,
    /// The experts of every token [N·K], best first.
    pub assigned: &'a [u32],
    /// The tokens that become embeddings, one per sample: the class token of a picture, the
    /// end of a caption. In the last block of a tower, they alone get a gradient of the task.
    pub pooled: &'a [usize],
    /// The output of every token's first expert `[N, d]`.
    pub outputs: &'a Matrix,
    /// The weights of every expert; biases are not read.
    pub experts: &'a [FfnTensors<'a>],
    /// The dense weights the experts started from, if they are known.
    pub dense: Option<FfnTensors<'a>>,
}

/// One number of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// One of [`metric`].
    pub metric: &'static str,
    /// The expert it belongs to; `None` for the whole layer.
    pub expert: Option<usize>,
    /// The number.
    pub value: f64,
}

/// Everything read off one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAnalysis {
    /// All defined numbers, in the order of [`metric`].
    pub readings: Vec<Reading>,
    /// Cosines between the experts' weights `[E, E]`.
    pub cosines: SimilarityMatrix,
}

/// Runs all analyses on one layer.
///
/// # Errors
/// Shapes that disagree, no tokens, probabilities that do not sum to 1, an expert index out
/// of range or twice in a token, non-finite values.
pub fn analyze_layer(view: &LayerView<'_>) -> Result<LayerAnalysis> {
    let routing = Routing::new(view.probs, view.top_k, view.assigned)?;
    let n_experts = routing.experts();
    if view.experts.len() != n_experts {
        let found = view.experts.len();
        return Err(Error::failed(format!(
            "expert weights: found {found} experts, expected {n_experts} as in the \
             probabilities"
        )));
    }

    let cosines = similarity(view.experts)?;
    // In the order of the metric names: the rows of the table come in this order.
    let mut out = Readings::default();
    out.layer(metric::SIMILARITY, cosines.mean_off_diagonal());
    if let Some(dense) = view.dense {
        let differences = similarity_about(view.experts, dense)?;
        out.layer(metric::SIMILARITY_OF_DIFFERENCES, differences.mean_off_diagonal());
    }

    let entropy = entropy(&routing);
    out.layer(metric::ENTROPY, Some(entropy.nats));
    out.layer(metric::ENTROPY_NORMALIZED, entropy.normalized);

    let load = utilization(&routing);
    out.experts(metric::UTILIZATION, load.fractions.iter().copied().map(Some));
    out.layer(metric::UTILIZATION_CV, Some(load.variation));
    out.layer(metric::DEAD_EXPERTS, Some(load.dead.len() as f64));
    out.experts(metric::ROUTING_PROBABILITY, routing_probability(&routing));

    pooled(view, &mut out)?;
    let scatter = compactness(&routing, view.outputs)?;
    out.layer(metric::COMPACTNESS, scatter.overlap);
    out.layer(metric::COMPACTNESS_TRACE_RATIO, scatter.trace_ratio);
    out.layer(metric::COMPACTNESS_WITHIN_SHARE, scatter.within_fraction);
    Ok(LayerAnalysis { readings: out.0, cosines })
}

/// What the router does with the pooled tokens.
fn pooled(view: &LayerView<'_>, out: &mut Readings) -> Result<()> {
    let (mut probabilities, mut assigned) = (Vec::new(), Vec::new());
    for &token in view.pooled {
        if token >= view.probs.rows() {
            let tokens = view.probs.rows();
            return Err(Error::failed(format!(
                "pooled tokens: found {token}, expected a number below {tokens}"
            )));
        }
        probabilities.extend_from_slice(view.probs.row(token));
        let own = token * view.top_k..(token + 1) * view.top_k;
        assigned.extend_from_slice(&view.assigned[own]);
    }

    let shape = [view.pooled.len(), view.probs.cols()];
    let probabilities = Matrix::new(shape[0], shape[1], probabilities)?;
    let routing = Routing::new(&probabilities, view.top_k, &assigned)?;
    out.layer(metric::POOLED_ENTROPY_NORMALIZED, entropy(&routing).normalized);

    let load = utilization(&routing);
    out.experts(metric::POOLED_UTILIZATION, load.fractions.iter().copied().map(Some));
    out.layer(metric::POOLED_UTILIZATION_CV, Some(load.variation));
    out.layer(metric::POOLED_DEAD_EXPERTS, Some(load.dead.len() as f64));
    Ok(())
}

/// Collects the defined numbers.
#[derive(Debug, Default)]
struct Readings(Vec<Reading>);

impl Readings {
    fn layer(&mut self, metric: &'static str, value: Option<f64>) {
        self.0.extend(value.map(|value| Reading { metric, expert: None, value }));
    }

    fn experts(
        &mut self,
        metric: &'static str,
        values: impl IntoIterator<Item = Option<f64>>,
    ) {
        for (expert, value) in values.into_iter().enumerate() {
            let expert = Some(expert);
            self.0.extend(value.map(|value| Reading { metric, expert, value }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: FfnTensors<'_> =
        FfnTensors { fc1: &[], fc1_bias: &[], fc2: &[], fc2_bias: &[] };

    /// Three tokens, three experts, top 2; expert 2 is never first, none is unused.
    struct Layer {
        probs: Matrix,
        assigned: Vec<u32>,
        outputs: Matrix,
        fc: [Vec<f32>; 3],
    }

    impl Layer {
        fn new() -> Self {
            let probs = vec![0.5, 0.25, 0.25, 0.125, 0.75, 0.125, 0.5, 0.25, 0.25];
            Self {
                probs: Matrix::new(3, 3, probs).unwrap(),
                assigned: vec![0, 1, 1, 0, 0, 2],
                outputs: Matrix::new(3, 2, vec![1.0, 0.0, 0.0, 4.0, 3.0, 0.0]).unwrap(),
                fc: [vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 1.0]],
            }
        }

        fn with<T>(&self, work: impl Fn(&LayerView<'_>) -> T) -> T {
            let experts: Vec<_> =
                self.fc.iter().map(|fc1| FfnTensors { fc1, ..NOTHING }).collect();
            work(&LayerView {
                probs: &self.probs,
                top_k: 2,
                assigned: &self.assigned,
                pooled: &[1],
                outputs: &self.outputs,
                experts: &experts,
                dense: Some(FfnTensors { fc1: &[0.0, 0.0], ..NOTHING }),
            })
        }
    }

    fn value(all: &LayerAnalysis, metric: &str, expert: Option<usize>) -> Option<f64> {
        let mut found =
            all.readings.iter().filter(|r| r.metric == metric && r.expert == expert);
        let first = found.next().map(|reading| reading.value);
        assert!(found.next().is_none(), "{metric} is there twice");
        first
    }

    #[test]
    fn a_layer_worked_out_by_hand() {
        let all = Layer::new().with(analyze_layer).unwrap();
        let near = |metric, expert, expected: f64| {
            let found = value(&all, metric, expert).unwrap();
            assert!((found - expected).abs() < 1e-12, "{metric}: {found} {expected}");
        };
        let cosine = 2.0 / 3.0 / 2.0_f64.sqrt();
        near(metric::SIMILARITY, None, cosine);
        near(metric::SIMILARITY_OF_DIFFERENCES, None, cosine);
        let sharp = 0.75 * (4.0_f64 / 3.0).ln() + 0.25 * 8.0_f64.ln();
        let nats = (2.0 * 1.5 * 2.0_f64.ln() + sharp) / 3.0;
        near(metric::ENTROPY, None, nats);
        near(metric::ENTROPY_NORMALIZED, None, nats / 3.0_f64.ln());
        for (expert, fraction) in [(0, 0.5), (1, 1.0 / 3.0), (2, 1.0 / 6.0)] {
            near(metric::UTILIZATION, Some(expert), fraction);
        }
        near(metric::UTILIZATION_CV, None, (1.0_f64 / 6.0).sqrt());
        near(metric::DEAD_EXPERTS, None, 0.0);
        near(metric::ROUTING_PROBABILITY, Some(0), 1.125 / 3.0);
        near(metric::ROUTING_PROBABILITY, Some(1), 0.5);
        near(metric::ROUTING_PROBABILITY, Some(2), 0.25);
        // The pooled token is token 1, whose experts are 1 and 0.
        near(metric::POOLED_ENTROPY_NORMALIZED, None, sharp / 3.0_f64.ln());
        for (expert, fraction) in [(0, 0.5), (1, 0.5), (2, 0.0)] {
            near(metric::POOLED_UTILIZATION, Some(expert), fraction);
        }
        near(metric::POOLED_UTILIZATION_CV, None, 0.5_f64.sqrt());
        near(metric::POOLED_DEAD_EXPERTS, None, 1.0);
        // Means (2, 0) of tokens 0 and 2, (0, 4) of token 1, (4/3, 4/3) of all; tr S_W = 2,
        // S_B = 2/3 (2,-4)(2,-4)ᵀ, its direction (1,-2)/√5, within it 2/5.
        near(metric::COMPACTNESS, None, 2.0 / 5.0 / (40.0 / 3.0) / 3.0);
        near(metric::COMPACTNESS_TRACE_RATIO, None, 2.0 / (40.0 / 3.0));
        near(metric::COMPACTNESS_WITHIN_SHARE, None, 2.0 / (46.0 / 3.0));
    }

    #[test]
    fn an_expert_without_tokens_is_dead_and_has_no_probability() {
        let mut layer = Layer::new();
        layer.assigned = vec![0, 1, 1, 0, 0, 1];
        let all = layer.with(analyze_layer).unwrap();
        assert_eq!(value(&all, metric::UTILIZATION, Some(2)), Some(0.0));
        assert_eq!(value(&all, metric::DEAD_EXPERTS, None), Some(1.0));
        assert_eq!(value(&all, metric::ROUTING_PROBABILITY, Some(2)), None);
        assert!(value(&all, metric::COMPACTNESS, None).is_some());
    }

    #[test]
    fn without_dense_weights_there_are_no_differences() {
        let layer = Layer::new();
        let all = layer
            .with(|view| analyze_layer(&LayerView { dense: None, ..*view }))
            .unwrap();
        assert_eq!(value(&all, metric::SIMILARITY_OF_DIFFERENCES, None), None);
    }

    #[test]
    fn a_pooled_token_beyond_the_layer_is_refused() {
        let layer = Layer::new();
        let error = layer.with(|view| {
            analyze_layer(&LayerView { pooled: &[3], ..*view }).unwrap_err()
        });
        assert_eq!(error.message(), "pooled tokens: found 3, expected a number below 3");
    }

    #[test]
    fn arrays_that_disagree_are_refused_by_name() {
        let layer = Layer::new();
        let short = layer.with(|view| {
            analyze_layer(&LayerView { experts: &view.experts[..2], ..*view })
                .unwrap_err()
        });
        assert_eq!(
            short.message(),
            "expert weights: found 2 experts, expected 3 as in the probabilities"
        );
        let outputs = Matrix::zeros(2, 2);
        let outputs = layer.with(|view| {
            analyze_layer(&LayerView { outputs: &outputs, ..*view }).unwrap_err()
        });
        assert_eq!(
            outputs.message(),
            "expert outputs: found 2 rows, expected 3 (one per token)"
        );
    }
}
