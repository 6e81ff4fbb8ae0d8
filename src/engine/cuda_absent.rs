//! What stands in for the CUDA engine in a program that was built without it.
//!
//! The same names and signatures; no engine can be opened.

use super::{
    Engine, FfnInputs, LayerRouting, Losses, Pairs, TowerInput, Training, TrainingState,
};
use crate::error::{Error, Result};
use crate::model::ClipConfig;

/// The type of activations and of the weights that matrix products read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats everywhere.
    F32,
    /// bf16, with f32 sums, residual stream and master weights.
    Bf16,
}

/// An engine that does not exist.
#[derive(Debug, Clone, Copy)]
pub enum Cuda {}

/// Whether a driver and at least one card are there: not for this program.
pub fn available() -> bool {
    false
}

impl Cuda {
    /// Refuses: this program was built without CUDA.
    pub fn open(
        _config: &ClipConfig,
        ordinal: usize,
        _precision: Precision,
    ) -> Result<Self> {
        Err(Error::usage(format!(
            "device cuda:{ordinal} was asked for, but this program was built without the \
             feature cuda: build it with default features, or choose device: cpu"
        )))
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

    fn encode_images(&mut self, _pixels: &[f32]) -> Result<Vec<f32>> {
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

    fn restore(&mut self, _state: &TrainingState) -> Result<()> {
        match *self {}
    }
}
