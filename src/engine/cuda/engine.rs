//! The engine on a card: what holds a model there, and the seam to the rest of the program.

use std::borrow::Cow;
use std::sync::Arc;

use super::clip::{Clip, HeadState};
use super::device::{Buffer, Device, Kind, Uploads};
use super::group::{Group, check_share};
use super::layout::Places;
use super::ops;
use super::optimizer;
use super::pass::{Pass, Scratch};
use super::shape;
use super::step::Step;
use super::store::Store;
use super::tower::Watch;
use super::trainer::Trainer;
use super::uploaded::{Uploaded, sizes};
use crate::config::Precision;
use crate::engine::{
    Engine, FfnInputs, ImageLoss, LayerRouting, Losses, Objective, Pairs, SavedState,
    StateBuffer, TowerInput, Training, TrainingState,
};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::io::tensors::Put;
use crate::model::{ClipConfig, Tower};
use crate::ranks::Ranks;

/// Samples that are encoded at once where no backward follows. Products of other extents may
/// have other bits, so ranks share an input at multiples of it.
const ENCODED: usize = 256;

/// A model on one card.
#[derive(Debug)]
pub struct Cuda {
    device: Device,
    /// As it was opened: experts of low rank are merged for the towers only.
    config: ClipConfig,
    clip: Clip,
    precision: Precision,
    store: Store,
    scratch: Scratch,
    uploads: Uploads,
    /// Both towers' states where no backward follows.
    light: [HeadState; 2],
    trainer: Option<Trainer>,
    group: Group,
}

impl Cuda {
    /// Opens card `ordinal` for a model of this shape; its weights are zero until
    /// [`Engine::load`].
    pub fn open(
        config: &ClipConfig,
        ordinal: usize,
        precision: Precision,
    ) -> Result<Self> {
        if let Some(reason) = shape::refusal(config) {
            return Err(Error::usage(format!("{reason}: choose device: cpu")));
        }

        let device = Device::open(ordinal, precision)?;
        let store = Store::new(&device, config)?;
        // The towers know nothing of low rank: the store merges experts for them.
        let clip = Clip::new(&config.merged(), &store.places);
        let state = |tower| clip.state(&device, tower, true);
        let light = [state(Tower::Vision)?, state(Tower::Text)?];

        Ok(Self {
            store,
            scratch: Scratch::new(&device)?,
            uploads: Uploads::new(&device)?,
            light,
            trainer: None,
            group: Group::alone(),
            config: config.clone(),
            clip,
            precision,
            device,
        })
    }

    /// The card.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Raw embeddings [n, P] of some samples.
    fn encode(&mut self, rows: &(Tower, Uploaded), watch: Watch<'_>) -> Result<Buffer> {
        self.store.need_weights()?;
        let (tower, rows) = (rows.0, &rows.1);
        let values = rows.batch.samples() * self.config.embed_dim;
        let raw = self.device.buffer(Kind::F32, values)?;
        let pass = Pass::plain(&self.device, &self.store.weights);
        let buffers = (&mut self.light[tower_index(tower)], &mut self.scratch);
        self.clip.forward(pass, (tower, rows), buffers, (raw.all(), watch))?;
        Ok(raw)
    }

