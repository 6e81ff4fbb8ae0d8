//! Recording of FFN inputs: what the dense model feeds to the FFNs that become experts.
//!
//! The rows are LN2's outputs over a calibration subset of the training data. Text rows
//! behind the end of text and the constant start token are left out (METHOD §2.1). Which
//! samples, captions and tokens are kept depends on the seed and on names alone, not on the
//! batch size or the threads; memory is the kept rows of two batches.

use std::path::Path;

use rayon::prelude::*;

use crate::data::{Dataset, SampleRow, Split};
use crate::engine::cpu::clip::{Clip, TowerState};
use crate::engine::cpu::tower::Teacher;
use crate::error::{Error, Result};
use crate::io::table::{Column, Table, TableWriter};
use crate::model::{Checkpoint, Tower};
use crate::num::index_u32;
use crate::rng::{self, RngExt, SliceRandom};

/// What is recorded.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Samples of the training split.
    pub samples: usize,
    /// Tokens kept of each sample and tower; 0 keeps all.
    pub tokens_per_sample: usize,
    /// Samples a forward pass.
    pub batch: usize,
    /// Blocks to record, by tower.
    pub layers: Vec<(Tower, usize)>,
    /// Seed of the choice of samples, captions and tokens.
    pub seed: u64,
}

/// Writes `<tower>-<layer>.parquet` for every layer into `out`; the number of rows of each
/// layer comes back. `progress` is told how many samples are done.
pub fn record(
    model: &Checkpoint,
    data: &Dataset,
    plan: &Plan,
    out: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<usize>> {
    let split = data.split("train")?;
    let mut order: Vec<usize> = (0..split.len()).collect();
    order.shuffle(&mut rng::stream(plan.seed, "activations/samples"));
    order.truncate(plan.samples);
    if order.is_empty() {
        return Err(Error::usage("activations.samples: the training split is empty"));
    }
    let clip = Clip::new(&model.config);
    let recorder = Recorder { clip, model, data, split: &split, plan };
    let mut sinks = Vec::new();
    for &(tower, layer) in &plan.layers {
        if layer >= model.config.tower(tower).layers {
            let tower = tower.name();
            return Err(Error::usage(format!("the {tower} tower has no block {layer}")));
        }
        let file = format!("{}-{layer}.parquet", tower.name());
        sinks.push((TableWriter::create(&out.join(file))?, 0));
    }
    // While a batch is computed, the one before is compressed and written.
    let mut waiting = Vec::new();
    let mut done = 0;
    for rows in order.chunks(plan.batch.max(1)) {
        let (written, found) =
            rayon::join(|| write(&mut sinks, &waiting), || recorder.batch(rows));
        written?;
        waiting = found?;
        done += rows.len();
        progress(done);
    }
    write(&mut sinks, &waiting)?;
    sinks.into_iter().map(|(sink, count)| sink.finish().map(|()| count)).collect()
}

/// Appends tables to the layers' files: (index of the layer, rows).
fn write(sinks: &mut [(TableWriter, usize)], tables: &[(usize, Table)]) -> Result<()> {
    for (index, table) in tables {
        let (sink, count) = &mut sinks[*index];
        *count += table.rows();
        sink.push(table)?;
    }
    Ok(())
}

/// The model over samples of the training split.
struct Recorder<'a> {
    clip: Clip,
    model: &'a Checkpoint,
    data: &'a Dataset,
    split: &'a Split,
    plan: &'a Plan,
}

impl Recorder<'_> {
    /// The kept rows of every layer, piece by piece, pieces of both towers side by side.
    fn batch(&self, rows: &[usize]) -> Result<Vec<(usize, Table)>> {
        let pieces: Vec<(Tower, &[usize])> = Tower::BOTH
            .iter()
            .flat_map(|&tower| {
                rows.chunks(self.clip.piece(tower)).map(move |own| (tower, own))
            })
            .collect();
        let tables: Result<Vec<_>> =
            pieces.par_iter().map(|&(tower, rows)| self.piece(tower, rows)).collect();
        Ok(tables?.into_iter().flatten().collect())
    }

    fn piece(&self, tower: Tower, rows: &[usize]) -> Result<Vec<(usize, Table)>> {
        let layers: Vec<(usize, usize)> = self
            .plan
            .layers
            .iter()
            .enumerate()
            .filter(|(_, (own, _))| *own == tower)
            .map(|(index, &(_, layer))| (index, layer))
            .collect();
        let blocks: Vec<usize> = layers.iter().map(|&(_, layer)| layer).collect();
        let mut state = TowerState::light(&blocks);
        let (split, params) = (self.split, &self.model.values);
        match tower {
            Tower::Vision => {
                let mut pixels = vec![0.0; rows.len() * 3 * split.side().pow(2)];
                split.pixels(rows, &mut pixels)?;
                self.clip.images(params, &pixels, Teacher::None, &mut state);
            }
            Tower::Text => {
                let texts: Vec<&str> =
                    rows.iter().map(|&row| self.caption(&split.rows[row])).collect();
                let context = self.model.config.text.context;
                let ids = self.data.tokenizer.encode_all(&texts, context)?;
                self.clip.texts(params, &ids, Teacher::None, &mut state);
            }
        }
        let samples: Vec<u32> = rows.iter().map(|&row| split.rows[row].sample).collect();
        let table = |layer| rows_of(&state, (tower, layer), &samples, self.plan);
        Ok(layers.into_iter().map(|(index, layer)| (index, table(layer))).collect())
    }

    /// One caption of a sample, by the seed and the sample's number.
    fn caption<'a>(&self, own: &'a SampleRow) -> &'a str {
        let name = format!("activations/caption/{}", own.sample);
        let pick = rng::stream(self.plan.seed, &name).random_range(0..own.captions.len());
        &own.captions[pick]
    }
}

/// The kept rows of one layer over a piece.
fn rows_of(
    state: &TowerState,
    (tower, layer): (Tower, usize),
    samples: &[u32],
    plan: &Plan,
) -> Table {
    let input = &state.kept[&layer];
    let width = input.len() / state.counted.len().max(1);
    let (mut ids, mut positions, mut data) = (Vec::new(), Vec::new(), Vec::new());
    for (pair, &sample) in state.starts.windows(2).zip(samples) {
        let mut kept: Vec<usize> =
            (pair[0]..pair[1]).filter(|&row| state.counted[row]).collect();
        if plan.tokens_per_sample > 0 && plan.tokens_per_sample < kept.len() {
            // One draw for all layers of a tower: they see the same tokens.
            let name = format!("activations/tokens/{}/{sample}", tower.name());
            kept.shuffle(&mut rng::stream(plan.seed, &name));
            kept.truncate(plan.tokens_per_sample);
            kept.sort_unstable();
        }
        for row in kept {
            ids.push(sample);
            positions.push(index_u32(row - pair[0]));
            data.extend_from_slice(&input[row * width..(row + 1) * width]);
        }
    }
    let n = ids.len();
    Table::new()
        .with("tower", Column::Text(vec![tower.name().to_owned(); n]))
        .with("layer", Column::U32(vec![index_u32(layer); n]))
        .with("sample", Column::U32(ids))
        .with("position", Column::U32(positions))
        .with("x", Column::Vectors { width, data })
}
