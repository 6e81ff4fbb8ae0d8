//! Stage `subspaces`: the data-aware subspaces of one variant.
//!
//! Writes `bases.safetensors`, `subspaces.parquet` and `spectra.parquet`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::files;
use crate::config::{Labels, SubspacesConfig};
use crate::engine::cpu::ops::activation;
use crate::error::{Context, Error, Result};
use crate::io::table::TableReader;
use crate::io::tensors::{self, Tensor, Tensors};
use crate::lowrank::{ExpertSubspaces, FfnFunction, LayerMoments};
use crate::model::{Checkpoint, Tower};
use crate::num::index_u32;
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::rng::{self, SliceRandom};
use crate::tables::{
    self, Activations, AssignmentRow, Layer, Row as _, SpectrumRow, SubspaceRow,
};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "subspaces",
    version: 1,
    width: Width::Shared,
    reach: Reach::Process,
    about: "Finds the data-aware subspaces of every expert's matrices.",
    run,
};

/// Stage `subspaces`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubspacesParams {
    /// One entry of section `subspaces`.
    pub subspaces: SubspacesConfig,
    /// Seed of this base.
    pub seed: u64,
}

/// The tower and the block of a layer.
#[derive(Debug, Clone, Copy)]
struct LayerAt {
    tower: Tower,
    block: usize,
}

/// Labels of each layer's rows, in the order of its activations.
type LayerLabels = BTreeMap<(String, u32), Vec<u32>>;

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let params: SubspacesParams = job.params()?;
    let model = Checkpoint::read(files::folder(job, "pretrain")?, "model.safetensors")?;
    let centroids = tensors::read(&job.input("cluster", "centroids.safetensors")?)?;
    let mut labels = labels(job)?;
    job.progress.start(labels.len(), "layers");

    let mut subspace_bases = Tensors::new();
    let mut out = Outputs::default();
    for tower in Tower::BOTH {
        for block in 0..model.config.tower(tower).layers {
            let key = (tower.name().to_owned(), index_u32(block));
            let Some(own) = labels.get_mut(&key) else { continue };

            let name = files::layer_name(tower, block);

            // The control: groups of the same sizes whose tokens have nothing in common.
            if params.subspaces.labels == Labels::Shuffled {
                let stream = format!("subspaces/shuffle/{name}");
                own.shuffle(&mut rng::stream(params.seed, &stream));
            }

            // The number of experts is that of the centroids: a cluster may be empty of tokens.
            let experts = centroids.get(&name).and_then(|t| t.shape.first().copied());
            let experts = experts.ok_or_else(|| {
                Error::corrupt(format!(
                    "centroids.safetensors has no tensor {name}, expected one per MoE layer"
                ))
            })?;

            let at = LayerAt { tower, block };
            let moments = moments(job, &model, at, own, experts)?;
            let (config, seed) = (&params.subspaces, params.seed);
            let found = moments.subspaces(config, seed, &name)?;

            for (expert, found) in found.iter().enumerate() {
                keep(&mut subspace_bases, &format!("{name}.{expert}"), found)?;
                out.add(&Layer::new(tower.name(), block), expert, found);
            }
            job.progress.advance(1);
        }
    }

    tensors::write(&job.output("bases.safetensors"), &subspace_bases)?;
    out.write(job)
}

/// The moments of one layer, streamed from its activations.
fn moments(
    job: &Job<'_>,
    model: &Checkpoint,
    at: LayerAt,
    labels: &[u32],
    experts: usize,
) -> Result<LayerMoments> {
    // The second matrix sees activations of the first, so the FFN itself has to be run.
    let kind = model.config.activation;
    let apply = |values: &mut [f32]| activation::apply(kind, values);
    let weights = model.dense_ffn(at.tower, at.block)?;
    let ffn = FfnFunction { weights, activation: &apply };
    let mut builder = LayerMoments::builder(ffn, experts)?;

    let file = Activations::file(at.tower.name(), at.block);
    let file = job.input("activations", &file)?;
    let mut reader = TableReader::open(&file)?;

    // Labels and rows have the same order, so each part of the file has its part of the labels.
    let mut from = 0;
    while let Some(part) = reader.next()? {
        let part = Activations::from_table(part)
            .context(|| format!("reading {}", file.display()))?;
        let to = from + part.tokens.len();
        let own = labels.get(from..to).ok_or_else(|| {
            let (file, found) = (file.display(), labels.len());
            Error::corrupt(format!(
                "{file} has more rows than the {found} assignments of its layer, expected \
                 one assignment per row; make the stage cluster again"
            ))
        })?;
        builder.push(&part.inputs, own)?;
        from = to;
    }

    builder.finish()
}

/// The assignments by layer.
fn labels(job: &Job<'_>) -> Result<LayerLabels> {
    let path = job.input("cluster", AssignmentRow::FILE)?;
    let mut reader = TableReader::open(&path)?;
    let mut labels = LayerLabels::new();
    while let Some(part) = reader.next()? {
        let rows = tables::from_table::<AssignmentRow>(part)
            .context(|| format!("reading {}", path.display()))?;
        for AssignmentRow { token, cluster, .. } in rows {
            labels
                .entry((token.layer.tower, token.layer.block))
                .or_default()
                .push(cluster);
        }
    }
    Ok(labels)
}

/// Adds the bases of one expert. A matrix of full rank has none: it stays as it is.
fn keep(subspace_bases: &mut Tensors, name: &str, found: &ExpertSubspaces) -> Result<()> {
    for (matrix, subspace) in [("fc1", &found.fc1), ("fc2", &found.fc2)] {
        if let Some(basis) = &subspace.basis {
            let shape = vec![basis.rows(), basis.cols()];
            let tensor = Tensor::new(shape, basis.data().to_vec())?;
            subspace_bases.insert(format!("{name}.{matrix}"), tensor);
        }

        // There is a mean where moments are taken about it.
        if let Some(mean) = &subspace.mean {
            let tensor = Tensor::new(vec![mean.len()], mean.clone())?;
            subspace_bases.insert(format!("{name}.{matrix}.mean"), tensor);
        }
    }
    Ok(())
}

/// The rows of both tables.
#[derive(Debug, Default)]
struct Outputs {
    subspaces: Vec<SubspaceRow>,
    spectra: Vec<SpectrumRow>,
}

impl Outputs {
    /// Adds the rows of one expert.
    fn add(&mut self, layer: &Layer, expert: usize, found: &ExpertSubspaces) {
        let expert = index_u32(expert);
        for (matrix, s) in [("fc1", &found.fc1), ("fc2", &found.fc2)] {
            self.subspaces.push(SubspaceRow {
                layer: layer.clone(),
                expert,
                matrix: matrix.to_owned(),
                figures: s.figures(),
                cross: s.cross,
            });

            let spectrum = s.spectrum.iter().enumerate();
            self.spectra.extend(spectrum.map(|(index, &energy)| SpectrumRow {
                layer: layer.clone(),
                expert,
                matrix: matrix.to_owned(),
                index: index_u32(index),
                energy,
            }));
        }
    }

    /// Writes the tables.
    fn write(self, job: &Job<'_>) -> Result<()> {
        tables::write(&job.output(SubspaceRow::FILE), self.subspaces)?;
        tables::write(&job.output(SpectrumRow::FILE), self.spectra)
    }
}
