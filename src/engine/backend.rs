//! Which engine runs a model: the one place where that is decided.

use super::Engine;
use super::candle::Candle;
use super::cpu::{self, Cpu};
use crate::config::{Compute, Device, Precision};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, ClipConfig};

/// An engine that can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The product's engine on processors.
    Cpu,
    /// The reference on candle's automatic differentiation, for tests.
    Candle,
}

impl Backend {
    /// The engine that a configuration asks for.
    ///
    /// `device: auto` takes a card where there is an engine for one, and processors
    /// elsewhere.
    pub fn choose(compute: Compute) -> Result<Self> {
        match (compute.device, compute.precision) {
            // The CUDA engine will be chosen here: for `auto` where a card answers, and for
            // `cuda:N`.
            (Device::Cuda(index), _) => Err(Error::usage(format!(
                "device: found cuda:{index}, but this version has no engine for cards; set \
                 `device: cpu`"
            ))),
            (Device::Auto | Device::Cpu, Precision::F32) => Ok(Self::Cpu),
            (Device::Auto | Device::Cpu, Precision::Bf16) => Err(Error::usage(
                "precision: found bf16, expected f32, because the engine on processors \
                 computes in f32 only; set `precision: f32`",
            )),
        }
    }

    /// The name that enters the keys of results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => cpu::BACKEND,
            Self::Candle => super::candle::BACKEND,
        }
    }
}

/// An engine for models of this shape, which still need their weights.
pub fn open(config: &ClipConfig, backend: Backend) -> Result<Box<dyn Engine>> {
    Ok(match backend {
        Backend::Cpu => Box::new(Cpu::new(config)),
        // The CUDA engine will be opened beside these.
        Backend::Candle => Box::new(Candle::new(config)),
    })
}

/// An engine that holds the weights of a model.
pub fn open_model(model: Checkpoint, backend: Backend) -> Result<Box<dyn Engine>> {
    let mut engine = open(&model.config, backend)?;
    engine.adopt(model.values)?;
    Ok(engine)
}
