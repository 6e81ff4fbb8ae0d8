//! Recording of FFN inputs: what the dense model feeds to the FFNs that become experts.
//!
//! The rows are LN2's outputs over a calibration subset of the training data. Text rows
//! behind the end of text and the constant start token are left out (METHOD §2.1). Which
//! samples, captions and tokens are kept depends on the seed and on names alone, not on the
//! batch size or the threads; memory is the rows of one tower over a batch, and the kept rows
//! of two batches.
//!
//! Several ranks take batches in turn, and rank 0 writes what they found in the order of the
//! batches: the files are those of one rank, whose memory is the kept rows of two batches of
//! every rank.

use std::collections::BTreeMap;
use std::path::Path;

use crate::data::{Dataset, Split};
use crate::engine::{Engine, FfnInputs, TowerInput};
use crate::error::{Error, Result};
use crate::io::table::TableWriter;
use crate::model::Tower;
use crate::num::index_u32;
use crate::par;
use crate::ranks::Ranks;
use crate::rng::{self, RngExt, SliceRandom};
use crate::tables::{Activations, Layer, SampleRow, TokenRow};

/// What is recorded.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Samples of the training split.
    pub samples: usize,
    /// Tokens kept of each sample and tower; 0 keeps all.
    pub tokens_per_sample: usize,
    /// Samples of a forward pass.
    pub batch: usize,
    /// Blocks to record, by tower.
    pub layers: Vec<(Tower, usize)>,
    /// Seed of the choice of samples, captions and tokens.
    pub seed: u64,
}

/// Writes `<tower>-<layer>.parquet` for every layer into `out` and returns the number of rows of
/// each; on rank 0. `progress` is told how many samples are done.
pub fn record(
    (engine, ranks): (&mut dyn Engine, &dyn Ranks),
    data: &Dataset,
    recording: &Recording,
    out: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<usize>> {
    // Samples are drawn by shuffling all of them, so that a larger number contains a smaller one.
    let split = data.split("train")?;
    let mut order: Vec<usize> = (0..split.len()).collect();
    order.shuffle(&mut rng::stream(recording.seed, "activations/samples"));
    order.truncate(recording.samples);
    if order.is_empty() {
        return Err(Error::usage("activations.samples: the training split is empty"));
    }

    let mut sinks = Vec::new();
    for &(tower, layer) in &recording.layers {
        let layers = engine.config().tower(tower).layers;
        if layer >= layers {
            let tower = tower.name();
            return Err(Error::usage(format!(
                "moe: the {tower} tower has no block {layer}, only blocks below {layers}"
            )));
        }

        let file = Activations::file(tower.name(), layer);
        if ranks.leads() {
            sinks.push((TableWriter::create(&out.join(file))?, 0));
        }
    }

    // While a batch is computed, the one before is compressed and written.
    let mut recorder = Recorder { engine, data, split: &split, recording };
    let mut waiting = Vec::new();
    let mut done = 0;
    let batches: Vec<&[usize]> = order.chunks(recording.batch.max(1)).collect();
    for round in batches.chunks(ranks.count()) {
        // The last round may have no batch for some ranks.
        let own = round.get(ranks.rank()).copied().unwrap_or_default();
        let (written, found) =
            par::join(|| write(&mut sinks, waiting), || recorder.batch(own));
        written?;
        waiting = collect(ranks, recording, found?)?;
        done += round.iter().map(|batch| batch.len()).sum::<usize>();
        progress(done);
    }

    write(&mut sinks, waiting)?;
    sinks.into_iter().map(|(sink, count)| sink.finish().map(|()| count)).collect()
}

/// What a batch leaves: the kept rows of some layers, by their index in the recording.
type Found = Vec<(usize, Activations)>;

/// Appends rows to the layers' files.
fn write(sinks: &mut [(TableWriter, usize)], found: Found) -> Result<()> {
    let tables = par::try_map_each(found, |_, (index, rows)| {
        Ok::<_, Error>((index, rows.into_table()?))
    })?;
    for (index, table) in &tables {
        let (sink, count) = &mut sinks[*index];
        *count += table.rows();
        sink.push(table)?;
    }
    Ok(())
}

/// What all ranks found in a round, in the order of their numbers, on rank 0; nothing on the
/// others.
fn collect(ranks: &dyn Ranks, recording: &Recording, own: Found) -> Result<Found> {
    if ranks.count() == 1 {
        return Ok(own);
    }

    // Every rank learns how much the others have: rows of each layer, and their width.
    let layers = recording.layers.len();
    let mut sizes = vec![[0_u64; 2]; layers];
    for (index, rows) in &own {
        sizes[*index] = [rows.tokens.len() as u64, rows.width as u64];
    }
    let mut all = vec![[0_u64; 2]; layers * ranks.count()];
    ranks.gather(&sizes, &mut all)?;

    let mut own: BTreeMap<usize, Activations> = own.into_iter().collect();
    let mut found = Vec::new();
    for (from, sizes) in all.chunks_exact(layers).enumerate() {
        for (index, size) in sizes.iter().enumerate() {
            let [rows, width] = size.map(|n| usize::try_from(n).unwrap_or(0));
            if rows == 0 || ![0, from].contains(&ranks.rank()) {
                continue;
            }
            let kept = if from == ranks.rank() { own.remove(&index) } else { None };
            let layer = recording.layers[index];
            let kept = kept.unwrap_or_else(|| blank(layer, rows, width));
            found.push((index, fetch(ranks, from, kept)?));
        }
    }

    if !ranks.leads() {
        found.clear();
    }
    Ok(found)
}

/// Room for the rows of a layer.
fn blank((tower, block): (Tower, usize), rows: usize, width: usize) -> Activations {
    let layer = Layer::new(tower.name(), block);
    let token = TokenRow { layer, sample: 0, position: 0 };
    Activations { tokens: vec![token; rows], width, inputs: vec![0.0; rows * width] }
}

/// Sends the rows of a layer from rank `from` to rank 0, where `rows` are room for them.
fn fetch(ranks: &dyn Ranks, from: usize, mut rows: Activations) -> Result<Activations> {
    let tokens = rows.tokens.iter().map(|token| [token.sample, token.position]);
    let mut tokens: Vec<[u32; 2]> = tokens.collect();
    ranks.fetch(from, &mut tokens)?;
    for (token, [sample, position]) in rows.tokens.iter_mut().zip(tokens) {
        (token.sample, token.position) = (sample, position);
    }
    ranks.fetch(from, &mut rows.inputs)?;
    Ok(rows)
}

/// The model over samples of the training split.
struct Recorder<'a> {
    engine: &'a mut dyn Engine,
    data: &'a Dataset,
    split: &'a Split,
    recording: &'a Recording,
}

