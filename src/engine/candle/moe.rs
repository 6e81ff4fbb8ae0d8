//! One MoE layer and its losses, with every expert applied to every token.
//!
//! The slow and obvious form of METHOD §1 and §4: a token's weights are zero for experts it
//! did not choose, and the sum runs over all. Choosing happens on the host, where the tie
//! rule (the lower index) can be read.

use candle_core::{DType, Result, Tensor};

use super::layers::{activate, linear, log_sum_exp, softmax};
use crate::config::Activation;
use crate::num::truncate_usize;

/// The weights of an MoE layer, in the order of [`crate::model::names::Part::MOE`].
#[derive(Debug, Clone)]
pub struct Experts {
    /// Router [E, d].
    pub router: Tensor,
    /// First layers [E, h, d].
    pub fc_weight: Tensor,
    /// Their biases [E, h].
    pub fc_bias: Tensor,
    /// Second layers [E, d, h].
    pub proj_weight: Tensor,
    /// Their biases [E, d].
    pub proj_bias: Tensor,
}

/// What an MoE layer did with its N input rows.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Router logits [N, E].
    pub logits: Tensor,
    /// Their softmax p [N, E].
    pub probs: Tensor,
    /// The experts each row chose, best first.
    pub chosen: Vec<Vec<usize>>,
    /// Weights [N, E]: p renormalized over the chosen experts, zero elsewhere.
    pub weights: Tensor,
    /// Output y [N, d].
    pub out: Tensor,
}

impl Experts {
    /// Runs the layer on rows `x` [N, d].
    pub fn forward(&self, x: &Tensor, top_k: usize, act: Activation) -> Result<Routing> {
        let logits = x.matmul(&self.router.t()?)?;
        let probs = softmax(&logits)?;
        let chosen = choose(&probs, top_k)?;

        // Weights are renormalized over the chosen experts, so that they sum to 1
        // (METHOD §1).
        let kept = (&probs * indicator(&chosen, &probs)?)?;
        let weights = kept.broadcast_div(&kept.sum_keepdim(1)?)?;

        let out = self.mix(x, &weights, act)?;
        Ok(Routing { logits, probs, chosen, weights, out })
    }

    /// The dense ensemble `Σ p_i E_i(x)`, p over all experts: the teacher of EESD.
    pub fn ensemble(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        let probs = softmax(&x.matmul(&self.router.t()?)?)?;
        self.mix(x, &probs, act)
    }

    /// `Σ_e weights[:, e] E_e(x)` for `weights` [N, E].
    pub(super) fn mix(
        &self,
        x: &Tensor,
        weights: &Tensor,
        act: Activation,
    ) -> Result<Tensor> {
        let mut sum = x.zeros_like()?;
        for expert in 0..weights.dim(1)? {
            let [fc, fc_bias, proj, proj_bias] =
                [&self.fc_weight, &self.fc_bias, &self.proj_weight, &self.proj_bias]
                    .map(|stack| stack.get(expert));

            let hidden = activate(&linear(x, &fc?, &fc_bias?)?, act)?;
            let y = linear(&hidden, &proj?, &proj_bias?)?;
            sum = (sum + y.broadcast_mul(&weights.narrow(1, expert, 1)?)?)?;
        }
        Ok(sum)
    }
}

impl Routing {
    /// The load-balance loss over `rows`: `E/(K N) Σ_e n_e P_e`; 1 when uniform.
    pub fn balance(&self, rows: &[usize]) -> Result<Tensor> {
        let experts = self.probs.dim(1)?;
        let mut counts = vec![0.0_f64; experts];
        for &expert in rows.iter().flat_map(|&row| &self.chosen[row]) {
            counts[expert] += 1.0;
        }

        // Every row makes K assignments, so their number is the K N of the formula.
        let assignments: f64 = counts.iter().sum();
        let counts =
            Tensor::new(counts, self.probs.device())?.to_dtype(self.probs.dtype())?;

        // Assignments are counted and have no gradient: the loss moves the
        // probabilities alone.
        let mean_probs = take(&self.probs, rows)?.mean(0)?;
        (counts * mean_probs)?.sum_all()? * (experts as f64 / assignments)
    }

    /// The z-loss over `rows`: mean squared logsumexp of the router's logits.
    pub fn router_z(&self, rows: &[usize]) -> Result<Tensor> {
        log_sum_exp(&take(&self.logits, rows)?)?.sqr()?.mean_all()
    }

    /// Distance of the outputs from `target` [N, d] over `rows`, relative to the target:
    /// mean ||y - t||² / mean ||t||². The target gets no gradient.
    pub fn distance(&self, target: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let [distance, target] = self.squares(target, rows)?;
        distance / target
    }

    /// Numerator and denominator of [`Self::distance`].
    pub(super) fn squares(&self, target: &Tensor, rows: &[usize]) -> Result<[Tensor; 2]> {
        let target = take(&target.detach(), rows)?;

        let distance = (take(&self.out, rows)? - &target)?.sqr()?.sum_all()?;
        Ok([distance, target.sqr()?.sum_all()?])
    }

    /// Routing entropy of every row, -Σ p ln p in nats.
    pub fn entropies(&self) -> Result<Vec<f64>> {
        let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
        let rows = host_rows(&self.probs)?;
        Ok(rows.iter().map(|row| row.iter().map(|&p| term(p)).sum()).collect())
    }
}

/// Of each group of rows the ceil(fraction × n) of its n with the highest entropy; equal
/// entropies go to the lower row. The result is ascending. As in the product, the groups are
/// [`super::Eligible::groups`], so that the choice is local.
pub fn most_uncertain(
    entropies: &[f64],
    groups: &[Vec<usize>],
    fraction: f64,
) -> Vec<usize> {
    let mut chosen: Vec<usize> = groups
        .iter()
        .flat_map(|rows| {
            let kept = truncate_usize((fraction * rows.len() as f64).ceil());
            let mut order = rows.clone();
            order.sort_by(|&a, &b| entropies[b].total_cmp(&entropies[a]).then(a.cmp(&b)));
            order.truncate(kept);
            order
        })
        .collect();
    chosen.sort_unstable();
    chosen
}

/// The `top_k` largest of each row, best first, ties to the lower index.
fn choose(probs: &Tensor, top_k: usize) -> Result<Vec<Vec<usize>>> {
    let choose_row = |row: Vec<f64>| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        order.truncate(top_k);
        order
    };
    Ok(host_rows(probs)?.into_iter().map(choose_row).collect())
}

/// 1 where a row chose the expert, else 0, in the shape of `like`.
pub(super) fn indicator(chosen: &[Vec<usize>], like: &Tensor) -> Result<Tensor> {
    let (rows, experts) = like.dims2()?;
    let mut flags = vec![0.0_f64; rows * experts];
    for (row, experts_of_row) in chosen.iter().enumerate() {
        for &expert in experts_of_row {
            flags[row * experts + expert] = 1.0;
        }
    }
    Tensor::from_vec(flags, (rows, experts), like.device())?.to_dtype(like.dtype())
}

/// The given rows of a matrix, in order.
pub(super) fn take(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let rows: Vec<u32> = rows.iter().map(|&row| crate::num::index_u32(row)).collect();
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}

fn host_rows(x: &Tensor) -> Result<Vec<Vec<f64>>> {
    x.detach().to_dtype(DType::F64)?.to_vec2()
}
