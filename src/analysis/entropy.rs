//! Routing entropy: how decided the router is about single tokens.
//!
//! Mean over tokens of -Σ p ln p in nats, and as a fraction of its maximum ln E. It is the mean
//! of the tokens' entropies, not the entropy of the mean: a balanced router can be decided.

use super::Routing;

/// Mean routing entropy of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entropy {
    /// In nats, 0 to ln E.
    pub nats: f64,
    /// Divided by ln E, 0 to 1; undefined for a single expert.
    pub normalized: Option<f64>,
}

/// Mean entropy over tokens; 0 ln 0 = 0. O(N E), sums in f64.
#[must_use]
pub fn entropy(routing: &Routing<'_>) -> Entropy {
    let total: f64 = (0..routing.tokens()).map(|token| of(routing.probs(token))).sum();
    let nats = total / routing.tokens() as f64;

    // The largest entropy is that of the uniform distribution.
    let most = (routing.experts() as f64).ln();
    Entropy { nats, normalized: (most > 0.0).then(|| nats / most) }
}

/// -Σ p ln p of one distribution.
fn of(probs: &[f32]) -> f64 {
    let positive = probs.iter().map(|&p| f64::from(p)).filter(|&p| p > 0.0);
    positive.map(|p| -p * p.ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::Matrix;

    fn of_rows(columns: usize, probs: Vec<f32>) -> Entropy {
        let rows = probs.len() / columns;
        let assigned = vec![0; rows];
        let probs = Matrix::new(rows, columns, probs).unwrap();
        entropy(&Routing::new(&probs, 1, &assigned).unwrap())
    }

    #[test]
    fn a_uniform_router_has_the_entropy_ln_e() {
        for e in [2_u8, 4, 8, 16] {
            let p = 1.0 / f32::from(e);
            let found = of_rows(usize::from(e), vec![p; 3 * usize::from(e)]);
            assert!((found.nats - f64::from(e).ln()).abs() < 1e-12);
            assert!((found.normalized.unwrap() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_decided_router_has_none_even_if_balanced() {
        let found = of_rows(2, vec![1.0, 0.0, 0.0, 1.0]);
        assert_eq!(found, Entropy { nats: 0.0, normalized: Some(0.0) });
    }

    #[test]
    fn the_mean_is_over_tokens() {
        let found = of_rows(2, vec![0.5, 0.5, 1.0, 0.0]);
        assert!((found.nats - 0.5 * 2.0_f64.ln()).abs() < 1e-15);
        assert_eq!(found.normalized, Some(0.5));
    }

    #[test]
    fn a_single_expert_has_no_normalized_entropy() {
        assert_eq!(of_rows(1, vec![1.0]), Entropy { nats: 0.0, normalized: None });
    }
}
