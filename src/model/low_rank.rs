//! Experts kept as one shared FFN and a product of low rank each, `W_e = W + B_e A_e`
//! (Huang et al., `DeRS`, CVPR 2025).
//!
//! This is a form of the parameters and not another model: merged, it is a mixture like any
//! other, and everything that runs or measures a model sees it merged. Only training and files
//! know the form. A training step merges before its forward pass and pulls the gradient back
//! through the same products after its backward pass, which is the chain rule and nothing
//! else. Merging costs as much as a forward pass of `E r / K` more tokens per step, some dozens
//! of thousands; in return one set of kernels serves all methods. What is not saved this way
//! is the memory of the merged experts during training.
//!
//! Biases belong to the shared FFN.

use std::ops::Range;

use super::names::{ParameterId, Part};
use super::params::Layout;
use super::{Checkpoint, ClipConfig, Moe};
use crate::linalg::gemm::{self, Rows, Write};
use crate::par;

/// The way from parameters of low rank to merged ones, and of gradients back.
#[derive(Debug, Clone)]
pub struct LowRank {
    experts: usize,
    rank: usize,
    /// For each merged parameter, in order: its range and what it is made of.
    merged: Vec<(Range<usize>, Made)>,
    /// For each parameter of low rank, in order: its range and what its gradient is made of.
    kept: Vec<(Range<usize>, Pulled)>,
}

/// What a merged parameter is made of: ranges among the parameters of low rank.
#[derive(Debug, Clone)]
pub enum Made {
    /// The parameter itself.
    Copy(Range<usize>),
    /// The shared bias, once per expert.
    Repeated(Range<usize>),
    /// The shared matrix plus B A, stacks over experts.
    Sum {
        /// The shared matrix.
        base: Range<usize>,
        /// A of every expert.
        down: Range<usize>,
        /// B of every expert.
        up: Range<usize>,
    },
}

/// What the gradient of a parameter of low rank is made of. Ranges of gradients count among
/// the merged parameters, those of weights among the ones of low rank.
#[derive(Debug, Clone)]
pub enum Pulled {
    /// The parameter's own gradient.
    Copy(Range<usize>),
    /// The sum over the experts' gradients.
    Shared(Range<usize>),
    /// Of A: Bᵀ times the expert's gradient.
    Down {
        /// B of every expert.
        up: Range<usize>,
        /// The experts' gradients.
        of: Range<usize>,
    },
    /// Of B: the expert's gradient times Aᵀ.
    Up {
        /// A of every expert.
        down: Range<usize>,
        /// The experts' gradients.
        of: Range<usize>,
    },
}

/// Shared matrix, A, B and the merged stack of one layer of the FFN.
const PRODUCTS: [(Part, Part, Part, Part); 2] = [
    (Part::FcWeight, Part::DeltaFcDown, Part::DeltaFcUp, Part::ExpertFcWeight),
    (Part::ProjWeight, Part::DeltaProjDown, Part::DeltaProjUp, Part::ExpertProjWeight),
];

/// Shared and merged biases.
const BIASES: [(Part, Part); 2] =
    [(Part::FcBias, Part::ExpertFcBias), (Part::ProjBias, Part::ExpertProjBias)];

impl LowRank {
    /// The way for a model; `None` where its experts are kept whole.
    pub fn of(config: &ClipConfig) -> Option<Self> {
        let rank = config.rank()?;
        let experts = config.moe.as_ref().map_or(0, |moe| moe.experts);
        let (low, full) = (Layout::new(config), Layout::new(&config.merged()));
        let at = |layout: &Layout, id: ParameterId, part| {
            let ParameterId::Block(tower, block, _) = id else { return 0..0 };
            layout.range(ParameterId::Block(tower, block, part))
        };

        // Forward: what each merged parameter is made of.
        let made = |id: ParameterId| {
            let ParameterId::Block(_, _, part) = id else {
                return Made::Copy(low.range(id));
            };
            let low_at = |part| at(&low, id, part);
            if let Some((base, down, up, _)) = PRODUCTS.iter().find(|p| p.3 == part) {
                let (down, up) = (low_at(*down), low_at(*up));
                return Made::Sum { base: low_at(*base), down, up };
            }
            match BIASES.iter().find(|b| b.1 == part) {
                Some((base, _)) => Made::Repeated(low_at(*base)),
                None => Made::Copy(low.range(id)),
            }
        };

        // Backward: what the gradient of each parameter of low rank is made of.
        let pulled = |id: ParameterId| {
            let copy = || Pulled::Copy(full.range(id));
            let Some((tower, block)) = id.block() else { return copy() };
            let ParameterId::Block(_, _, part) = id else { return copy() };
            if !config.is_moe(tower, block) {
                return copy();
            }
            for (base, down, up, of) in PRODUCTS {
                let of = at(&full, id, of);
                if part == base {
                    return Pulled::Shared(of);
                } else if part == down {
                    return Pulled::Down { up: at(&low, id, up), of };
                } else if part == up {
                    return Pulled::Up { down: at(&low, id, down), of };
                }
            }
            match BIASES.iter().find(|b| b.0 == part) {
                Some((_, of)) => Pulled::Shared(at(&full, id, *of)),
                None => copy(),
            }
        };

        let merged = full.iter().map(|(p, range)| (range, made(p.id))).collect();
        let kept = low.iter().map(|(p, range)| (range, pulled(p.id))).collect();
        Some(Self { experts, rank, merged, kept })
    }

