//! The order of candidates by their scores: the higher score first, of equal scores the lower
//! index.
//!
//! Recalls and accuracies at any k follow from one number per query, the rank of the right
//! answer. One pass over the scores gives it without sorting them.

use std::cmp::Ordering;

use crate::num;

/// Rank of candidate `target`, 0 the best: how many candidates come before it.
pub fn rank_of(scores: &[f32], target: usize) -> u32 {
    let own = scores[target];

    // Equal scores before the target win against it, those after it lose: the tie rule.
    let (before, after) = scores.split_at(target);
    let ahead: u32 = before.iter().map(|&score| u32::from(score >= own)).sum();
    let above: u32 = after.iter().map(|&score| u32::from(score > own)).sum();
    ahead + above
}

/// Rank of the best of several right answers; `None` if there is none.
pub fn best_rank(scores: &[f32], targets: &[usize]) -> Option<u32> {
    let best = targets.iter().copied().min_by(|&a, &b| precedes(scores, a, b))?;
    Some(rank_of(scores, best))
}

/// The `k` best candidates in order; fewer if there are fewer.
pub fn top_k(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if k == 0 {
        return Vec::new();
    }

    // Selecting first leaves only k candidates to sort.
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, |&a, &b| precedes(scores, a, b));
        order.truncate(k);
    }

    order.sort_unstable_by(|&a, &b| precedes(scores, a, b));
    order
}

/// Whether a rank is among the first `k`.
pub(super) fn within(rank: u32, k: usize) -> bool {
    num::widen(rank) < k
}

/// The total order: `a` before `b` if its score is higher, or equal and its index lower.
fn precedes(scores: &[f32], a: usize, b: usize) -> Ordering {
    scores[b].partial_cmp(&scores[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sorts everything: the obvious reference.
    fn sorted(scores: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap());
        order
    }

    proptest! {
        /// Few distinct values, so most candidates are tied.
        #[test]
        fn fast_ranks_and_top_k_equal_a_stable_sort(
            levels in prop::collection::vec(-3_i8..3, 1..60),
            k in 0_usize..70,
            pick in prop::collection::vec(0_usize..1000, 1..6),
        ) {
            let scores: Vec<f32> = levels.iter().map(|&v| f32::from(v) / 3.0).collect();
            let order = sorted(&scores);
            let place = |c: usize| order.iter().position(|&o| o == c).unwrap();
            for target in 0..scores.len() {
                prop_assert_eq!(num::widen(rank_of(&scores, target)), place(target));
            }
            prop_assert_eq!(top_k(&scores, k), order[..k.min(order.len())].to_vec());
            let targets: Vec<usize> = pick.iter().map(|p| p % scores.len()).collect();
            let best = targets.iter().map(|&t| place(t)).min();
            prop_assert_eq!(best_rank(&scores, &targets).map(num::widen), best);
        }
    }

    #[test]
    fn duplicates_of_the_answer_rank_by_index() {
        let scores = [0.5, 0.9, 0.9, 0.9];
        let ranks: Vec<u32> = (0..4).map(|t| rank_of(&scores, t)).collect();
        assert_eq!(ranks, [3, 0, 1, 2]);
        assert_eq!(best_rank(&scores, &[]), None);
    }
}
