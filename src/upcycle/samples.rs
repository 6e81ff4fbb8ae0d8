//! Layers for the tests of this module: a random FFN with evidence of any shape.

use super::{
    Evidence, ExpertSpaces, Experts, KeptSpace, LayerInput, Method, Parameter, Settings,
    Streams, Upcycled, upcycle_layer,
};
use crate::config::InitConfig;
use crate::error::Result;
use crate::ffn::Ffn;
use crate::linalg::wide::{narrowed, widened};
use crate::linalg::{Matrix, orthonormal};
use crate::rng;

/// A layer with everything any method may ask for.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) dense: Ffn,
    pub(super) centroids: Matrix,
    pub(super) subspaces: Vec<ExpertSpaces>,
}

impl Parts {
    /// Width d, hidden width h, E experts, bases of `rank` (at most the full one).
    pub(super) fn new(d: usize, h: usize, n_experts: usize, rank: usize) -> Self {
        let mut centroids = matrix(n_experts, d, 1.0, 77);

        for row in 0..n_experts {
            let norm = centroids.row(row).iter().map(|v| v * v).sum::<f32>().sqrt();
            for v in centroids.row_mut(row).iter_mut() {
                *v /= norm;
            }
        }
        let subspaces = (0..n_experts).map(|e| spaces(d, h, rank, e as u64)).collect();
        Self { dense: ffn(d, h, 1), centroids, subspaces }
    }

    pub(super) fn evidence(&self) -> Evidence<'_> {
        Evidence {
            centroids: Some(&self.centroids),
            subspaces: Some(self.subspaces.as_slice()),
        }
    }

    /// The same layer with the evidence of the first experts only.
    pub(super) fn first(&self, n_experts: usize) -> Self {
        let d = self.centroids.cols();
        let rows = self.centroids.data()[..n_experts * d].to_vec();
        Self {
            dense: self.dense.clone(),
            centroids: Matrix::new(n_experts, d, rows).unwrap(),
            subspaces: self.subspaces[..n_experts].to_vec(),
        }
    }
}

/// Runs a method at a seed and a place.
pub(super) fn upcycle(
    method: &dyn Method,
    parts: &Parts,
    settings: &Settings,
    seed: u64,
    place: &str,
) -> Result<Upcycled> {
    upcycle_layer(
        method,
        &LayerInput {
            dense: parts.dense.tensors(),
            evidence: parts.evidence(),
            settings,
            streams: Streams::new(seed, place),
        },
    )
}

/// Runs a method with the settings of [`init_of`], panicking on errors.
pub(super) fn run(method: &dyn Method, parts: &Parts, n: usize, seed: u64) -> Experts {
    run_with(method, parts, &settings(method, n), seed)
}

/// Runs a method, panicking on errors. Experts of low rank come back as what they are before
/// the first step of training: copies.
pub(super) fn run_with(
    method: &dyn Method,
    parts: &Parts,
    settings: &Settings,
    seed: u64,
) -> Experts {
    match upcycle(method, parts, settings, seed, "vision.1").unwrap() {
        Upcycled::Experts(made) => made,
        Upcycled::LowRank(made) => {
            let experts = vec![parts.dense.clone(); settings.experts()];
            Experts { experts, router: made.router }
        }
        Upcycled::Dense => panic!("method {} makes no experts", method.name()),
    }
}

pub(super) fn settings(method: &dyn Method, n_experts: usize) -> Settings {
    settings_with(method, n_experts, |_| ())
}

pub(super) fn settings_with(
    method: &dyn Method,
    n_experts: usize,
    change: impl Fn(&mut InitConfig),
) -> Settings {
    let mut init = init_of(method);
    change(&mut init);
    Settings::new(method, &init, n_experts).unwrap()
}

/// The least a method asks for: ratio 0.25, alpha 0.5, rank 1, and the name of a variant.
pub(super) fn init_of(method: &dyn Method) -> InitConfig {
    let takes = |parameter| method.parameters().contains(&parameter);
    InitConfig {
        method: method.name().to_owned(),
        subspaces: method.subspaces().map(|_| "paper".to_owned()),
        ratio: takes(Parameter::Ratio).then_some(0.25),
        alpha: takes(Parameter::Alpha).then_some(0.5),
        rank: takes(Parameter::Rank).then_some(1),
        ..InitConfig::default()
    }
}

/// A random FFN; values of weights and biases have visibly different statistics.
pub(super) fn ffn(d: usize, h: usize, seed: u64) -> Ffn {
    Ffn {
        fc1: matrix(h, d, 0.3, seed).into_data(),
        fc1_bias: matrix(1, h, 0.1, seed + 1000).into_data(),
        fc2: matrix(d, h, 0.2, seed + 2000).into_data(),
        fc2_bias: matrix(1, d, 0.05, seed + 3000).into_data(),
    }
}

pub(super) fn matrix(rows: usize, cols: usize, std: f32, seed: u64) -> Matrix {
    let mut out = Matrix::zeros(rows, cols);
    rng::fill_normal(&mut rng::stream(seed, "samples"), std, out.data_mut());
    out
}

/// Random bases of a rank, `None` where that is the full one, with mean outputs.
fn spaces(d: usize, h: usize, rank: usize, seed: u64) -> ExpertSpaces {
    let space = |outputs: usize, salt: u64| {
        let mut stream = rng::stream(seed, &format!("basis {salt}"));
        let basis = (rank < outputs)
            .then(|| narrowed(orthonormal::random(outputs, rank, &mut stream).as_ref()));
        KeptSpace { basis, mean: Some(matrix(1, outputs, 0.5, seed + salt).into_data()) }
    };
    ExpertSpaces { fc1: space(h, 1), fc2: space(d, 2) }
}

/// Every value of a result as bits, so that equality means the same bytes.
pub(super) fn bits(made: &Experts) -> Vec<u32> {
    let tensors =
        made.experts.iter().flat_map(|e| [&e.fc1[..], &e.fc1_bias, &e.fc2, &e.fc2_bias]);
    tensors.chain([made.router.data()]).flatten().map(|v| v.to_bits()).collect()
}

/// Largest difference of two matrices of one shape.
pub(super) fn distance(a: &Matrix, b: &Matrix) -> f64 {
    let (a, b) = (widened(a), widened(b));
    (&a - &b).norm_max()
}
