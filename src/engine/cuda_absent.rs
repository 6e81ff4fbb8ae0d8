//! A replacement for the CUDA engine in a program that was built without it.
//!
//! It has the same names and signatures as the engine, and refuses to open one.

use super::{
    Engine, FfnInputs, LayerRouting, Losses, Objective, Pairs, SavedState, TowerInput,
    Training, TrainingState,
};
use crate::config::{OptimConfig, Precision};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::model::ClipConfig;

/// An engine that does not exist.
#[derive(Debug, Clone, Copy)]
pub enum Cuda {}

/// The name of the engine in the keys of results.
pub fn backend(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "cuda-f32",
        Precision::Bf16 => "cuda-bf16",
    }
}

/// Whether `device: auto` means a card, which it never does in this program.
pub fn available() -> bool {
    false
}

/// Why a model of this shape cannot run on a card: here none can be opened anyway.
pub fn refusal(_config: &ClipConfig) -> Option<String> {
    None
}

/// Whether ranks can share a batch: here none has a card.
pub fn check_share(_optim: &OptimConfig, _ranks: usize) -> Result<()> {
    Ok(())
}

/// Refuses: this program was built without CUDA.
pub fn require(ordinal: usize) -> Result<()> {
    Err(absent(ordinal))
}

fn absent(ordinal: usize) -> Error {
    Error::usage(format!(
        "device: found cuda:{ordinal}, but this program was built without the feature cuda; \
         build it with its default features, or set `device: cpu`"
    ))
}

impl Cuda {
    /// Refuses: this program was built without CUDA.
    pub fn open(
        _config: &ClipConfig,
        ordinal: usize,
        _precision: Precision,
    ) -> Result<Self> {
        Err(absent(ordinal))
    }
}

impl Engine for Cuda {
    fn backend(&self) -> &'static str {
        match *self {}
    }

    fn config(&self) -> &ClipConfig {
        match *self {}
    }

    fn load(&mut self, _values: &[f32]) -> Result<()> {
        match *self {}
    }

    fn values(&self) -> Result<Vec<f32>> {
        match *self {}
    }

    fn encode_images(&mut self, _pixels: Pixels<'_>) -> Result<Vec<f32>> {
        match *self {}
    }

    fn encode_texts(&mut self, _ids: &[u32]) -> Result<Vec<f32>> {
        match *self {}
    }

    fn ffn_inputs(
        &mut self,
        _input: TowerInput<'_>,
        _blocks: &[usize],
    ) -> Result<FfnInputs> {
        match *self {}
    }

    fn routing(&mut self, _input: TowerInput<'_>) -> Result<Vec<LayerRouting>> {
        match *self {}
    }

    fn start_training(&mut self, _training: &Training) -> Result<()> {
        match *self {}
    }

    fn set_objective(&mut self, _objective: Objective) -> Result<()> {
        match *self {}
    }

    fn step(&mut self, _pairs: Pairs<'_>) -> Result<Losses> {
        match *self {}
    }

    fn update(&mut self, _learning_rate: f64) -> Result<f64> {
        match *self {}
    }

    fn gradient(&self) -> Result<Vec<f32>> {
        match *self {}
    }

    fn training_state(&self) -> Result<TrainingState> {
        match *self {}
    }

    fn restore(&mut self, _state: &dyn SavedState) -> Result<()> {
        match *self {}
    }
}
