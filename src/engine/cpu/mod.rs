//! The engine on processors: hand-written passes over flat buffers.
//!
//! Weights, gradient, moments and teacher are one flat buffer each. A batch runs in groups of
//! 16 samples, side by side; nothing depends on the number of threads.

pub mod clip;
pub mod ops;
pub mod optim;
pub mod passes;
mod run;
mod step;
#[cfg(test)]
mod tests;
pub mod tower;
pub mod trace;
mod weights;

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;

use super::{
    Engine, FfnInputs, ImageLoss, LayerRouting, Losses, Objective, Pairs, SavedState,
    StateBuffer, TowerInput, Training, TrainingState,
};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::io::tensors::Put;
use crate::model::{ClipConfig, Tower};
use crate::ranks::{Alone, Ranks};
use clip::{Clip, GROUP, TowerState};
use run::Run;
pub use run::check_share;
use tower::{BlockState, MoeMode};
use weights::Weights;

/// The name of the engine in the keys of results.
pub const BACKEND: &str = "cpu-f32";

/// A model on processors, in f32.
#[derive(Debug)]
pub struct Cpu {
    /// As it was opened: experts of low rank are merged for the towers only.
    config: ClipConfig,
    clip: Clip,
    weights: Weights,
    ranks: Arc<dyn Ranks>,
    run: Option<Run>,
}

impl Cpu {
    /// The engine of a model of this shape, without weights.
    pub fn new(config: &ClipConfig) -> Self {
        Self {
            clip: Clip::new(&config.merged()),
            weights: Weights::new(config),
            config: config.clone(),
            ranks: Arc::new(Alone),
            run: None,
        }
    }

    fn run(&self) -> Result<&Run> {
        self.run.as_ref().ok_or_else(not_started)
    }

    /// Runs some samples of one tower without a backward; the raw embeddings come back.
    fn forward<'a>(
        &self,
        values: &[f32],
        input: TowerInput<'_>,
        state: &'a mut TowerState,
    ) -> &'a [f32] {
        match input {
            TowerInput::Pixels(pixels) => {
                let pixels = pixels.values(self.clip.sizes().0 / 3);
                self.clip.images(values, &pixels, MoeMode::TopK, state)
            }
            TowerInput::Ids(ids) => self.clip.texts(values, ids, MoeMode::TopK, state),
        }
    }

    /// Cuts the samples of a tower into chunks of `samples`, the last one shorter.
    fn chunks<'a>(&self, input: TowerInput<'a>, samples: usize) -> Vec<TowerInput<'a>> {
        let (picture, caption) = self.clip.sizes();
        match input {
            TowerInput::Pixels(pixels) => {
                pixels.parts(samples * picture).map(TowerInput::Pixels).collect()
            }
            TowerInput::Ids(ids) => {
                ids.chunks(samples * caption).map(TowerInput::Ids).collect()
            }
        }
    }

    /// Where the rows of each sample of a tower begin.
    fn starts(&self, input: TowerInput<'_>) -> Vec<usize> {
        let (picture, caption) = self.clip.sizes();
        let rows: Vec<usize> = match input {
            TowerInput::Pixels(pixels) => {
                let tokens = self.config.tower(Tower::Vision).tokens;
                vec![tokens; pixels.len() / picture]
            }
            TowerInput::Ids(ids) => {
                let captions = ids.chunks_exact(caption);
                captions.map(|caption| self.clip.caption_rows(caption)).collect()
            }
        };

        let mut starts = vec![0];
        starts.extend(rows.iter().scan(0, |at, rows| {
            *at += rows;
            Some(*at)
        }));
        starts
    }
}

impl Engine for Cpu {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn config(&self) -> &ClipConfig {
        &self.config
    }

    fn load(&mut self, values: &[f32]) -> Result<()> {
        self.adopt(values.to_vec())
    }

    fn adopt(&mut self, values: Vec<f32>) -> Result<()> {
        // New weights end a training run: its moments belong to the old ones.
        self.run = None;
        self.weights.replace(values)
    }

    fn values(&self) -> Result<Vec<f32>> {
        self.weights.kept().map(<[f32]>::to_vec)
    }

    fn into_values(self: Box<Self>) -> Result<Vec<f32>> {
        self.weights.into_kept()
    }

    fn encode_images(&mut self, pixels: Pixels<'_>) -> Result<Vec<f32>> {
        Ok(self.clip.encode_images(self.weights.whole()?, pixels))
    }

    fn encode_texts(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        Ok(self.clip.encode_texts(self.weights.whole()?, ids))
    }