impl Recorder<'_> {
    /// The kept rows of every layer, one tower after the other.
    fn batch(&mut self, rows: &[usize]) -> Result<Found> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let samples: Vec<u32> =
            rows.iter().map(|&row| self.split.rows[row].sample).collect();

        // One tower's rows are in memory at a time, and one pass gives all of its layers.
        let mut found = Vec::new();
        for tower in Tower::BOTH {
            let own = self.recording.layers.iter().enumerate();
            let layers: Vec<(usize, usize)> = own
                .filter(|(_, (of, _))| *of == tower)
                .map(|(index, &(_, layer))| (index, layer))
                .collect();
            if layers.is_empty() {
                continue;
            }

            let blocks: Vec<usize> = layers.iter().map(|&(_, layer)| layer).collect();
            let inputs = self.inputs(tower, rows, &blocks)?;
            let kept = Kept::new(&inputs, tower, &samples, self.recording);
            let made = par::map(layers.len(), |i| kept.activations(&inputs, layers[i].1));
            found.extend(layers.iter().map(|&(index, _)| index).zip(made));
        }
        Ok(found)
    }

    /// The FFN inputs of a tower over some samples.
    fn inputs(
        &mut self,
        tower: Tower,
        rows: &[usize],
        blocks: &[usize],
    ) -> Result<FfnInputs> {
        match tower {
            Tower::Vision => {
                let pixels = self.split.pixels(rows)?;
                self.engine.ffn_inputs(TowerInput::Pixels(pixels.view()), blocks)
            }

            // A sample may have several captions; one of them is recorded.
            Tower::Text => {
                let texts: Vec<&str> =
                    rows.iter().map(|&row| self.caption(&self.split.rows[row])).collect();
                let context = self.engine.config().text.context;
                let ids = self.data.tokenizer.encode_all(&texts, context)?;
                self.engine.ffn_inputs(TowerInput::Ids(&ids), blocks)
            }
        }
    }

    /// One caption of a sample, by the seed and the sample's number.
    fn caption<'r>(&self, own: &'r SampleRow) -> &'r str {
        let name = format!("activations/caption/{}", own.sample);
        let pick =
            rng::stream(self.recording.seed, &name).random_range(0..own.captions.len());
        &own.captions[pick]
    }
}

/// Which rows of a tower are kept: the same ones in all its layers.
struct Kept {
    tower: Tower,
    /// Places among the rows of the batch.
    rows: Vec<usize>,
    samples: Vec<u32>,
    positions: Vec<u32>,
}

