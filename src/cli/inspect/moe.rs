//! `upcycle-inspect moe`: one MoE layer on rows in a file, to check routing and experts from
//! outside.

use std::path::PathBuf;

use super::Answer;
use crate::config::Activation;
use crate::engine::cpu::ops::experts::{self, Shape, Weights, Workspace};
use crate::engine::cpu::ops::router::{self, Routing};
use crate::error::{Context as _, Error, Result};
use crate::io::tensors::{self, Tensor, Tensors};

/// The arguments of `moe`.
#[derive(Debug, clap::Args)]
pub(super) struct MoeLayer {
    /// Safetensors with `router` `[E,d]` and `<expert>.fc1` `[h,d]`, `.fc1_bias` `[h]`, `.fc2`
    /// `[d,h]` and `.fc2_bias` `[d]` of experts 0 to E - 1, as `experts` writes them.
    #[arg(long, value_name = "FILE")]
    layer: PathBuf,
    /// Safetensors with `rows` `[N,d]`, the inputs of the layer.
    #[arg(long, value_name = "FILE")]
    rows: PathBuf,
    /// Experts that a row visits, K.
    #[arg(long, value_name = "N", default_value_t = 2)]
    top_k: usize,
    /// The activation of the experts.
    #[arg(long, value_enum, default_value = "gelu")]
    activation: Activation,
    /// Where `probabilities` `[N,E]`, `chosen` `[N,K]` (numbers of experts, best first),
    /// `gates` `[N,K]`, `entropy` `[N]` and `outputs` `[N,d]` are written.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

impl MoeLayer {
    pub(super) fn answer(&self) -> Result<Answer> {
        let about = || format!("layer {}", self.layer.display());
        let layer = Layer::new(&tensors::read(&self.layer)?).context(about)?;
        let rows = tensors::read(&self.rows)?;
        let made = self.made(&layer, &rows);
        let made = made.context(|| format!("rows {}", self.rows.display()))?;
        Answer::written(&made, &self.output)
    }

    /// The layer's forward pass by the operators of the engine on processors.
    fn made(&self, layer: &Layer, given: &Tensors) -> Result<Tensors> {
        let Layer { experts: e, width: d, hidden, .. } = *layer;
        let rows = given
            .get("rows")
            .filter(|tensor| tensor.shape.len() == 2 && tensor.shape[1] == d);
        let Some(rows) = rows else {
            return Err(Error::usage(format!(
                "found no tensor `rows` of two axes and width {d}, expected [N, {d}], the \
                 width of the layer"
            )));
        };
        if self.top_k == 0 || self.top_k > e {
            let k = self.top_k;
            return Err(Error::usage(format!(
                "--top-k: found {k}, expected 1 to {e}, the number of experts"
            )));
        }

        // The operators of training, without its groups: a row does not depend on others.
        let x = rows.data.as_slice();
        let mut routing = Routing::default();
        router::forward(&mut routing, x, &layer.router, d, self.top_k);

        let mut y = vec![0.0; x.len()];
        let shape = Shape { experts: e, width: d, hidden, activation: self.activation };
        let layer = (shape, layer.weights());
        experts::forward_add(&mut y, x, &routing, layer, &mut Workspace::default());

        let (n, k) = (rows.shape[0], self.top_k);
        // Numbers of experts are small, so that they are exact as floats.
        let chosen = routing.chosen.iter().map(|&expert| expert as f32).collect();
        let named = [
            ("probabilities", vec![n, e], routing.probabilities),
            ("chosen", vec![n, k], chosen),
            ("gates", vec![n, k], routing.weights),
            ("entropy", vec![n], routing.entropy),
            ("outputs", vec![n, d], y),
        ];
        let tensor = |(name, shape, data): (&str, Vec<usize>, Vec<f32>)| {
            Ok((name.to_owned(), Tensor::new(shape, data)?))
        };
        named.into_iter().map(tensor).collect()
    }
}

/// A layer's tensors, experts stacked.
struct Layer {
    experts: usize,
    width: usize,
    hidden: usize,
    router: Vec<f32>,
    stacked: [Vec<f32>; 4],
}

impl Layer {
    /// Reads router and experts, and refuses what does not fit together.
    fn new(given: &Tensors) -> Result<Self> {
        let router = given
            .get("router")
            .filter(|tensor| tensor.shape.len() == 2 && !tensor.data.is_empty());
        let Some(router) = router else {
            return Err(Error::usage("found no tensor `router` of two axes, [E, d]"));
        };
        let (experts, width) = (router.shape[0], router.shape[1]);
        let first = given.get("0.fc1").and_then(|tensor| tensor.shape.first());
        let hidden = first.copied().unwrap_or_default();

        // The operators want each part of all experts in one buffer.
        let mut stacked = [const { Vec::new() }; 4];
        for expert in 0..experts {
            let parts = [
                ("fc1", vec![hidden, width]),
                ("fc1_bias", vec![hidden]),
                ("fc2", vec![width, hidden]),
                ("fc2_bias", vec![width]),
            ];
            for ((part, shape), out) in parts.into_iter().zip(&mut stacked) {
                let name = format!("{expert}.{part}");
                match given.get(&name) {
                    Some(tensor) if tensor.shape == shape => out.extend(&tensor.data),
                    found => {
                        let found = found.map(|tensor| &tensor.shape);
                        return Err(Error::usage(format!(
                            "tensor {name}: found {found:?}, expected {shape:?} (E = \
                             {experts}, d = {width} by `router`, h = {hidden} by `0.fc1`)"
                        )));
                    }
                }
            }
        }
        Ok(Self { experts, width, hidden, router: router.data.clone(), stacked })
    }

