//! `DeRS` with low-rank matrices: one shared FFN, and for each expert a product of low rank.
//!
//! Upcycled experts stay close to each other, so that what tells them apart needs few
//! parameters: `W_e = W + B_e A_e` with A random and B zero. The mixture begins as sparse
//! upcycling does, and the shared W and all A and B are trained. Biases are shared. The
//! deviation of A, 1 / sqrt(inputs), is our choice: A x then has about the size of x's values.

use super::{
    DenseFfn, Evidence, Experts, Method, Needs, Parameter, Settings, Sparse, Streams,
};
use crate::error::{Error, Result};
use crate::rng;

/// Method `ders-lm`: exact copies that share their weights up to a trained product.
#[derive(Debug)]
pub struct DersLm;

/// The A of a layer's experts; their B begin at zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Deltas {
    /// Of the first layer `[E, r, d]`.
    pub fc1_down: Vec<f32>,
    /// Of the second layer `[E, r, h]`.
    pub fc2_down: Vec<f32>,
}

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

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter::Rank, Parameter::RouterStd]
    }

    fn copies(&self) -> bool {
        true
    }

    fn deltas(
        &self,
        dense: &DenseFfn,
        settings: &Settings,
        streams: &Streams<'_>,
    ) -> Result<Option<Deltas>> {
        let Some(rank) = settings.rank() else { return Ok(None) };
        let (d, h) = (dense.width(), dense.hidden());
        let most = d.min(h);
        if rank > most {
            let place = streams.place();
            return Err(Error::usage(format!(
                "rank: found {rank}, expected at most {most}, the smaller width of {place}"
            )));
        }
        let mut deltas = Deltas { fc1_down: Vec::new(), fc2_down: Vec::new() };
        for expert in 0..settings.experts() {
            let mut stream = streams.expert(self.name(), expert);
            for (down, inputs) in [(&mut deltas.fc1_down, d), (&mut deltas.fc2_down, h)] {
                let start = down.len();
                down.resize(start + rank * inputs, 0.0);
                let std = 1.0 / (inputs as f32).sqrt();
                rng::fill_normal(&mut stream, std, &mut down[start..]);
            }
        }
        Ok(Some(deltas))
    }

    fn experts(
        &self,
        dense: &DenseFfn,
        evidence: &Evidence<'_>,
        settings: &Settings,
        streams: &Streams<'_>,
    ) -> Result<Experts> {
        Sparse.experts(dense, evidence, settings, streams)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{ffn, settings_with};
    use super::*;
    use crate::num;

    #[test]
    fn the_a_have_their_deviation_and_belong_to_their_expert() {
        let (dense, streams) = (ffn(50, 80, 1), Streams::new(3, "vision.1"));
        let deltas = |experts| {
            let settings = settings_with(&DersLm, experts, |init| init.rank = Some(20));
            DersLm.deltas(&dense, &settings, &streams).unwrap().unwrap()
        };
        let four = deltas(4);
        let cases = [(&four.fc1_down, 50), (&four.fc2_down, 80)];
        for (down, inputs) in cases {
            assert_eq!(down.len(), 4 * 20 * inputs);
            let values: Vec<f64> = down.iter().map(|v| f64::from(*v)).collect();
            let expected = (inputs as f64).powf(-0.5);
            assert!((num::std_dev(&values) / expected - 1.0).abs() < 0.1);
        }
        let two = deltas(2);
        assert_eq!(two.fc1_down, four.fc1_down[..two.fc1_down.len()]);
        assert_eq!(two.fc2_down, four.fc2_down[..two.fc2_down.len()]);
        assert_ne!(two.fc1_down[..1000], two.fc1_down[1000..]);
    }

    #[test]
    fn a_rank_above_the_width_is_refused() {
        let settings = settings_with(&DersLm, 2, |init| init.rank = Some(6));
        let streams = Streams::new(3, "text.0");
        let error = DersLm.deltas(&ffn(5, 9, 1), &settings, &streams).unwrap_err();
        assert!(
            error.message().contains("at most 5, the smaller width of text.0"),
            "{error}"
        );
    }
}
