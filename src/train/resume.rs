//! Resumable checkpoints: everything a run is at a step, written whole or not at all.
//!
//! Batches are a pure function of seed and step, so the state is parameters, both moments,
//! the EMA, the number of steps and the record. A checkpoint is one safetensors file with
//! the record beside it; the pair is moved into place by one rename of its folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::record::Record;
use crate::engine::cpu::optim::AdamW;
use crate::error::{Context, Error, Result};
use crate::io::tensors;

/// A run at a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    /// Parameters.
    pub values: Vec<f32>,
    /// Optimiser.
    pub optimiser: AdamW,
    /// EMA of the parameters, where the run has a teacher.
    pub average: Option<Vec<f32>>,
    /// What was recorded.
    pub record: Record,
}

const FOLDER: &str = "state";

impl State {
    /// Writes the state into `scratch`, replacing an earlier one.
    pub(super) fn save(&self, scratch: &Path) -> Result<()> {
        let place = || format!("saving a checkpoint in {}", scratch.display());
        let fresh = scratch.join("state.new");
        remove(&fresh)?;
        fs::create_dir_all(&fresh).context(place)?;
        let AdamW { first, second, .. } = &self.optimiser;
        let mut all = BTreeMap::from([
            ("values", &self.values),
            ("first", first),
            ("second", second),
        ]);
        all.extend(self.average.as_ref().map(|average| ("average", average)));
        let shapes = all.iter().map(|(name, v)| ((*name).to_owned(), vec![v.len()]));
        let path = fresh.join("state.safetensors");
        tensors::write_each(&path, shapes.collect(), |name, put| put(all[name]))?;
        let record =
            serde_json::to_vec(&(self.optimiser.steps, &self.record)).context(place)?;
        fs::write(fresh.join("record.json"), record).context(place)?;
        for file in ["state.safetensors", "record.json"] {
            let file = fs::File::open(fresh.join(file)).context(place)?;
            file.sync_all().context(place)?;
        }
        let old = scratch.join("state.old");
        remove(&old)?;
        let current = scratch.join(FOLDER);
        if current.exists() {
            fs::rename(&current, &old).context(place)?;
        }
        fs::rename(&fresh, &current).context(place)?;
        remove(&old)
    }

    /// Restores the state of an interrupted run into `self`; `false` if there is none. A
    /// damaged checkpoint counts as none: the run then starts over and ends with the same
    /// bits.
    pub(super) fn restore(&mut self, scratch: &Path) -> bool {
        let found = [FOLDER, "state.old"]
            .iter()
            .find_map(|folder| self.read(&scratch.join(folder)).ok());
        match found {
            Some(state) => {
                *self = state;
                true
            }
            None => false,
        }
    }

    fn read(&self, folder: &Path) -> Result<Self> {
        let place = || format!("reading a checkpoint in {}", folder.display());
        let mut all = tensors::read(&folder.join("state.safetensors"))?;
        let text = fs::read(folder.join("record.json")).context(place)?;
        let (steps, record): (usize, Record) =
            serde_json::from_slice(&text).context(place)?;
        let mut take = |name: &str, len: usize| match all.remove(name) {
            Some(tensor) if tensor.data.len() == len => Ok(tensor.data),
            _ => Err(Error::corrupt(format!("no {name} of this model"))).context(place),
        };
        let mut optimiser = self.optimiser.clone();
        let len = self.values.len();
        let values = take("values", len)?;
        (optimiser.first, optimiser.second) = (take("first", len)?, take("second", len)?);
        optimiser.steps = steps;
        let average = match &self.average {
            Some(average) => Some(take("average", average.len())?),
            None => None,
        };
        Ok(Self { values, optimiser, average, record })
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
