//! `upcycle-inspect experts`: what a method makes of one FFN in a file, to check it from
//! outside.

use std::path::PathBuf;

use super::Answer;
use crate::config::InitConfig;
use crate::error::{Context as _, Error, Result};
use crate::ffn::FfnTensors;
use crate::io::tensors::{self, Tensor, Tensors};
use crate::linalg::Matrix;
use crate::upcycle::{self, Evidence, LayerInput, Settings, Streams, Upcycled};

/// The arguments of `experts`.
#[derive(Debug, clap::Args)]
pub(super) struct MakeExperts {
    /// Safetensors with `fc1` `[h,d]`, `fc1_bias` `[h]`, `fc2` `[d,h]`, `fc2_bias` `[d]`, and
    /// `centroids` `[E,d]` where the method needs them.
    #[arg(long, value_name = "FILE")]
    ffn: PathBuf,
    /// An entry of `inits`, as in `{method: drop, ratio: 0.25}`.
    #[arg(long, value_name = "YAML")]
    init: String,
    /// Number of experts E.
    #[arg(long, value_name = "N")]
    experts: usize,
    /// Seed of the run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Name of the layer, which enters the random streams.
    #[arg(long, value_name = "NAME", default_value = "vision.1")]
    layer: String,
    /// Where `router` `[E,d]` and `<expert>.fc1`, `.fc1_bias`, `.fc2`, `.fc2_bias` are written.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

impl MakeExperts {
    pub(super) fn answer(&self) -> Result<Answer> {
        let init: InitConfig = serde_saphyr::from_str(&self.init).map_err(|e| {
            let given = &self.init;
            Error::usage(format!(
                "--init: found {given}, expected an entry of inits as \
                 {{method: drop, ratio: 0.25}}"
            ))
            .caused_by(e)
        })?;

        let made = self.made(&init, &tensors::read(&self.ffn)?);
        let made = made.context(|| format!("FFN {}", self.ffn.display()))?;
        Answer::written(&made, &self.output)
    }

    fn made(&self, init: &InitConfig, given: &Tensors) -> Result<Tensors> {
        let method = upcycle::find(&init.method)?;
        let settings = Settings::new(method, init, self.experts)?;
        let part = |name: &str| {
            let tensor = given.get(name).map(|tensor| tensor.data.as_slice());
            tensor.ok_or_else(|| Error::usage(format!("found no tensor {name}")))
        };

        let dense = FfnTensors {
            fc1: part("fc1")?,
            fc1_bias: part("fc1_bias")?,
            fc2: part("fc2")?,
            fc2_bias: part("fc2_bias")?,
        };
        let centroids = given.get("centroids").map(|tensor| {
            let rows = tensor.shape.first().copied().unwrap_or(0);
            Matrix::new(rows, tensor.data.len() / rows.max(1), tensor.data.clone())
        });
        let centroids = centroids.transpose()?;

        // The same door as in the pipeline, with all its checks.
        let made = upcycle::upcycle_layer(
            method,
            &LayerInput {
                dense,
                evidence: Evidence {
                    centroids: centroids.as_ref(),
                    ..Evidence::default()
                },
                settings: &settings,
                streams: Streams::new(self.seed, &self.layer),
            },
        )?;
        let Upcycled::Experts(made) = made else {
            let name = method.name();
            return Err(Error::usage(format!(
                "method {name} makes no whole experts, expected one that does, such as drop"
            )));
        };

        let (h, d) = (dense.hidden(), dense.width());
        let mut out = Tensors::new();
        let router = vec![made.router.rows(), made.router.cols()];
        out.insert("router".to_owned(), Tensor::new(router, made.router.into_data())?);
        for (index, ffn) in made.experts.into_iter().enumerate() {
            for (part, shape, values) in [
                ("fc1", vec![h, d], ffn.fc1),
                ("fc1_bias", vec![h], ffn.fc1_bias),
                ("fc2", vec![d, h], ffn.fc2),
                ("fc2_bias", vec![d], ffn.fc2_bias),
            ] {
                out.insert(format!("{index}.{part}"), Tensor::new(shape, values)?);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(init: &str) -> Result<Tensors> {
        let tensor = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            let mut data = vec![0.0; count];
            crate::rng::fill_normal(&mut crate::rng::stream(1, "ffn"), 1.0, &mut data);
            Tensor::new(shape.to_vec(), data).unwrap()
        };
        let given = Tensors::from([
            ("fc1".to_owned(), tensor(&[8, 3])),
            ("fc1_bias".to_owned(), tensor(&[8])),
            ("fc2".to_owned(), tensor(&[3, 8])),
            ("fc2_bias".to_owned(), tensor(&[3])),
        ]);
        let ask = MakeExperts {
            ffn: PathBuf::new(),
            init: String::new(),
            experts: 2,
            seed: 1,
            layer: "vision.1".to_owned(),
            output: PathBuf::new(),
        };
        ask.made(&serde_saphyr::from_str(init).unwrap(), &given)
    }

    /// A quarter of 8 hidden units is redrawn: 2 rows of W1 differ between two experts' sets
    /// and the dense FFN, and as many columns of W2.
    #[test]
    fn drop_redraws_the_rows_and_columns_of_a_fraction_of_the_units() {
        let made = asked("{method: drop, ratio: 0.25}").unwrap();
        let copies = asked("{method: sparse}").unwrap();
        assert_eq!(made["router"].shape, [2, 3]);
        for expert in ["0", "1"] {
            let (own, dense) = (
                &made[&format!("{expert}.fc1")].data,
                &copies[&format!("{expert}.fc1")].data,
            );
            let rows = own.chunks_exact(3).zip(dense.chunks_exact(3));
            assert_eq!(rows.filter(|(a, b)| a != b).count(), 2);
        }
    }

    #[test]
    fn a_method_that_needs_more_says_what() {
        let error = asked("{method: router-only}").unwrap_err().to_string();
        assert!(error.contains("centroids"), "{error}");
        let error = asked("{method: dense}").unwrap_err().to_string();
        assert!(error.contains("makes no whole experts"), "{error}");
    }
}
