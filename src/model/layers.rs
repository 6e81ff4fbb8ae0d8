//! One FFN or MoE layer of a model as tensors: for those who upcycle or analyze it.
//!
//! The engine works on flat buffers; methods and analyses want the tensors of one layer.
//! Here is the only place that cuts a stack of experts into its slices.

use std::collections::BTreeMap;
use std::path::Path;

use super::Checkpoint;
use super::names::{self, Parameter, ParameterId, Part};
use super::params::Layout;
use super::{ClipConfig, Moe, Tower};
use crate::error::{Error, Result};
pub use crate::ffn::{Ffn, FfnTensors};
use crate::io::tensors::{self, Put};

/// An MoE layer: E FFNs and the router [E, d].
#[derive(Debug, Clone, PartialEq)]
pub struct MoeTensors<'a> {
    /// The experts.
    pub experts: Vec<FfnTensors<'a>>,
    /// The router.
    pub router: &'a [f32],
}

impl Checkpoint {
    /// The FFN of a dense block.
    pub fn dense_ffn(&self, tower: Tower, block: usize) -> Result<FfnTensors<'_>> {
        if block >= self.config.tower(tower).layers || self.config.is_moe(tower, block) {
            let tower = tower.name();
            return Err(Error::failed(format!("{tower}.{block} has no dense FFN")));
        }

        let layout = Layout::new(&self.config);
        let part =
            |part| &self.values[layout.range(ParameterId::Block(tower, block, part))];
        Ok(FfnTensors {
            fc1: part(Part::FcWeight),
            fc1_bias: part(Part::FcBias),
            fc2: part(Part::ProjWeight),
            fc2_bias: part(Part::ProjBias),
        })
    }

    /// The experts and the router of an MoE block.
    pub fn moe_layer(&self, tower: Tower, block: usize) -> Result<MoeTensors<'_>> {
        let Some(moe) = &self.config.moe else {
            return Err(Error::failed("a dense model has no MoE layer"));
        };
        if !self.config.is_moe(tower, block) {
            let tower = tower.name();
            return Err(Error::failed(format!("{tower}.{block} is not an MoE layer")));
        }

        let layout = Layout::new(&self.config);
        let part =
            |part| &self.values[layout.range(ParameterId::Block(tower, block, part))];
        let slice = |stack, e| {
            let all: &[f32] = part(stack);
            let len = all.len() / moe.experts;
            &all[e * len..(e + 1) * len]
        };

        let expert = |e| FfnTensors {
            fc1: slice(Part::ExpertFcWeight, e),
            fc1_bias: slice(Part::ExpertFcBias, e),
            fc2: slice(Part::ExpertProjWeight, e),
            fc2_bias: slice(Part::ExpertProjBias, e),
        };
        Ok(MoeTensors {
            experts: (0..moe.experts).map(expert).collect(),
            router: part(Part::Router),
        })
    }
}

/// The MoE model that new layers make of a dense one, tensor by tensor: every other tensor is
/// the dense one's, bit for bit. With `moe.rank`, the FFN stays as the shared one, the experts
/// of a layer are not used, and the B of the deltas are zero.
///
/// Only the layer at hand exists, so that a mixture larger than memory can be written.
#[derive(Debug)]
pub struct Mixture<'a, F> {
    dense: &'a Checkpoint,
    old: Layout,
    config: ClipConfig,
    make: F,
    layer: Option<((Tower, usize), MoeLayer)>,
}

impl<'a, F: FnMut(Tower, usize) -> Result<MoeLayer>> Mixture<'a, F> {
    /// The mixture whose layers `make` makes, each once if tensors are asked for block by block.
    pub fn new(dense: &'a Checkpoint, moe: Moe, make: F) -> Self {
        let config = ClipConfig { moe: Some(moe), ..dense.config.clone() };
        Self { dense, old: Layout::new(&dense.config), config, make, layer: None }
    }

    /// The shape of the mixture.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Puts the values of one of its tensors.
    fn put(&mut self, parameter: &Parameter, put: &mut Put<'_>) -> Result<()> {
        match parameter.id {
            ParameterId::Block(_, _, Part::DeltaFcUp | Part::DeltaProjUp) => {
                put(&vec![0.0; parameter.len()])
            }
            ParameterId::Block(tower, block, part) if parameter.id.is_moe() => {
                // Tensors of a layer come one after the other, so one layer is enough
                // in memory.
                if self.layer.as_ref().is_none_or(|(at, _)| *at != (tower, block)) {
                    // The former layer makes room first.
                    self.layer = None;
                    self.layer = Some(((tower, block), (self.make)(tower, block)?));
                }

                let layer = self.layer.iter();
                layer.flat_map(|(_, layer)| layer.part(part)).try_for_each(put)
            }
            id => put(&self.dense.values[self.old.range(id)]),
        }
    }

    /// The whole mixture.
    pub fn checkpoint(mut self) -> Result<Checkpoint> {
        let layout = Layout::new(&self.config);
        let mut values = Vec::with_capacity(layout.len());
        for (parameter, range) in layout.iter() {
            self.put(parameter, &mut |chunk| {
                values.extend_from_slice(chunk);
                Ok(())
            })?;

            let (found, expected) = (values.len() - range.start, range.len());
            if found != expected {
                let name = &parameter.name;
                return Err(Error::failed(format!(
                    "the new MoE layer has {found} values of tensor {name}, expected \
                     {expected}"
                )));
            }
        }
        Ok(Checkpoint { config: self.config, values })
    }

    /// Writes the weights file.
    pub fn write(mut self, path: &Path) -> Result<()> {
        let parameters = names::parameters(&self.config);
        let own: BTreeMap<&str, &Parameter> =
            parameters.iter().map(|p| (p.name.as_str(), p)).collect();
        tensors::write_each(path, names::shapes(&self.config), |name, put| {
            self.put(own[name], put)
        })
    }
}

/// A new MoE layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MoeLayer {
    /// Router [E, d].
    pub router: Vec<f32>,
    /// The experts.
    pub experts: Vec<Ffn>,
    /// A of the deltas on W1 [E, r, d], where experts are kept as such.
    pub fc1_down: Vec<f32>,
    /// A of the deltas on W2 [E, r, h].
    pub fc2_down: Vec<f32>,
}

impl MoeLayer {
    /// A tensor of the layer in chunks: a stack is never made.
    fn part(&self, part: Part) -> Vec<&[f32]> {
        let stack = |of: fn(&Ffn) -> &[f32]| self.experts.iter().map(of).collect();

        match part {
            Part::ExpertFcWeight => stack(|expert| &expert.fc1),
            Part::ExpertFcBias => stack(|expert| &expert.fc1_bias),
            Part::ExpertProjWeight => stack(|expert| &expert.fc2),
            Part::ExpertProjBias => stack(|expert| &expert.fc2_bias),
            Part::DeltaFcDown => vec![&self.fc1_down],
            Part::DeltaProjDown => vec![&self.fc2_down],
            _ => vec![&self.router],
        }
    }
}
