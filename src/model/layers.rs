//! One FFN or MoE layer of a model as matrices: for those who upcycle or analyse it.
//!
//! The engine works on flat buffers; methods and analyses want the matrices of one layer.
//! Here is the only place that cuts a stack of experts into its slices.

use super::Checkpoint;
use super::names::{Part, Place};
use super::params::Layout;
use super::{ClipConfig, Moe, Tower};
use crate::error::{Error, Result};

/// The flat tensors of one FFN: W1 `[h, d]`, b1 `[h]`, W2 `[d, h]`, b2 `[d]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FfnTensors<'a> {
    /// W1.
    pub fc1: &'a [f32],
    /// b1.
    pub fc1_bias: &'a [f32],
    /// W2.
    pub fc2: &'a [f32],
    /// b2.
    pub fc2_bias: &'a [f32],
}

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
        let part = |part| &self.values[layout.range(Place::Block(tower, block, part))];
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
            return Err(Error::failed(format!("{tower}.{block} is no MoE layer")));
        }
        let layout = Layout::new(&self.config);
        let part = |part| &self.values[layout.range(Place::Block(tower, block, part))];
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

    /// The MoE model that `layers` make of this dense one, in the order of the blocks of
    /// `moe`; every other tensor is copied bit for bit. With `moe.rank`, the FFN stays as the
    /// shared one, the experts of a layer are not used, and the B of the deltas are zero.
    pub fn with_experts(&self, moe: &Moe, layers: &[MoeLayer]) -> Result<Self> {
        let config = ClipConfig { moe: Some(moe.clone()), ..self.config.clone() };
        let (old, new) = (Layout::new(&self.config), Layout::new(&config));
        let mut places = Vec::new();
        for tower in Tower::BOTH {
            places.extend(config.moe_blocks(tower).iter().map(|&block| (tower, block)));
        }
        if places.len() != layers.len() {
            let (found, expected) = (layers.len(), places.len());
            return Err(Error::failed(format!("{found} layers, expected {expected}")));
        }
        let mut values = vec![0.0; new.len()];
        for (parameter, range) in new.iter() {
            let source: &[f32] = match parameter.place {
                Place::Block(_, _, Part::DeltaFcUp | Part::DeltaProjUp) => continue,
                Place::Block(tower, block, part) if parameter.place.is_moe() => {
                    let at = places.iter().position(|p| *p == (tower, block));
                    let layer = at.map(|at| &layers[at]).ok_or_else(|| {
                        Error::failed(format!("no layer for {}", parameter.name))
                    })?;
                    layer.part(part)
                }
                place => &self.values[old.range(place)],
            };
            if source.len() != range.len() {
                let (name, found, expected) =
                    (&parameter.name, source.len(), range.len());
                return Err(Error::failed(format!(
                    "{name}: {found} values, expected {expected}"
                )));
            }
            values[range].copy_from_slice(source);
        }
        Ok(Self { config, values })
    }
}

/// The stacked tensors of a new MoE layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MoeLayer {
    /// Router [E, d].
    pub router: Vec<f32>,
    /// W1 [E, h, d].
    pub fc1: Vec<f32>,
    /// b1 [E, h].
    pub fc1_bias: Vec<f32>,
    /// W2 [E, d, h].
    pub fc2: Vec<f32>,
    /// b2 [E, d].
    pub fc2_bias: Vec<f32>,
    /// A of the deltas on W1 [E, r, d], where experts are kept as such.
    pub fc1_down: Vec<f32>,
    /// A of the deltas on W2 [E, r, h].
    pub fc2_down: Vec<f32>,
}

impl MoeLayer {
    fn part(&self, part: Part) -> &[f32] {
        match part {
            Part::ExpertFcWeight => &self.fc1,
            Part::ExpertFcBias => &self.fc1_bias,
            Part::ExpertProjWeight => &self.fc2,
            Part::ExpertProjBias => &self.fc2_bias,
            Part::DeltaFcDown => &self.fc1_down,
            Part::DeltaProjDown => &self.fc2_down,
            _ => &self.router,
        }
    }
}
