//! Which engine runs a model: the one place where that is decided.

use super::Engine;
use super::candle::{self, Candle};
use super::cpu::{self, Cpu};
use super::cuda::{self, Cuda};
use crate::config::{Compute, Device, OptimConfig, Precision};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, ClipConfig};
use crate::ranks::Ranks;

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

    /// What runs a model on this rank: every rank has a card of its own, counted on its machine
    /// from the one that was chosen.
    pub fn on_rank(self, ranks: &dyn Ranks) -> Result<Self> {
        let (Self::Cuda { ordinal, precision }, true) = (self, ranks.count() > 1) else {
            return Ok(self);
        };

        let own = ordinal + ranks.neighbor();
        cuda::require(own).map_err(|error| {
            let (rank, number) = (ranks.rank(), ranks.neighbor() + 1);
            Error::usage(format!(
                "--ranks: rank {rank}, number {number} on its machine, found no card cuda:{own} \
                 there, expected a card for each rank from cuda:{ordinal} on; start as many \
                 ranks on a machine as it has cards, let each see all of them, or set `device: cpu`"
            ))
            .caused_by(error)
        })?;
        Ok(Self::Cuda { ordinal: own, precision })
    }

    /// Refuses a training whose batches this engine cannot share evenly between ranks.
    pub fn check_share(self, optim: &OptimConfig, ranks: usize) -> Result<()> {
        match self {
            Self::Cpu | Self::Candle => cpu::check_share(optim, ranks),
            Self::Cuda { .. } => cuda::check_share(optim, ranks),
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
