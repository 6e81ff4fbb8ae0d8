//! One flat buffer for all parameters of a model.
//!
//! Parameters, gradients, both AdamW moments and the EMA are buffers of one [`Layout`]: the
//! optimizer, clipping, averaging and checkpoints are each one pass over one buffer, and an
//! all-reduce would be one call. Tensors exist only at the border, in files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::ClipConfig;
use super::names::{self, Parameter, ParameterId};
use crate::error::{Context, Error, Result};
use crate::io::tensors::{self, Tensor, TensorFile, Tensors};

/// Where each parameter of a model lies in a flat buffer.
#[derive(Debug, Clone)]
pub struct Layout {
    parameters: Vec<(Parameter, Range<usize>)>,
    index: BTreeMap<ParameterId, usize>,
    len: usize,
}

impl Layout {
    /// The layout of a model: the parameters in the order of [`names::parameters`].
    pub fn new(config: &ClipConfig) -> Self {
        let mut len = 0;
        let mut index = BTreeMap::new();
        let mut parameters = Vec::new();
        for parameter in names::parameters(config) {
            let range = len..len + parameter.len();
            len = range.end;
            index.insert(parameter.id, parameters.len());
            parameters.push((parameter, range));
        }
        Self { parameters, index, len }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the model has no parameters; it always has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every parameter with its range, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Parameter, Range<usize>)> {
        self.parameters.iter().map(|(parameter, range)| (parameter, range.clone()))
    }

    /// The range of a parameter.
    ///
    /// # Panics
    /// If the model has no such parameter: ids come from the same configuration.
    pub fn range(&self, id: ParameterId) -> Range<usize> {
        let index = self.index.get(&id).expect("the parameter belongs to this model");
        self.parameters[*index].1.clone()
    }

    /// Copies tensors into a flat buffer; every name and shape must fit, and none may be missing.
    pub fn flatten(&self, config: &ClipConfig, tensors: &Tensors) -> Result<Vec<f32>> {
        let found = tensors.iter().map(|(name, t)| (name.as_str(), t.shape.as_slice()));
        names::check(config, found)?;
        self.gather(|name, out| {
            out.copy_from_slice(&tensors[name].data);
            Ok(())
        })
    }

    /// [`Self::flatten`] of a file's tensors, which are never all in memory twice.
    pub fn read(&self, config: &ClipConfig, file: &TensorFile) -> Result<Vec<f32>> {
        names::check(config, file.shapes())?;
        self.gather(|name, out| file.read_into(name, out))
    }

    fn gather(
        &self,
        mut copy: impl FnMut(&str, &mut [f32]) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; self.len];
        for (parameter, range) in self.iter() {
            let (name, own) = (&parameter.name, &mut flat[range]);
            copy(name, own)?;

            // A NaN from a file would spread through a whole model before anybody looks.
            if let Some(bad) = own.iter().find(|v| !v.is_finite()) {
                return Err(Error::corrupt(format!(
                    "tensor {name} holds {bad}, expected finite values"
                )));
            }
        }
        Ok(flat)
    }

    /// Cuts a flat buffer into named tensors.
    pub fn unflatten(&self, flat: &[f32]) -> Tensors {
        let tensor = |(parameter, range): (&Parameter, Range<usize>)| {
            let data = flat[range].to_vec();
            (parameter.name.clone(), Tensor { shape: parameter.shape.clone(), data })
        };
        self.iter().map(tensor).collect()
    }
}

/// A model at rest: its shape and its weights, as read from or written to a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The architecture.
    pub config: ClipConfig,
    /// All weights in the order of the [`Layout`].
    pub values: Vec<f32>,
}

impl Checkpoint {
    /// Reads `config.json` and a weights file of a folder, as a model to run: experts of low
    /// rank are merged.
    pub fn read(folder: &Path, weights: &str) -> Result<Self> {
        Self::read_as_kept(folder, weights).map(Self::merged)
    }

    /// Reads `config.json` and a weights file of a folder, in the form it is kept in.
    pub fn read_as_kept(folder: &Path, weights: &str) -> Result<Self> {
        let path = folder.join("config.json");
        let place = path.display();
        let text =
            std::fs::read_to_string(&path).context(|| format!("reading {place}"))?;

        let config: ClipConfig = serde_json::from_str(&text).map_err(|e| {
            Error::corrupt(format!("{place} is not a valid model configuration"))
                .caused_by(e)
        })?;

        let path = folder.join(weights);
        let values = Layout::new(&config).read(&config, &TensorFile::open(&path)?);
        Ok(Self { values: values.context(|| format!("in {}", path.display()))?, config })
    }

    /// Writes the weights file, without a copy of the weights.
    pub fn write(&self, path: &Path) -> Result<()> {
        let layout = Layout::new(&self.config);
        let own: BTreeMap<&str, Range<usize>> =
            layout.iter().map(|(p, range)| (p.name.as_str(), range)).collect();
        tensors::write_each(path, names::shapes(&self.config), |name, put| {
            put(&self.values[own[name].clone()])
        })
    }

    /// The weights by name.
    pub fn tensors(&self) -> Tensors {
        Layout::new(&self.config).unflatten(&self.values)
    }

    /// Total parameters, and those a token passes: see [`parameter_counts`].
    pub fn counts(&self) -> (usize, usize) {
        parameter_counts(&self.config)
    }
}

/// Parameters of a model of this shape: all of them, and those that one token passes, with K
/// of E experts.
pub fn parameter_counts(config: &ClipConfig) -> (usize, usize) {
    let (mut total, mut experts) = (0, 0);
    for parameter in names::parameters(config) {
        total += parameter.len();

        if parameter.id.is_expert() {
            experts += parameter.len();
        }
    }

    // Of each stack of E experts a token leaves E - K unused.
    let idle = config
        .moe
        .as_ref()
        .map_or(0, |moe| experts / moe.experts * (moe.experts - moe.top_k));
    (total, total - idle)
}
