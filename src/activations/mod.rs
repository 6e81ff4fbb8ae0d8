//! Recording of FFN inputs: what the dense model feeds to the FFNs that become experts.
//!
//! The rows are LN2's outputs over a calibration subset of the training data. Text rows
//! behind the end of text and the constant start token are left out (METHOD §2.1). Which
//! samples, captions and tokens are kept depends on the seed and on names alone, not on the
//! batch size or the threads; memory is one batch.

use std::path::Path;

use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::io::table::{Column, Table, TableWriter};
use crate::model::clip::{Clip, Engine, GROUP, GroupState, Pairs};
use crate::model::tower::Teacher;
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
    let mut engine = Engine::new(Clip::new(&model.config));
    let mut sinks = Vec::new();
    for &(tower, layer) in &plan.layers {
        if layer >= model.config.tower(tower).layers {
            let tower = tower.name();
            return Err(Error::usage(format!("the {tower} tower has no block {layer}")));
        }
        let file = format!("{}-{layer}.parquet", tower.name());
        sinks.push((TableWriter::create(&out.join(file))?, 0));
    }
    let picture = 3 * split.side().pow(2);
    let mut done = 0;
    for rows in order.chunks(plan.batch.max(1)) {
        let mut pixels = vec![0.0; rows.len() * picture];
        split.pixels(rows, &mut pixels);
        let texts: Vec<&str> = rows
            .iter()
            .map(|&row| {
                let own = &split.rows[row];
                let name = format!("activations/caption/{}", own.sample);
                let pick = rng::stream(plan.seed, &name).random_range(0..own.captions.len());
                own.captions[pick].as_str()
            })
            .collect();
        let ids = data.tokenizer.encode_all(&texts, model.config.text.context)?;
        let pairs = Pairs { pixels: &pixels, ids: &ids };
        engine.forward(&model.values, pairs, Teacher::None);
        let samples: Vec<u32> = rows.iter().map(|&row| split.rows[row].sample).collect();
        for ((tower, layer), (sink, count)) in plan.layers.iter().zip(&mut sinks) {
            for (group, own) in engine.groups().iter().zip(samples.chunks(GROUP)) {
                let table = rows_of(group, (*tower, *layer), own, plan);
                *count += table.rows();
                sink.push(&table)?;
            }
        }
        done += rows.len();
        progress(done);
    }
    sinks.into_iter().map(|(sink, count)| sink.finish().map(|()| count)).collect()
}

/// The kept rows of one layer over a group of samples.
fn rows_of(
    group: &GroupState,
    (tower, layer): (Tower, usize),
    samples: &[u32],
    plan: &Plan,
) -> Table {
    let state = group.tower(tower);
    let input = &state.blocks[layer].ffn_input;
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
