//! The routing decisions of one layer, checked once: what the analyses of the router see.

use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::num;

/// How far a token's probabilities may sum from 1; a softmax in f32 or bf16 stays within.
const TOLERANCE: f64 = 1e-2;

/// Probabilities `[N, E]` and the K experts of every token.
#[derive(Debug, Clone)]
pub struct Routing<'a> {
    probs: &'a Matrix,
    top_k: usize,
    assigned: &'a [u32],
}

impl<'a> Routing<'a> {
    /// Checks probabilities `[N, E]` and `assigned` `[N·K]`, a token's experts best
    /// first.
    ///
    /// # Errors
    /// No tokens, K outside 1..=E, lengths that disagree, probabilities that are
    /// not a distribution, an expert out of range or twice in one token.
    pub fn new(probs: &'a Matrix, top_k: usize, assigned: &'a [u32]) -> Result<Self> {
        let (n, e) = (probs.rows(), probs.cols());
        if n == 0 || e == 0 {
            return wrong("probabilities", &format!("[{n},{e}]"), "at least [1,1]");
        }
        if !(1..=e).contains(&top_k) {
            return wrong("top K", &top_k, &format!("1 to {e}"));
        }
        if n.checked_mul(top_k) != Some(assigned.len()) {
            let expected = format!("{n} tokens × {top_k}");
            return wrong("assigned experts", &assigned.len(), &expected);
        }

        let routing = Self { probs, top_k, assigned };
        for token in 0..n {
            routing.check_token(token)?;
        }
        Ok(routing)
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.probs.cols()
    }

    /// Number of tokens N.
    pub fn tokens(&self) -> usize {
        self.probs.rows()
    }

    /// Number of experts a token visits, K.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Probabilities of one token.
    pub(super) fn probs(&self, token: usize) -> &'a [f32] {
        self.probs.row(token)
    }

    /// The experts of one token, best first.
    pub(super) fn experts_of(&self, token: usize) -> impl Iterator<Item = usize> + 'a {
        let range = token * self.top_k..(token + 1) * self.top_k;
        self.assigned[range].iter().map(|&expert| num::widen(expert))
    }

    /// The first expert of one token.
    pub(super) fn first(&self, token: usize) -> usize {
        num::widen(self.assigned[token * self.top_k])
    }

    fn check_token(&self, token: usize) -> Result<()> {
        let probs = self.probs(token);
        // A NaN lies in no range.
        let fine = probs.iter().all(|p| (0.0..=1.0).contains(p));
        let total = num::sum(probs);
        if !fine || (total - 1.0).abs() > TOLERANCE {
            let found = format!("{probs:?} with sum {total} in token {token}");
            return wrong("probabilities", &found, "numbers in 0..=1 with sum 1");
        }

        for (position, expert) in self.experts_of(token).enumerate() {
            if expert >= self.experts() {
                let found = format!("expert {expert} in token {token}");
                let expected = format!("experts below {}", self.experts());
                return wrong("assigned experts", &found, &expected);
            }
            if self.experts_of(token).take(position).any(|earlier| earlier == expert) {
                let found = format!("expert {expert} twice in token {token}");
                return wrong("assigned experts", &found, "distinct experts");
            }
        }
        Ok(())
    }
}

fn wrong<T>(what: &str, found: &dyn std::fmt::Display, expected: &str) -> Result<T> {
    Err(Error::failed(format!("{what}: found {found}, expected {expected}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(probs: &[f32], columns: usize, top_k: usize, assigned: &[u32]) -> String {
        let rows = probs.len() / columns.max(1);
        let probs = Matrix::new(rows, columns, probs.to_vec()).unwrap();
        Routing::new(&probs, top_k, assigned).unwrap_err().message().to_owned()
    }

    #[test]
    fn what_is_no_routing_is_refused() {
        assert!(refusal(&[], 2, 1, &[]).contains("found [0,2]"));
        assert!(refusal(&[0.5, 0.5], 2, 0, &[]).contains("top K: found 0"));
        assert!(refusal(&[0.5, 0.5], 2, 3, &[0, 1, 2]).contains("top K: found 3"));
        assert!(refusal(&[0.5, 0.5], 2, 1, &[0, 1]).contains("1 tokens × 1"));
        assert!(refusal(&[0.5, 0.2], 2, 1, &[0]).contains("in token 0"));
        assert!(refusal(&[1.5, -0.5], 2, 1, &[0]).contains("numbers in 0..=1"));
        assert!(refusal(&[f32::NAN, 1.0], 2, 1, &[0]).contains("in token 0"));
        assert!(refusal(&[0.5, 0.5], 2, 1, &[2]).contains("found expert 2 in token 0"));
        assert!(
            refusal(&[0.5, 0.5], 2, 2, &[1, 1]).contains("expert 1 twice in token 0")
        );
    }
}