impl Kept {
    /// Chooses rows of a tower over a batch.
    fn new(
        inputs: &FfnInputs,
        tower: Tower,
        samples: &[u32],
        recording: &Recording,
    ) -> Self {
        let (rows, sample_numbers, positions) = Default::default();
        let mut kept = Self { tower, rows, samples: sample_numbers, positions };

        for (bounds, &sample) in inputs.starts.windows(2).zip(samples) {
            let mut own: Vec<usize> =
                (bounds[0]..bounds[1]).filter(|&row| inputs.counted[row]).collect();

            // Drawn by the name of the sample, and put back into the order of the tokens.
            let wanted = recording.tokens_per_sample;
            if wanted > 0 && wanted < own.len() {
                let name = format!("activations/tokens/{}/{sample}", tower.name());
                own.shuffle(&mut rng::stream(recording.seed, &name));
                own.truncate(wanted);
                own.sort_unstable();
            }

            kept.samples.extend(own.iter().map(|_| sample));
            kept.positions.extend(own.iter().map(|row| index_u32(row - bounds[0])));
            kept.rows.extend(own);
        }
        kept
    }

    /// The kept rows of one layer.
    fn activations(&self, inputs: &FfnInputs, block: usize) -> Activations {
        let input = &inputs.rows[&block];
        let width = input.len() / inputs.counted.len().max(1);
        let mut kept = Vec::with_capacity(self.rows.len() * width);
        for &row in &self.rows {
            kept.extend_from_slice(&input[row * width..(row + 1) * width]);
        }

        let layer = Layer::new(self.tower.name(), block);
        let tokens = self.samples.iter().zip(&self.positions);
        let tokens = tokens.map(|(&sample, &position)| TokenRow {
            layer: layer.clone(),
            sample,
            position,
        });
        Activations { tokens: tokens.collect(), width, inputs: kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Activation, Overrides, load_default};
    use crate::engine::{Backend, open_model};
    use crate::model::{ClipConfig, TextConfig, VisionConfig, init};
    use crate::ranks::Threads;

    /// The files are those of one rank, byte for byte; 5 batches leave ranks without work in
    /// the last round.
    #[test]
    fn the_number_of_ranks_changes_no_byte() {
        let folder = tempfile::tempdir().unwrap();
        let overrides = Overrides { profile: Some("smoke".to_owned()), set: vec![] };
        let dataset = load_default(&overrides).unwrap().dataset;
        let place = folder.path().join("dataset");
        std::fs::create_dir(&place).unwrap();
        crate::data::build(&dataset, folder.path(), 0, &place, &mut |_, _| {}).unwrap();
        let data = Dataset::open(&place).unwrap();
        let (context, vocabulary) = (data.meta.context, data.meta.vocabulary);
        let (width, layers, heads, hidden) = (16, 2, 2, 32);
        let config = ClipConfig {
            embed_dim: 16,
            activation: Activation::Gelu,
            vision: VisionConfig {
                image_size: 16,
                patch: 4,
                width,
                layers,
                heads,
                hidden,
            },
            text: TextConfig { context, vocabulary, width, layers, heads, hidden },
            moe: None,
        };
        let model = init::dense(&config, 1);

        let recording = Recording {
            samples: 70,
            tokens_per_sample: 5,
            batch: 16,
            layers: vec![(Tower::Vision, 1), (Tower::Text, 0), (Tower::Text, 1)],
            seed: 3,
        };
        let record_on = |ranks: &dyn Ranks, out: &Path| {
            let mut engine = open_model(model.clone(), Backend::Cpu).unwrap();
            let who: (&mut dyn Engine, &dyn Ranks) = (&mut *engine, ranks);
            record(who, &data, &recording, out, &mut |_| {}).unwrap()
        };
        let files = |out: &Path| {
            let names = ["vision-1", "text-0", "text-1"];
            names.map(|name| std::fs::read(out.join(format!("{name}.parquet"))).unwrap())
        };

        let results = [1, 2, 4].map(|count| {
            let out = tempfile::tempdir().unwrap();
            let counts = std::thread::scope(|scope| {
                let run = |ranks: Threads| {
                    let (out, work) = (out.path(), &record_on);
                    scope.spawn(move || work(&ranks, out))
                };
                let all: Vec<_> = Threads::new(count).into_iter().map(run).collect();
                let counts: Vec<_> =
                    all.into_iter().map(|own| own.join().unwrap()).collect();
                counts[0].clone()
            });
            (counts, files(out.path()))
        });
        assert!(results[0].0.iter().all(|&rows| rows > 0));
        assert!(results[1] == results[0] && results[2] == results[0]);
    }
}