    /// Unit embeddings [n, P] of all samples of an input.
    fn unit(&mut self, input: TowerInput<'_>) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for piece in self.pieces(input) {
            let rows = self.rows(piece)?;
            let raw = self.encode(&rows, Watch::Nothing)?;
            let shape = (rows.1.batch.samples(), self.config.embed_dim);

            // A lane writes only what it alone has read: unit rows replace raw ones.
            let inverse = self.device.buffer(Kind::F32, shape.0)?;
            ops::normalize(&self.device, (raw.all(), inverse.all(), raw.all()), shape)?;

            // All readers of the upload have been launched: its place can be used again.
            rows.1.release(&self.device, &mut self.uploads)?;
            out.extend(self.device.download::<f32>(&raw)?);
        }
        Ok(out)
    }

    fn rows(&mut self, input: TowerInput<'_>) -> Result<(Tower, Uploaded)> {
        let (device, config) = (&self.device, &self.config);
        match input {
            TowerInput::Pixels(pixels) => {
                let uploads = &mut self.uploads;
                let rows = Uploaded::pictures(device, config, pixels, None, uploads)?;
                Ok((Tower::Vision, rows))
            }
            TowerInput::Ids(ids) => {
                Ok((Tower::Text, Uploaded::captions(device, config, ids, None)?))
            }
        }
    }

    /// Cuts an input into pieces that run at once.
    fn pieces<'a>(&self, input: TowerInput<'a>) -> Vec<TowerInput<'a>> {
        let (picture, caption) = sizes(&self.config);
        match input {
            TowerInput::Pixels(pixels) => {
                pixels.parts(ENCODED * picture).map(TowerInput::Pixels).collect()
            }
            TowerInput::Ids(ids) => {
                ids.chunks(ENCODED * caption).map(TowerInput::Ids).collect()
            }
        }
    }

    /// A step of the training in progress.
    fn begin(&mut self) -> Result<Step<'_>> {
        let trainer = self.trainer.as_mut().ok_or_else(untrained)?;
        Ok(Step {
            device: &self.device,
            group: &self.group,
            config: &self.config,
            clip: &self.clip,
            store: &self.store,
            scratch: &mut self.scratch,
            uploads: &mut self.uploads,
            light: &mut self.light,
            trainer,
        })
    }

    fn trainer(&self) -> Result<&Trainer> {
        self.trainer.as_ref().ok_or_else(untrained)
    }

    fn host(&self, places: &Places, buffer: &Buffer) -> Result<Vec<f32>> {
        Ok(places.gather(&self.device.download(buffer)?))
    }
}

/// The place of a tower among two buffers.
fn tower_index(tower: Tower) -> usize {
    match tower {
        Tower::Vision => 0,
        Tower::Text => 1,
    }
}

fn untrained() -> Error {
    Error::failed("the engine does not train yet: call start_training first")
}

fn no_gradient() -> Error {
    Error::failed("there is no gradient: call step first")
}

