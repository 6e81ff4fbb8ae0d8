//! `DeRS` with low-rank matrices: one shared FFN, and for each expert a product of low rank.
//!
//! Upcycled experts stay close to each other, so that what tells them apart needs few
//! parameters: `W_e = W + B_e A_e` with A random and B zero. The mixture begins as sparse
//! upcycling does, and the shared W and all A and B are trained. Biases are shared. The
//! deviation of A, 1 / sqrt(inputs), is our choice: A x then has about the size of x's values.

use super::{Deltas, Form, LayerInput, MakeDeltas, Method, Parameter, Router};
use crate::error::{Error, Result};
use crate::rng;

/// Method `ders-lm`: exact copies that share their weights up to a trained product.
#[derive(Debug)]
pub struct DersLm;

impl Method for DersLm {
    fn name(&self) -> &'static str {
        "ders-lm"
    }

    fn reference(&self) -> &'static str {
        "Huang et al., DeRS: Towards Extremely Efficient Upcycled Mixture-of-Experts Models, \
         CVPR 2025, https://arxiv.org/abs/2503.01359"
    }

    fn describe(&self) -> &'static str {
        "experts share the dense FFN and differ by a trained product of low rank; random router"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter::Rank]
    }

    fn form(&self) -> Form<'_> {
        Form::LowRank(Router::Random, self)
    }
}

impl MakeDeltas for DersLm {
    fn deltas(&self, layer: &LayerInput<'_>, rank: usize) -> Result<Deltas> {
        let (d, h) = (layer.dense.width(), layer.dense.hidden());

        // No matrix of the layer has a larger rank, so more would be waste.
        let most = d.min(h);
        if rank > most {
            let place = layer.streams.place();
            return Err(Error::usage(format!(
                "rank: found {rank}, expected at most {most}, the smaller width of {place}"
            )));
        }

        let mut deltas = Deltas { fc1_down: Vec::new(), fc2_down: Vec::new() };
        for expert in 0..layer.settings.experts() {
            // One stream per expert, W1 first: more experts change no earlier one.
            let mut stream = layer.streams.expert(self.name(), expert);
            for (down, inputs) in [(&mut deltas.fc1_down, d), (&mut deltas.fc2_down, h)] {
                let start = down.len();
                down.resize(start + rank * inputs, 0.0);

                let std = 1.0 / (inputs as f32).sqrt();
                rng::fill_normal(&mut stream, std, &mut down[start..]);
            }
        }
        Ok(deltas)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Upcycled;
    use super::super::samples::{Parts, settings_with, upcycle};
    use super::*;
    use crate::num;

    fn deltas(parts: &Parts, experts: usize, rank: usize) -> Result<Deltas> {
        let settings = settings_with(&DersLm, experts, |init| init.rank = Some(rank));
        match upcycle(&DersLm, parts, &settings, 3, "text.0")? {
            Upcycled::LowRank(made) => Ok(made.deltas),
            other => panic!("expected experts of low rank, found {other:?}"),
        }
    }

    #[test]
    fn the_a_have_their_deviation_and_belong_to_their_expert() {
        let parts = Parts::new(50, 80, 4, 2);
        let four = deltas(&parts, 4, 20).unwrap();
        let cases = [(&four.fc1_down, 50), (&four.fc2_down, 80)];
        for (down, inputs) in cases {
            assert_eq!(down.len(), 4 * 20 * inputs);
            let values: Vec<f64> = down.iter().map(|v| f64::from(*v)).collect();
            let expected = (inputs as f64).powf(-0.5);
            assert!((num::std_dev(&values) / expected - 1.0).abs() < 0.1);
        }
        let two = deltas(&parts, 2, 20).unwrap();
        assert_eq!(two.fc1_down, four.fc1_down[..two.fc1_down.len()]);
        assert_eq!(two.fc2_down, four.fc2_down[..two.fc2_down.len()]);
        assert_ne!(two.fc1_down[..1000], two.fc1_down[1000..]);
    }

    #[test]
    fn a_rank_above_the_width_is_refused() {
        let error = deltas(&Parts::new(5, 9, 2, 1), 2, 6).unwrap_err();
        assert!(
            error.message().contains("at most 5, the smaller width of text.0"),
            "{error}"
        );
    }
}
