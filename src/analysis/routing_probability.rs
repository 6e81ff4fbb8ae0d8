//! Expert routing probability: how strongly an expert is wanted by the tokens it gets.
//!
//! The view of the experts on what entropy says of the tokens (supplement of the paper,
//! figure B.4): equal values mean that all experts are wanted alike, a spread means
//! specialization.

use super::Routing;

/// Mean `p_e` over the tokens that have e among their K experts; `None` for an expert
/// without tokens. O(N K), sums in f64.
#[must_use]
pub fn routing_probability(routing: &Routing<'_>) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0_f64, 0_usize); routing.experts()];
    for token in 0..routing.tokens() {
        let probs = routing.probs(token);
        for expert in routing.experts_of(token) {
            sums[expert].0 += f64::from(probs[expert]);
            sums[expert].1 += 1;
        }
    }
    sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum / n as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::Matrix;

    #[test]
    fn only_assigned_tokens_count() {
        let probs = vec![0.5, 0.25, 0.25, 0.125, 0.625, 0.25, 0.75, 0.0, 0.25];
        let probs = Matrix::new(3, 3, probs).unwrap();
        let routing = Routing::new(&probs, 1, &[0, 1, 0]).unwrap();
        assert_eq!(routing_probability(&routing), [Some(0.625), Some(0.625), None]);
        let routing = Routing::new(&probs, 2, &[0, 1, 1, 2, 0, 2]).unwrap();
        assert_eq!(
            routing_probability(&routing),
            [Some(0.625), Some(0.4375), Some(0.25)]
        );
    }

    #[test]
    fn a_uniform_router_gives_one_over_e() {
        let probs = Matrix::new(4, 4, vec![0.25; 16]).unwrap();
        let routing = Routing::new(&probs, 2, &[0, 1, 0, 1, 2, 3, 1, 3]).unwrap();
        assert_eq!(routing_probability(&routing), [Some(0.25); 4]);
    }
}
