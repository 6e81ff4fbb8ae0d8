//! Resumable checkpoints: everything a run is at a step, written whole or not at all.
//!
//! Batches are a pure function of seed and step, so the state is the engine's buffers, the
//! number of steps and the record. A checkpoint is one safetensors file with the record
//! beside it; the pair is moved into place by one rename of its folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::record::Record;
use crate::artifact::remove_tree;
use crate::engine::{Engine, StateBuffer, Training, TrainingState};
use crate::error::{Context, Error, Result};
use crate::io::tensors;
use crate::model::ClipConfig;
use crate::model::params::Layout;

/// The folder of the newest checkpoint.
const FOLDER: &str = "state";

/// The folder of the checkpoint before, while it is replaced.
const FORMER: &str = "state.old";

/// The lengths of a run's buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Of the weights, and of each moment.
    weights: usize,
    /// Of the teacher, if there is one.
    average: Option<usize>,
}

/// A run as it was interrupted.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) state: TrainingState,
    pub(super) record: Record,
}

impl Shape {
    /// The lengths for a model.
    pub(super) fn of(config: &ClipConfig, training: &Training) -> Self {
        // A teacher runs all experts, so it has them whole even where the student's are products.
        let merged = || Layout::new(&config.merged()).len();
        Self {
            weights: Layout::new(config).len(),
            average: training.teacher.is_some().then(merged),
        }
    }

    /// The tensors of a checkpoint: name, buffer of the engine and length.
    fn buffers(self) -> BTreeMap<&'static str, (StateBuffer, usize)> {
        let mut buffers = BTreeMap::from([
            ("values", (StateBuffer::Values, self.weights)),
            ("first", (StateBuffer::First, self.weights)),
            ("second", (StateBuffer::Second, self.weights)),
        ]);
        let average = self.average.map(|len| ("average", (StateBuffer::Average, len)));
        buffers.extend(average);
        buffers
    }
}

/// Writes the state of a run after some steps into `scratch`, replacing an earlier one.
pub(super) fn write(
    scratch: &Path,
    engine: &dyn Engine,
    shape: Shape,
    (steps, record): (usize, &Record),
) -> Result<()> {
    let place = || format!("saving a checkpoint in {}", scratch.display());
    let fresh = scratch.join("state.new");
    remove_tree(&fresh)?;
    fs::create_dir_all(&fresh).context(place)?;

    // One buffer at a time comes back from the engine, which may be on a card.
    let buffers = shape.buffers();
    let shapes = buffers.iter().map(|(name, (_, len))| ((*name).to_owned(), vec![*len]));
    let path = fresh.join("state.safetensors");
    tensors::write_each(&path, shapes.collect(), |name, put| {
        put(&engine.state_buffer(buffers[name].0)?)
    })?;

    let text = serde_json::to_vec(&(steps, record)).context(place)?;
    fs::write(fresh.join("record.json"), text).context(place)?;

    for file in ["state.safetensors", "record.json"] {
        let file = fs::File::open(fresh.join(file)).context(place)?;
        file.sync_all().context(place)?;
    }

    // One of the two folders is whole at any time.
    let (former, current) = (scratch.join(FORMER), scratch.join(FOLDER));
    remove_tree(&former)?;
    if current.exists() {
        fs::rename(&current, &former).context(place)?;
    }
    fs::rename(&fresh, &current).context(place)?;
    remove_tree(&former)
}

/// The state of an interrupted run; `None` if there is none. A damaged checkpoint counts as
/// none: the run then starts over and ends with the same bits.
pub(super) fn read(scratch: &Path, shape: Shape) -> Option<Resumed> {
    let folders = [FOLDER, FORMER].into_iter();
    folders.map(|folder| read_folder(&scratch.join(folder), shape)).find_map(Result::ok)
}

/// Reads one checkpoint, and checks that it is one of this run's model.
fn read_folder(folder: &Path, shape: Shape) -> Result<Resumed> {
    let place = || format!("reading a checkpoint in {}", folder.display());
    let mut all = tensors::read(&folder.join("state.safetensors"))?;
    let text = fs::read(folder.join("record.json")).context(place)?;
    let (steps, record): (usize, Record) =
        serde_json::from_slice(&text).context(place)?;

    let mut take = |name: &str, len: usize| match all.remove(name) {
        Some(tensor) if tensor.data.len() == len => Ok(tensor.data),
        found => {
            let found = found.map_or(0, |tensor| tensor.data.len());
            let text = format!("{name} has {found} values, expected {len}");
            Err(Error::corrupt(text)).context(place)
        }
    };

    let state = TrainingState {
        values: take("values", shape.weights)?,
        first: take("first", shape.weights)?,
        second: take("second", shape.weights)?,
        average: shape.average.map(|len| take("average", len)).transpose()?,
        steps,
    };
    Ok(Resumed { state, record })
}