    fn weights(&self) -> Weights<'_> {
        let [fc1, fc1_bias, fc2, fc2_bias] = &self.stacked;
        Weights { fc1, fc1_bias, fc2, fc2_bias }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Tensors {
        let tensor = |name: &str, shape: &[usize]| {
            let mut data = vec![0.0; shape.iter().product()];
            crate::rng::fill_normal(&mut crate::rng::stream(1, name), 1.0, &mut data);
            (name.to_owned(), Tensor::new(shape.to_vec(), data).unwrap())
        };
        let mut all = Tensors::from([tensor("router", &[3, 2]), tensor("rows", &[4, 2])]);
        for expert in 0..3 {
            all.extend([
                tensor(&format!("{expert}.fc1"), &[5, 2]),
                tensor(&format!("{expert}.fc1_bias"), &[5]),
                tensor(&format!("{expert}.fc2"), &[2, 5]),
                tensor(&format!("{expert}.fc2_bias"), &[2]),
            ]);
        }
        all
    }

    fn ask(top_k: usize) -> MoeLayer {
        MoeLayer {
            layer: PathBuf::new(),
            rows: PathBuf::new(),
            top_k,
            activation: Activation::QuickGelu,
            output: PathBuf::new(),
        }
    }

    /// The mean over all experts weighted by p, in plain loops, where all are visited.
    #[test]
    fn outputs_are_the_gated_sums_of_experts() {
        let all = given();
        let made = ask(3).made(&Layer::new(&all).unwrap(), &all).unwrap();
        let quick = |v: f64| v / (1.0 + (-1.702 * v).exp());
        for row in 0..4 {
            let x: Vec<f64> =
                (0..2).map(|k| f64::from(all["rows"].data[row * 2 + k])).collect();
            let dot = |w: &[f32]| -> f64 {
                w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum()
            };
            let logits: Vec<f64> = all["router"].data.chunks(2).map(dot).collect();
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            for out in 0..2 {
                let mut expected = 0.0;
                for (expert, logit) in logits.iter().enumerate() {
                    let part = |name: &str| &all[&format!("{expert}.{name}")].data;
                    let mut y = f64::from(part("fc2_bias")[out]);
                    for h in 0..5 {
                        let bias = f64::from(part("fc1_bias")[h]);
                        let hidden = quick(dot(&part("fc1")[2 * h..2 * h + 2]) + bias);
                        y += f64::from(part("fc2")[out * 5 + h]) * hidden;
                    }
                    expected += logit.exp() / sum * y;
                }
                let found = f64::from(made["outputs"].data[row * 2 + out]);
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
            let gates: f32 = made["gates"].data[row * 3..row * 3 + 3].iter().sum();
            assert!((gates - 1.0).abs() < 1e-6);
        }
        let two = ask(2).made(&Layer::new(&all).unwrap(), &all).unwrap();
        assert_eq!(two["chosen"].shape, [4, 2]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut all = given();
        let error = ask(4).made(&Layer::new(&all).unwrap(), &all).unwrap_err();
        assert!(error.to_string().contains("expected 1 to 3"), "{error}");
        all.remove("2.fc2");
        let error = Layer::new(&all).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("tensor 2.fc2: found None, expected [2, 5]"), "{error}");
    }
}
