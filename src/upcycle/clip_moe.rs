//! CLIP-MoE's diversified multiplet: experts that were fine-tuned on different hard negatives.
//!
//! Expert 0 is the dense FFN, and expert s what the s-th fine-tuning made of it. Each
//! fine-tuning starts from the dense model and trains FFNs alone, so that every expert fits
//! between the other tensors of the dense model. How they are made is the business of the
//! stage `multiplet`; here they are evidence.

use super::{Form, LayerInput, MakeExperts, Method, Needs, Router};
use crate::error::Result;
use crate::ffn::Ffn;

/// Method `clip-moe`: the dense FFN and E - 1 fine-tuned ones behind a random router.
#[derive(Debug)]
pub struct ClipMoe;

impl Method for ClipMoe {
    fn name(&self) -> &'static str {
        "clip-moe"
    }

    fn reference(&self) -> &'static str {
        "Zhang et al., CLIP-MoE: Towards Building Mixture of Experts for CLIP with Diversified \
         Multiplet Upcycling, EMNLP 2025, https://arxiv.org/abs/2409.19291"
    }

    fn describe(&self) -> &'static str {
        "the dense FFN, and FFNs fine-tuned on hard negatives (stage multiplet); random router"
    }

    fn form(&self) -> Form<'_> {
        Form::Experts(Router::Random, self)
    }

    fn needs(&self) -> Needs {
        Needs { multiplet: true, ..Needs::default() }
    }
}

impl MakeExperts for ClipMoe {
    fn experts(&self, layer: &LayerInput<'_>) -> Result<Vec<Ffn>> {
        let tuned = layer.evidence.multiplet(self, layer.streams.place())?;
        let all = std::iter::once(layer.dense.copied()).chain(tuned.iter().cloned());
        Ok(all.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Parts, ffn, run, settings, upcycle};
    use super::*;

    #[test]
    fn experts_are_the_dense_ffn_and_the_multiplet_bit_for_bit() {
        let parts = Parts::new(5, 9, 4, 2);
        let made = run(&ClipMoe, &parts, 4, 1);
        assert_eq!(made.experts[0], parts.dense);
        assert_eq!(made.experts[1..], parts.multiplet);
    }

    #[test]
    fn a_multiplet_of_another_size_or_shape_is_refused() {
        let refusal = |spoil: fn(&mut Parts)| {
            let mut parts = Parts::new(4, 6, 3, 2);
            spoil(&mut parts);
            let made = upcycle(&ClipMoe, &parts, &settings(&ClipMoe, 3), 1, "vision.3");
            made.unwrap_err().message().to_owned()
        };
        assert_eq!(
            refusal(|parts| parts.multiplet.truncate(1)),
            "vision.3: multiplet: found 1, expected 2 (one per expert but the dense one)"
        );
        assert_eq!(
            refusal(|parts| parts.multiplet[1] = ffn(4, 5, 9)),
            "vision.3, multiplet 2: fc1: found [20], expected [24]"
        );
        assert_eq!(
            refusal(|parts| parts.multiplet[0].fc2_bias[3] = f32::NAN),
            "vision.3, multiplet 1: fc2 bias: found NaN at index 3, expected finite values"
        );
    }
}
