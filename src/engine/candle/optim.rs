//! AdamW as it is written down (Loshchilov & Hutter, ICLR 2019), over candle tensors.
//!
//! candle-nn has the same optimizer but hides its moments, which a checkpoint needs.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, Var};

use crate::config::OptimConfig;
use crate::engine::Trainable;

/// Moments of every tensor, by name, and the steps taken.
#[derive(Debug, Clone)]
pub(super) struct AdamW {
    pub(super) first: BTreeMap<String, Tensor>,
    pub(super) second: BTreeMap<String, Tensor>,
    pub(super) steps: usize,
}

impl AdamW {
    /// Fresh moments.
    pub(super) fn new(parameters: &BTreeMap<String, Var>) -> Result<Self> {
        let zeros = |(name, var): (&String, &Var)| Ok((name.clone(), var.zeros_like()?));
        let zeros = parameters.iter().map(zeros).collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Self { first: zeros.clone(), second: zeros, steps: 0 })
    }

    /// One step on the tensors that train; the norm of their gradient comes back.
    pub(super) fn step(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        gradients: &BTreeMap<String, Tensor>,
        trainable: &BTreeMap<String, Trainable>,
        (learning_rate, config): (f64, &OptimConfig),
    ) -> Result<f64> {
        let mut squares = 0.0_f64;
        for gradient in gradients.values() {
            let square = gradient.sqr()?.sum_all()?.to_dtype(DType::F64)?;
            squares += square.to_scalar::<f64>()?;
        }
        let norm = squares.sqrt();
        let clip = if norm > config.clip_norm { config.clip_norm / norm } else { 1.0 };

        // Moments start at zero and are too small at first; dividing by 1 - βᵗ corrects
        // that.
        self.steps += 1;
        let count = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (beta1, beta2) = (config.beta1, config.beta2);
        let (correction1, correction2) =
            (1.0 - beta1.powi(count), 1.0 - beta2.powi(count));

        for (name, var) in parameters {
            let Trainable::Train { decay } = trainable[name] else { continue };
            let gradient = (&gradients[name] * clip)?;
            let first = ((&self.first[name] * beta1)? + (&gradient * (1.0 - beta1))?)?;
            let second =
                ((&self.second[name] * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;

            let root = ((&second / correction2)?.sqrt()? + config.epsilon)?;
            let step = ((&first / correction1)? / root)?;

            // Decay is decoupled: it acts on the weight itself and not through the
            // moments.
            let decay = if decay { config.weight_decay } else { 0.0 };
            let kept = (var.as_tensor() * (1.0 - learning_rate * decay))?;
            var.set(&(kept - (step * learning_rate)?)?)?;

            self.first.insert(name.clone(), first);
            self.second.insert(name.clone(), second);
        }
        Ok(norm)
    }
}