    /// Number of merged parameters.
    pub fn merged_len(&self) -> usize {
        self.merged.last().map_or(0, |(range, _)| range.end)
    }

    /// Experts of every layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Rank of the products.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// For each merged parameter, in order: its range and what it is made of.
    pub fn made(&self) -> &[(Range<usize>, Made)] {
        &self.merged
    }

    /// For each parameter of low rank, in order: its range and what its gradient is made of.
    pub fn pulled(&self) -> &[(Range<usize>, Pulled)] {
        &self.kept
    }

    /// Merges `values` of low rank; `out` is overwritten.
    pub fn merge(&self, values: &[f32], out: &mut [f32]) {
        let stacked = |made: &Made| !matches!(made, Made::Copy(_));

        let mut work = split(out, &self.merged, self.experts, stacked);
        par::for_each_chunk(&mut work, 1, |_, pieces| {
            for (target, made, expert) in pieces {
                match made {
                    // One piece of a repeated bias is as long as the bias.
                    Made::Copy(from) | Made::Repeated(from) => {
                        target.copy_from_slice(&values[from.clone()]);
                    }
                    Made::Sum { base, down, up } => {
                        target.copy_from_slice(&values[base.clone()]);
                        let (down, up) = (
                            self.slice(values, down, *expert),
                            self.slice(values, up, *expert),
                        );

                        let cols = down.len() / self.rank;
                        let (up, down) =
                            (Rows::new(up, self.rank), Rows::new(down, cols));
                        gemm::a_b(target, up, down, Write::Add);
                    }
                }
            }
        });
    }

    /// The gradient by the parameters of low rank, from the one by the merged parameters;
    /// `out` is overwritten.
    pub fn pull_back(&self, values: &[f32], gradient: &[f32], out: &mut [f32]) {
        let stacked = |p: &Pulled| matches!(p, Pulled::Down { .. } | Pulled::Up { .. });

        let mut work = split(out, &self.kept, self.experts, stacked);
        par::for_each_chunk(&mut work, 1, |_, pieces| {
            for (target, pulled, expert) in pieces {
                match pulled {
                    Pulled::Copy(from) => target.copy_from_slice(&gradient[from.clone()]),

                    // Every expert holds the shared values once, so their gradients add
                    // up, in the order of the experts.
                    Pulled::Shared(of) => {
                        target.fill(0.0);
                        for one in gradient[of.clone()].chunks(target.len()) {
                            target
                                .iter_mut()
                                .zip(one)
                                .for_each(|(sum, value)| *sum += value);
                        }
                    }

                    // W = base + B A: dA = Bᵀ dW and dB = dW Aᵀ.
                    Pulled::Down { up, of } => {
                        let up = Rows::new(self.slice(values, up, *expert), self.rank);
                        let cols = target.len() / self.rank;
                        let of = Rows::new(self.slice(gradient, of, *expert), cols);
                        gemm::at_b(target, up, of, Write::Replace);
                    }
                    Pulled::Up { down, of } => {
                        let down = self.slice(values, down, *expert);
                        let cols = down.len() / self.rank;
                        let of = Rows::new(self.slice(gradient, of, *expert), cols);
                        gemm::a_bt(target, of, Rows::new(down, cols), Write::Replace);
                    }
                }
            }
        });
    }

    /// The part of a stack that belongs to one expert.
    fn slice<'a>(
        &self,
        all: &'a [f32],
        stack: &Range<usize>,
        expert: usize,
    ) -> &'a [f32] {
        let size = stack.len() / self.experts;
        &all[stack.clone()][expert * size..(expert + 1) * size]
    }
}

/// Cuts a flat buffer at ranges that cover it in order, and those that are stacks over experts
/// once more: each part with what it is made of and its expert.
fn split<'a, T>(
    mut rest: &'a mut [f32],
    ranges: &'a [(Range<usize>, T)],
    experts: usize,
    stacked: impl Fn(&T) -> bool,
) -> Vec<(&'a mut [f32], &'a T, usize)> {
    let mut parts = Vec::new();
    for (range, of) in ranges {
        let (part, others) = rest.split_at_mut(range.len());

        let size = if stacked(of) { part.len() / experts } else { part.len() };
        parts.extend(part.chunks_mut(size).enumerate().map(|(e, part)| (part, of, e)));

        rest = others;
    }
    parts
}

impl ClipConfig {
    /// The shape with all experts whole.
    #[must_use]
    pub fn merged(&self) -> Self {
        let moe = self.moe.as_ref().map(|moe| Moe { rank: None, ..moe.clone() });
        Self { moe, ..self.clone() }
    }
}

