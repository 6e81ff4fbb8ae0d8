//! Utilization: how the assignments are spread over the experts.

use super::Routing;

/// An expert below this part of the fair fraction 1/E is dead (METHOD §7).
const DEAD: f64 = 0.1;

/// How the load is spread.
#[derive(Debug, Clone, PartialEq)]
pub struct Utilization {
    /// `u_e = n_e` / (K N) per expert; sums to 1.
    pub fractions: Vec<f64>,
    /// Experts with `u_e` < 0.1/E, ascending.
    pub dead: Vec<usize>,
    /// Standard deviation of `u_e` over its mean 1/E. The E experts are the whole
    /// population, so the deviation divides by E; 0 is balanced, √(E/K - 1) the largest.
    pub variation: f64,
}

/// Counts all K assignments of every token. O(N K).
#[must_use]
pub fn utilization(routing: &Routing<'_>) -> Utilization {
    let mut counts = vec![0_usize; routing.experts()];
    for token in 0..routing.tokens() {
        for expert in routing.experts_of(token) {
            counts[expert] += 1;
        }
    }

    let total = (routing.tokens() * routing.top_k()) as f64;
    let e = counts.len() as f64;
    let fractions: Vec<f64> = counts.iter().map(|&count| count as f64 / total).collect();
    let is_dead = |&expert: &usize| fractions[expert] < DEAD / e;
    let dead = (0..fractions.len()).filter(is_dead).collect();
    // In units of the mean 1/E, so that layers of different E compare.
    let variance = fractions.iter().map(|u| (u * e - 1.0).powi(2)).sum::<f64>() / e;
    Utilization { fractions, dead, variation: variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::linalg::Matrix;

    fn of(n_experts: usize, top_k: usize, assigned: &[u32]) -> Utilization {
        let n = assigned.len() / top_k;
        let mut probs = Matrix::zeros(n, n_experts);
        for token in 0..n {
            probs.row_mut(token)[0] = 1.0;
        }
        utilization(&Routing::new(&probs, top_k, assigned).unwrap())
    }

    proptest! {
        #[test]
        fn fractions_sum_to_one(assigned in prop::collection::vec(0_u32..7, 1..200)) {
            let found = of(7, 1, &assigned);
            prop_assert!((found.fractions.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!((0.0..=6.0_f64.sqrt() + 1e-12).contains(&found.variation));
        }
    }

    #[test]
    fn an_equal_load_does_not_vary() {
        let found = of(4, 2, &[0, 1, 2, 3, 1, 0, 3, 2]);
        assert_eq!(found.fractions, [0.25; 4]);
        assert!(found.variation == 0.0);
        assert!(found.dead.is_empty());
    }

    #[test]
    fn the_whole_load_on_k_experts_varies_most() {
        let found = of(8, 2, &[3, 4, 4, 3, 3, 4]);
        assert_eq!(found.dead, [0, 1, 2, 5, 6, 7]);
        assert!((found.variation - 3.0_f64.sqrt()).abs() < 1e-12);
    }

    /// With E = 2 an expert is dead below 5 %.
    #[test]
    fn dead_means_below_a_tenth_of_the_fair_fraction() {
        let load = |ones: usize| {
            let assigned: Vec<u32> = (0..100).map(|i| u32::from(i < ones)).collect();
            of(2, 1, &assigned).dead
        };
        assert_eq!(load(4), [1]);
        assert!(load(5).is_empty());
    }
}
