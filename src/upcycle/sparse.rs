//! Sparse upcycling: every expert is the dense FFN, only the router is random.

use super::{Form, Method, Router};

/// Method `sparse`: E exact copies behind a random router.
#[derive(Debug)]
pub struct Sparse;

impl Method for Sparse {
    fn name(&self) -> &'static str {
        "sparse"
    }

    fn reference(&self) -> &'static str {
        "Komatsuzaki et al., Sparse Upcycling: Training Mixture-of-Experts from Dense \
         Checkpoints, ICLR 2023, https://arxiv.org/abs/2212.05055"
    }

    fn describe(&self) -> &'static str {
        "every expert is an exact copy of the dense FFN; random router"
    }

    fn form(&self) -> Form<'_> {
        Form::Copies(Router::Random)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, run};
    use super::*;

    #[test]
    fn experts_are_exact_copies() {
        let parts = Parts::new(5, 9, 4, 2);
        let made = run(&Sparse, &parts, 4, 1);
        assert!(made.experts.iter().all(|expert| *expert == parts.dense));
    }
}
