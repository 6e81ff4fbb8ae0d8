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
use crate::engine::{Engine, SavedState, StateBuffer, Training};
use crate::error::{Context, Error, Result};
use crate::io::tensors::{self, TensorFile};
use crate::model::ClipConfig;
use crate::model::params::Layout;

/// The folder of the newest checkpoint.
const FOLDER: &str = "state";

/// Everything that a checkpoint may keep.
const BUFFERS: [StateBuffer; 4] =
    [StateBuffer::Values, StateBuffer::First, StateBuffer::Second, StateBuffer::Average];

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

/// A run as it was interrupted: its buffers are read from the file when they are asked for.
#[derive(Debug)]
pub(super) struct Resumed {
    file: TensorFile,
    shape: Shape,
    pub(super) steps: usize,
    pub(super) record: Record,
}

impl SavedState for Resumed {
    fn steps(&self) -> usize {
        self.steps
    }

    fn len(&self, buffer: StateBuffer) -> Option<usize> {
        self.shape.len(buffer)
    }

    fn read(&self, buffer: StateBuffer, start: usize, out: &mut [f32]) -> Result<()> {
        self.file.read_part(name(buffer), start, out)
    }
}

/// The tensor of a checkpoint that keeps a buffer.
fn name(buffer: StateBuffer) -> &'static str {
    match buffer {
        StateBuffer::Values => "values",
        StateBuffer::First => "first",
        StateBuffer::Second => "second",
        StateBuffer::Average => "average",
    }
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

    /// The buffers of a checkpoint and their lengths, by the names of their tensors.
    fn buffers(self) -> BTreeMap<&'static str, (StateBuffer, usize)> {
        let kept = |buffer| Some((name(buffer), (buffer, self.len(buffer)?)));
        BUFFERS.into_iter().filter_map(kept).collect()
    }

    /// Values of a buffer in a checkpoint; `None` if there is no such buffer.
    fn len(self, buffer: StateBuffer) -> Option<usize> {
        match buffer {
            StateBuffer::Values | StateBuffer::First | StateBuffer::Second => {
                Some(self.weights)
            }
            StateBuffer::Average => self.average,
        }
    }
}

/// Writes the state of a run after some steps into `scratch`, replacing an earlier one. Other
/// ranks call [`serve`] at the same time.
pub(super) fn write(
    scratch: &Path,
    (engine, shape): (&dyn Engine, Shape),
    (steps, record): (usize, &Record),
) -> Result<()> {
    let place = || format!("saving a checkpoint in {}", scratch.display());
    let fresh = scratch.join("state.new");
    remove_tree(&fresh)?;
    fs::create_dir_all(&fresh).context(place)?;

    // One buffer at a time comes back from the engine, which may be on a card or on
    // several ranks.
    let buffers = shape.buffers();
    let kept = buffers.iter().map(|(name, (_, len))| ((*name).to_owned(), vec![*len]));
    let path = fresh.join("state.safetensors");
    tensors::write_each(&path, kept.collect(), |name, put| {
        engine.stream_state(buffers[name].0, put)
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

/// What other ranks do while rank 0 writes: they send what it does not have.
pub(super) fn serve((engine, shape): (&dyn Engine, Shape)) -> Result<()> {
    for (buffer, _) in shape.buffers().into_values() {
        engine.stream_state(buffer, &mut |_| Ok(()))?;
    }
    Ok(())
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
    let file = TensorFile::open(&folder.join("state.safetensors"))?;
    let text = fs::read(folder.join("record.json")).context(place)?;
    let (steps, record): (usize, Record) =
        serde_json::from_slice(&text).context(place)?;

    let found: BTreeMap<&str, usize> =
        file.shapes().map(|(name, shape)| (name, shape.iter().product())).collect();
    for buffer in BUFFERS {
        let (name, expected) = (name(buffer), shape.len(buffer));
        let found = found.get(name).copied();
        if found != expected {
            let (found, expected) = (found.unwrap_or(0), expected.unwrap_or(0));
            let text = format!("{name} has {found} values, expected {expected}");
            return Err(Error::corrupt(text)).context(place);
        }
    }
    Ok(Resumed { file, shape, steps, record })
}
