//! The model's layers, each as its formula over candle's stock operators.
//!
//! candle's shortcuts are avoided on purpose. Its fused LayerNorm and `softmax_last_dim`
//! have no backward and cut gradients without a word; its `gelu` is the tanh form; and
//! the backward of its `gelu_erf` rounds 1/sqrt(2π) to six digits, so GELU is composed from
//! `erf`, whose backward is exact.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::config::Activation;

/// Epsilon of every LayerNorm.
const NORM_EPSILON: f64 = 1e-5;

/// x W^T + b for rows `x` [N, in], `weight` [out, in], `bias` `[out]`.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

/// Normalizes each row to mean 0 and variance 1, then applies gain and bias `[d]`.
pub(super) fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;

    let unit = centered.broadcast_div(&(variance + NORM_EPSILON)?.sqrt()?)?;
    unit.broadcast_mul(gain)?.broadcast_add(bias)
}

/// The FFN's activation function.
pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => {
            let distribution =
                (((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
            x * distribution
        }
        Activation::QuickGelu => {
            let sigmoid = ((x * -1.702)?.exp()? + 1.0)?.recip()?;
            x * sigmoid
        }
    }
}

/// Logarithm of the sum of exponentials over the last axis, which stays with extent 1.
pub(super) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    // Subtracting the maximum changes nothing but the range, so it needs no gradient.
    let top = x.max_keepdim(D::Minus1)?.detach();
    x.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + top
}

/// Softmax over the last axis: candle-nn's composed form, which has a backward.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax(x, D::Minus1)
}

/// Scales each row to length 1.
pub(super) fn unit_rows(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// What causal attention adds to its scores [T, T]: minus infinity where a token would see
/// a later one.
pub(super) fn causal_mask(
    tokens: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let entry = |i: usize, j: usize| if j > i { f64::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f64> =
        (0..tokens).flat_map(|i| (0..tokens).map(move |j| entry(i, j))).collect();
    Tensor::from_vec(mask, (tokens, tokens), device)?.to_dtype(dtype)
}

/// The symmetric contrastive loss of a batch: the mean of the cross-entropies of rows and of
/// columns of `logits` [B, B], where row i belongs to column i. The target of a row is
/// 1 - `smoothing` on its own column plus `smoothing` / B on every column.
pub(super) fn contrastive(logits: &Tensor, smoothing: f64) -> Result<Tensor> {
    let rows = cross_entropy(logits, smoothing)?;
    let columns = cross_entropy(&logits.t()?.contiguous()?, smoothing)?;
    (rows + columns)? * 0.5
}

fn cross_entropy(logits: &Tensor, smoothing: f64) -> Result<Tensor> {
    let pairs = u32::try_from(logits.dim(0)?).map_err(candle_core::Error::wrap)?;
    let own = Tensor::arange(0, pairs, logits.device())?;
    let hard = candle_nn::loss::cross_entropy(logits, &own)?;
    let even = logits.broadcast_sub(&log_sum_exp(logits)?)?.mean_all()?.neg()?;
    (hard * (1.0 - smoothing))? + (even * smoothing)?
}