impl Checkpoint {
    /// The same model with all experts whole; one that has them so comes back as it is.
    #[must_use]
    pub fn merged(self) -> Self {
        let Some(form) = LowRank::of(&self.config) else { return self };

        let mut values = vec![0.0; form.merged_len()];
        form.merge(&self.values, &mut values);
        Self { config: self.config.merged(), values }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::names::tests::tiny;
    use super::*;
    use crate::model::Tower;
    use crate::rng;

    fn model(experts: usize, rank: usize, seed: u64) -> Checkpoint {
        let mut config = tiny(true);
        let moe = config.moe.as_mut().unwrap();
        (moe.experts, moe.top_k, moe.rank) = (experts, 1, Some(rank));
        let mut values = vec![0.0; Layout::new(&config).len()];
        rng::fill_normal(&mut rng::stream(seed, "values"), 1.0, &mut values);
        Checkpoint { config, values }
    }

    /// W + B A by its definition, in f64.
    fn defined(
        model: &Checkpoint,
        (base, down, up): (Part, Part, Part),
        e: usize,
    ) -> Vec<f64> {
        let (tower, block) = (Tower::Vision, model.config.moe_blocks(Tower::Vision)[0]);
        let layout = Layout::new(&model.config);
        let rank = model.config.rank().unwrap();
        let part =
            |part| &model.values[layout.range(ParameterId::Block(tower, block, part))];
        let (base, down, up) = (part(base), part(down), part(up));
        let (inner, outer) = match base.len() / part(Part::FcBias).len() {
            width if base.as_ptr() == part(Part::FcWeight).as_ptr() => {
                (width, part(Part::FcBias).len())
            }
            width => (part(Part::FcBias).len(), width),
        };
        let mut out = Vec::new();
        for i in 0..outer {
            for j in 0..inner {
                let terms = (0..rank).map(|k| {
                    f64::from(up[(e * outer + i) * rank + k])
                        * f64::from(down[(e * rank + k) * inner + j])
                });
                out.push(f64::from(base[i * inner + j]) + terms.sum::<f64>());
            }
        }
        out
    }

    #[test]
    fn merged_experts_are_the_shared_ffn_plus_their_product() {
        for (experts, rank) in [(1, 1), (3, 2), (4, 5)] {
            let model = model(experts, rank, 7);
            let whole = model.clone().merged();
            assert_eq!(whole.config.rank(), None);
            let block = model.config.moe_blocks(Tower::Vision)[0];
            let layer = whole.moe_layer(Tower::Vision, block).unwrap();
            for (e, expert) in layer.experts.iter().enumerate() {
                let [fc, proj] = PRODUCTS.map(|(base, down, up, _)| (base, down, up));
                for (found, parts) in [(expert.fc1, fc), (expert.fc2, proj)] {
                    for (a, b) in found.iter().zip(defined(&model, parts, e)) {
                        assert!((f64::from(*a) - b).abs() < 1e-5, "{a} {b}");
                    }
                }
                let id = ParameterId::Block(Tower::Vision, block, Part::FcBias);
                let bias = &model.values[Layout::new(&model.config).range(id)];
                assert_eq!(expert.fc1_bias, bias);
            }
            assert_eq!(whole.clone().merged(), whole);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The derivative of merging along δ, taken with g, is δ taken with the pull-back of
        /// g. Merging is quadratic, so the central difference is exact up to rounding.
        #[test]
        fn the_pull_back_is_the_adjoint_of_the_derivative(
            experts in 1_usize..5, rank in 1_usize..6, seed in 0_u64..1000,
        ) {
            let model = model(experts, rank, seed);
            let form = LowRank::of(&model.config).unwrap();
            let normal = |name: &str, len: usize| {
                let mut values = vec![0.0; len];
                rng::fill_normal(&mut rng::stream(seed, name), 1.0, &mut values);
                values
            };
            let delta = normal("delta", model.values.len());
            let gradient = normal("gradient", form.merged_len());
            let merged = |sign: f32| {
                let moved = model.values.iter().zip(&delta).map(|(v, d)| v + sign * d);
                let mut out = vec![0.0; form.merged_len()];
                form.merge(&moved.collect::<Vec<_>>(), &mut out);
                out
            };
            let (up, down) = (merged(0.5), merged(-0.5));
            let rises = up.iter().zip(&down).map(|(u, d)| f64::from(*u) - f64::from(*d));
            let left: f64 = rises.zip(&gradient).map(|(s, g)| s * f64::from(*g)).sum();
            let mut pulled = vec![f32::NAN; model.values.len()];
            form.pull_back(&model.values, &gradient, &mut pulled);
            let products = delta.iter().zip(&pulled).map(|(d, p)| f64::from(*d) * f64::from(*p));
            let right: f64 = products.clone().sum();
            let size = products.map(f64::abs).sum::<f64>();
            prop_assert!((left - right).abs() < 1e-5 * size, "{left} {right} of {size}");
        }
    }
}