impl Engine for Cuda {
    fn backend(&self) -> &'static str {
        super::backend(self.precision)
    }

    fn config(&self) -> &ClipConfig {
        &self.config
    }

    fn load(&mut self, values: &[f32]) -> Result<()> {
        // A training's moments and teacher belong to the weights that are replaced now.
        self.trainer = None;
        self.store.load(&self.device, values)
    }

    fn values(&self) -> Result<Vec<f32>> {
        self.store.need_weights()?;
        self.host(self.store.trained_places(), self.store.trained())
    }

    fn encoded(&self) -> usize {
        ENCODED
    }

    fn encode_images(&mut self, pixels: Pixels<'_>) -> Result<Vec<f32>> {
        self.unit(TowerInput::Pixels(pixels))
    }

    fn encode_texts(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.unit(TowerInput::Ids(ids))
    }

    fn ffn_inputs(
        &mut self,
        input: TowerInput<'_>,
        blocks: &[usize],
    ) -> Result<FfnInputs> {
        let mut all = FfnInputs { starts: vec![0], ..FfnInputs::default() };
        all.rows = blocks.iter().map(|&block| (block, Vec::new())).collect();
        for piece in self.pieces(input) {
            let rows = self.rows(piece)?;
            self.encode(&rows, Watch::Inputs(&mut all.rows))?;

            let before = all.counted.len();
            let batch = &rows.1.batch;
            all.starts.extend(batch.host_starts()[1..].iter().map(|row| before + row));
            all.counted.extend_from_slice(batch.host_counted());
            rows.1.release(&self.device, &mut self.uploads)?;
        }
        Ok(all)
    }

    fn routing(&mut self, input: TowerInput<'_>) -> Result<Vec<LayerRouting>> {
        let mut all: Vec<LayerRouting> = Vec::new();
        for piece in self.pieces(input) {
            let rows = self.rows(piece)?;
            let mut layers = Vec::new();
            self.encode(&rows, Watch::Routing(&mut layers))?;
            rows.1.release(&self.device, &mut self.uploads)?;

            if all.is_empty() {
                all = layers;
                continue;
            }
            for (all, own) in all.iter_mut().zip(layers) {
                all.inputs.extend(own.inputs);
                all.probabilities.extend(own.probabilities);
                all.chosen.extend(own.chosen);
            }
        }
        Ok(all)
    }

    fn join(&mut self, ranks: Arc<dyn Ranks>) -> Result<()> {
        // Buffers of a training are as long as its ranks need them.
        self.trainer = None;
        self.group = Group::join(&self.device, &*ranks)?;
        Ok(())
    }

    fn start_training(&mut self, training: &Training) -> Result<()> {
        self.store.need_weights()?;
        check_share(&training.optim, self.group.count())?;
        // The old training's memory goes before the new one's comes.
        self.trainer = None;
        let of = (&self.store, &self.clip);
        let who = (&self.device, &self.group);
        let trainer = Trainer::new(who, of, (&self.config, training))?;
        self.trainer = Some(trainer);
        Ok(())
    }

    fn set_objective(&mut self, objective: Objective) -> Result<()> {
        let trainer = self.trainer.as_mut().ok_or_else(untrained)?;
        trainer.plan.objective = objective;
        trainer.ready = false;
        Ok(())
    }

    fn step(&mut self, pairs: Pairs<'_>) -> Result<Losses> {
        self.begin()?.run(pairs)
    }

    fn image_step(&mut self, pixels: Pixels<'_>, loss: ImageLoss<'_>) -> Result<f64> {
        self.begin()?.images(pixels, loss)
    }

    fn update(&mut self, learning_rate: f64) -> Result<f64> {
        let trainer = self.trainer.as_mut().ok_or_else(untrained)?;
        if !trainer.ready {
            return Err(no_gradient());
        }
        optimizer::update(&self.device, &self.store, trainer, learning_rate)
    }

    fn gradient(&self) -> Result<Vec<f32>> {
        let trainer = self.trainer()?;
        if !trainer.ready {
            return Err(no_gradient());
        }
        self.host(self.store.trained_places(), trainer.trained_gradient())
    }

    fn training_state(&self) -> Result<TrainingState> {
        let steps = self.trainer()?.steps;
        let buffer = |which| self.state_buffer(which).map(Cow::into_owned);
        let average = buffer(StateBuffer::Average)?;

        Ok(TrainingState {
            values: buffer(StateBuffer::Values)?,
            first: buffer(StateBuffer::First)?,
            second: buffer(StateBuffer::Second)?,
            average: (!average.is_empty()).then_some(average),
            steps,
        })
    }

    fn state_buffer(&self, buffer: StateBuffer) -> Result<Cow<'_, [f32]>> {
        let trainer = self.trainer()?;
        let own = match buffer {
            StateBuffer::Values => self.store.trained(),
            StateBuffer::First => &trainer.first,
            StateBuffer::Second => &trainer.second,
            StateBuffer::Average => {
                let Some(average) = &trainer.average else {
                    return Ok(Cow::Owned(Vec::new()));
                };

                // The teacher has the form that towers read, not the one that trains.
                let whole = self.host(&self.store.places, &average.weights.values);
                return whole.map(Cow::Owned);
            }
        };
        self.host(self.store.trained_places(), own).map(Cow::Owned)
    }

    /// All of the state is on every rank.
    fn stream_state(&self, buffer: StateBuffer, put: &mut Put<'_>) -> Result<()> {
        if self.group.rank() > 0 {
            return Ok(());
        }
        put(&self.state_buffer(buffer)?)
    }

    fn restore(&mut self, state: &dyn SavedState) -> Result<()> {
        let trainer = self.trainer.as_mut().ok_or_else(untrained)?;
        // A checkpoint of another model is refused before anything is overwritten.
        let state = TrainingState::read_whole(state)?;
        trainer.accept(&self.store, &state)?;
        self.store.load(&self.device, &state.values)?;
        trainer.restore(&self.device, &self.store, &state)
    }
}
