//! What became of single tokens: the first expert of each, how sure the router was, and how
//! near the token lay to what the router asks of that expert.

use super::Routing;
use crate::error::{Error, Result};
use crate::linalg::Matrix;

/// The first expert of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct First {
    /// The expert.
    pub expert: usize,
    /// Its probability.
    pub probability: f32,
    /// Cosine of the token's input and the expert's row of the router; 0 where either is zero.
    pub cosine: f64,
}

/// The first experts of N tokens with `inputs` [N, d] under the router `router` [E, d].
///
/// # Errors
/// Shapes that disagree with the routing.
pub fn first_experts(
    routing: &Routing<'_>,
    inputs: &Matrix,
    router: &Matrix,
) -> Result<Vec<First>> {
    let (n, e) = (routing.tokens(), routing.experts());
    if inputs.rows() != n || router.rows() != e || router.cols() != inputs.cols() {
        return Err(Error::failed(format!(
            "first experts: found inputs [{}, {}] and a router [{}, {}], expected [{n}, d] \
             and [{e}, d]",
            inputs.rows(),
            inputs.cols(),
            router.rows(),
            router.cols()
        )));
    }

    // The second and later experts of a token are not looked at: a color needs one.
    let first = |token: usize| {
        let expert = routing.first(token);
        First {
            expert,
            probability: routing.probs(token)[expert],
            cosine: cosine(inputs.row(token), router.row(expert)),
        }
    };
    Ok((0..n).map(first).collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let norm = (dot(a, a) * dot(b, b)).sqrt();
    if norm > 0.0 { dot(a, b) / norm } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_expert_is_looked_at_and_no_other() {
        let probs = Matrix::new(2, 2, vec![0.25, 0.75, 0.5, 0.5]).unwrap();
        let routing = Routing::new(&probs, 2, &[1, 0, 0, 1]).unwrap();
        let inputs = Matrix::new(2, 2, vec![1.0, 1.0, 0.0, 0.0]).unwrap();
        let router = Matrix::new(2, 2, vec![3.0, 0.0, 0.0, 2.0]).unwrap();
        let found = first_experts(&routing, &inputs, &router).unwrap();
        assert_eq!((found[0].expert, found[0].probability), (1, 0.75));
        assert!((found[0].cosine - 0.5_f64.sqrt()).abs() < 1e-12);
        assert_eq!((found[1].expert, found[1].cosine.to_bits()), (0, 0.0_f64.to_bits()));
        assert!(first_experts(&routing, &router, &probs).is_ok());
        let wide = Matrix::zeros(2, 3);
        assert!(first_experts(&routing, &wide, &router).is_err());
    }
}
