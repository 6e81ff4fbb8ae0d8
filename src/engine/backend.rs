//! Which engine runs a model: the one place where that is decided.

use super::Engine;
use super::candle::{self, Candle};
use super::cpu::{self, Cpu};
use super::cuda::{self, Cuda};
use crate::config::{Compute, Device, Precision};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, ClipConfig};

/// An engine that can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The product's engine on processors.
    Cpu,
    /// The engine on an NVIDIA card.
    Cuda {
        /// The number of the card, as the driver counts them.
        ordinal: usize,
        /// The number format in which products are computed.
        precision: Precision,
    },
    /// The reference on candle's automatic differentiation, for tests.
    Candle,
}

impl Backend {
    /// The engine that a configuration asks for.
    ///
    /// `device: auto` takes the first card where it can be opened, and processors
    /// elsewhere; `cuda:N` takes that card or says why not.
    pub fn choose(compute: Compute) -> Result<Self> {
        let Compute { device, precision } = compute;
        let card = match device {
            Device::Cpu => None,
            Device::Auto => cuda::available().then_some(0),
            Device::Cuda(ordinal) => {
                cuda::require(ordinal)?;
                Some(ordinal)
            }
        };

        // f32 in place of bf16 would be another computation than the one asked for.
        match (card, precision) {
            (Some(ordinal), precision) => Ok(Self::Cuda { ordinal, precision }),
            (None, Precision::F32) => Ok(Self::Cpu),
            (None, Precision::Bf16) => Err(Error::usage(
                "precision: found bf16, expected f32, because the engine on processors \
                 computes in f32 only; set `precision: f32`",
            )),
        }
    }

    /// The engine that a configuration asks for, for models of this shape.
    ///
    /// Where the engine on cards has no kernels for the shape, `auto` takes processors, and
    /// `cuda:N` is refused with the reason.
    pub fn choose_for(compute: Compute, config: &ClipConfig) -> Result<Self> {
        let chosen = Self::choose(compute)?;
        let Self::Cuda { ordinal, .. } = chosen else { return Ok(chosen) };
        match (cuda::refusal(config), compute.device) {
            (None, _) => Ok(chosen),
            (Some(_), Device::Auto) => {
                Self::choose(Compute { device: Device::Cpu, ..compute })
            }
            (Some(reason), _) => Err(Error::usage(format!(
                "device: found cuda:{ordinal}, but {reason}; set `device: auto` or \
                 `device: cpu`"
            ))),
        }
    }

    /// The name of the engine in the keys of results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => cpu::BACKEND,
            Self::Cuda { precision, .. } => cuda::backend(precision),
            Self::Candle => candle::BACKEND,
        }
    }
}

/// An engine for a model of this shape, without weights: call [`Engine::load`] next.
pub fn open(config: &ClipConfig, backend: Backend) -> Result<Box<dyn Engine>> {
    Ok(match backend {
        Backend::Cpu => Box::new(Cpu::new(config)),
        Backend::Cuda { ordinal, precision } => {
            Box::new(Cuda::open(config, ordinal, precision)?)
        }
        Backend::Candle => Box::new(Candle::new(config)),
    })
}

/// An engine that holds the weights of a model.
pub fn open_model(model: Checkpoint, backend: Backend) -> Result<Box<dyn Engine>> {
    let mut engine = open(&model.config, backend)?;
    engine.adopt(model.values)?;
    Ok(engine)
}