    fn ffn_inputs(
        &mut self,
        input: TowerInput<'_>,
        blocks: &[usize],
    ) -> Result<FfnInputs> {
        let values = self.weights.whole()?;
        let tower = tower_of(input);
        let width = self.config.tower(tower).width;
        if let Some(block) =
            blocks.iter().find(|&&b| b >= self.config.tower(tower).layers)
        {
            let tower = tower.name();
            return Err(Error::usage(format!("the {tower} tower has no block {block}")));
        }

        let starts = self.starts(input);
        let rows = starts.last().copied().unwrap_or(0);
        let mut found = FfnInputs { counted: vec![false; rows], ..FfnInputs::default() };
        found.rows = blocks.iter().map(|&b| (b, vec![0.0; rows * width])).collect();

        // Every chunk writes into its own part of the buffers, so that rows exist once.
        let samples = self.clip.chunk(tower);
        let mut work = Vec::new();
        let mut counted = found.counted.as_mut_slice();
        let mut outputs: Vec<(usize, &mut [f32])> =
            found.rows.iter_mut().map(|(&b, rows)| (b, rows.as_mut_slice())).collect();
        for (index, chunk) in self.chunks(input, samples).into_iter().enumerate() {
            let last = ((index + 1) * samples).min(starts.len() - 1);
            let rows = starts[last] - starts[index * samples];

            let own_counted;
            (own_counted, counted) = counted.split_at_mut(rows);

            let mut own = Vec::with_capacity(outputs.len());
            for (block, rest) in &mut outputs {
                let (part, others) = std::mem::take(rest).split_at_mut(rows * width);
                own.push((*block, part));
                *rest = others;
            }

            work.push((chunk, own_counted, own));
        }

        work.into_par_iter().for_each(|(chunk, counted, outputs)| {
            let mut state = TowerState::light(blocks);
            self.forward(values, chunk, &mut state);
            counted.copy_from_slice(&state.counted);
            for (block, rows) in outputs {
                rows.copy_from_slice(&state.kept[&block]);
            }
        });
        found.starts = starts;
        Ok(found)
    }

    fn routing(&mut self, input: TowerInput<'_>) -> Result<Vec<LayerRouting>> {
        let values = self.weights.whole()?;
        let tower = tower_of(input);
        let blocks = self.config.moe_blocks(tower);
        let groups: Vec<Vec<LayerRouting>> = self
            .chunks(input, GROUP)
            .into_par_iter()
            .map(|group| {
                let mut state = self.clip.state(tower);
                self.forward(values, group, &mut state);
                blocks.iter().map(|&block| counted_routing(&state, block)).collect()
            })
            .collect();

        // Chunks come back in the order of the samples, however many threads there were.
        let empty = |&block| LayerRouting { block, ..LayerRouting::default() };
        let mut layers: Vec<LayerRouting> = blocks.iter().map(empty).collect();
        for group in groups {
            for (layer, own) in layers.iter_mut().zip(group) {
                layer.inputs.extend(own.inputs);
                layer.probabilities.extend(own.probabilities);
                layer.chosen.extend(own.chosen);
            }
        }
        Ok(layers)
    }

    fn join(&mut self, ranks: Arc<dyn Ranks>) -> Result<()> {
        // Moments that are cut for another number of ranks would be of no use.
        self.run = None;
        self.ranks = ranks;
        Ok(())
    }

    fn start_training(&mut self, training: &Training) -> Result<()> {
        let model = (&self.clip, &self.config);
        let ranks = Arc::clone(&self.ranks);
        self.run = Some(Run::new(model, &self.weights, ranks, training)?);
        Ok(())
    }

    fn set_objective(&mut self, objective: Objective) -> Result<()> {
        self.run.as_mut().ok_or_else(not_started)?.set_objective(objective);
        Ok(())
    }

    fn step(&mut self, pairs: Pairs<'_>) -> Result<Losses> {
        let run = self.run.as_mut().ok_or_else(not_started)?;
        run.step(&self.clip, &self.weights, pairs)
    }

    fn image_step(&mut self, pixels: Pixels<'_>, loss: ImageLoss<'_>) -> Result<f64> {
        let run = self.run.as_mut().ok_or_else(not_started)?;
        run.image_step(&self.clip, &self.weights, pixels, loss)
    }

    fn update(&mut self, learning_rate: f64) -> Result<f64> {
        let run = self.run.as_mut().ok_or_else(not_started)?;
        run.update(&mut self.weights, learning_rate)
    }

    fn gradient(&self) -> Result<Vec<f32>> {
        self.run()?.whole_gradient()
    }

    fn training_state(&self) -> Result<TrainingState> {
        self.run()?.state(&self.weights)
    }

    fn state_buffer(&self, buffer: StateBuffer) -> Result<Cow<'_, [f32]>> {
        let mut values = Vec::new();
        self.stream_state(buffer, &mut |piece| {
            values.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Cow::Owned(values))
    }

    fn stream_state(&self, buffer: StateBuffer, put: &mut Put<'_>) -> Result<()> {
        self.run()?.stream(&self.weights, buffer, put)
    }

    fn restore(&mut self, state: &dyn SavedState) -> Result<()> {
        let run = self.run.as_mut().ok_or_else(not_started)?;
        run.restore(&mut self.weights, state)
    }
}

/// The counted rows of one MoE layer in a group.
fn counted_routing(state: &TowerState, block: usize) -> LayerRouting {
    let BlockState { ffn_input, ffn, .. } = &state.blocks[block];
    let rows = state.counted.len().max(1);
    let width = ffn_input.len() / rows;
    let experts = ffn.routing.probabilities.len() / rows;
    let top_k = ffn.routing.chosen.len() / rows;

    let mut found = LayerRouting { block, ..LayerRouting::default() };
    for row in (0..state.counted.len()).filter(|&row| state.counted[row]) {
        let own = |extent: usize| row * extent..(row + 1) * extent;
        found.inputs.extend_from_slice(&ffn_input[own(width)]);
        found.probabilities.extend_from_slice(&ffn.routing.probabilities[own(experts)]);
        found.chosen.extend_from_slice(&ffn.routing.chosen[own(top_k)]);
    }
    found
}

fn not_started() -> Error {
    Error::failed("the engine does not train yet: call start_training first")
}

fn tower_of(input: TowerInput<'_>) -> Tower {
    match input {
        TowerInput::Pixels(_) => Tower::Vision,
        TowerInput::Ids(_) => Tower::Text,
    }
}
