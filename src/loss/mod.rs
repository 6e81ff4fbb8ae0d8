//! The auxiliary losses of a mixture of experts, from sums over a batch (METHOD §4).
//!
//! Each function returns the loss and its gradient with respect to what one token
//! contributes; the routers' backward does the rest. Nothing here knows a model: gates come
//! as numbers.

/// A loss and its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Valued<G> {
    /// The loss.
    pub value: f64,
    /// Its gradient; each function says with respect to what.
    pub gradient: G,
}

/// The load-balance loss E/(K N) Σ n P: 1 at uniform. `counts` n are assignments (no
/// gradient), `probability` sums P of p over the `rows` N. The gradient is d loss /
/// d p of any one token.
pub fn balance(counts: &[f64], probability: &[f64], rows: f64) -> Valued<Vec<f64>> {
    let assignments: f64 = counts.iter().sum();
    let factor = counts.len() as f64 / assignments.max(1.0) / rows.max(1.0);
    let along: f64 = counts.iter().zip(probability).map(|(n, p)| n * p).sum();
    Valued {
        value: factor * along,
        gradient: counts.iter().map(|n| factor * n).collect(),
    }
}

/// The router z-loss: mean of (log-sum-exp)². The gradient is that by one
/// token's square.
pub fn router_z(log_sum_square: f64, rows: f64) -> Valued<f64> {
    Valued { value: log_sum_square / rows.max(1.0), gradient: 1.0 / rows.max(1.0) }
}

/// Expert-ensemble self-distillation: Σ ||y - t||² / Σ ||t||². The gradient is that by
/// one token's squared distance; the target has none.
pub fn distillation(distance: f64, target_square: f64) -> Valued<f64> {
    if target_square <= 0.0 {
        return Valued { value: 0.0, gradient: 0.0 };
    }
    Valued { value: distance / target_square, gradient: 1.0 / target_square }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_is_one_at_uniform_and_more_where_load_and_gate_agree() {
        let uniform = balance(&[10.0; 4], &[5.0; 4], 20.0);
        assert!((uniform.value - 1.0).abs() < 1e-12);
        let skewed = balance(&[25.0, 5.0, 5.0, 5.0], &[14.0, 2.0, 2.0, 2.0], 20.0);
        assert!(skewed.value > 1.0);
        let moved = balance(&[25.0, 5.0, 5.0, 5.0], &[14.5, 2.0, 2.0, 2.0], 20.0);
        assert!((moved.value - skewed.value - 0.5 * skewed.gradient[0]).abs() < 1e-12);
    }
}
