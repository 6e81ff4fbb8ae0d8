//! Stage `upcycle`: one initialisation of a mixture from a dense model.
//!
//! Writes `model.safetensors` and `config.json`.

use super::params::UpcycleParams;
use super::{Job, Stage, Width, files};
use crate::config::MoeConfig;
use crate::error::{Context as _, Error, Result};
use crate::io::tensors::{self, Tensor, Tensors};
use crate::linalg::Matrix;
use crate::model::layers::MoeLayer;
use crate::model::{Checkpoint, Moe, Tower};
use crate::upcycle::{
    self, DenseFfn, Evidence, ExpertBases, Experts, MatrixBasis, Method, Settings,
    Streams,
};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "upcycle",
    version: 1,
    width: Width::Shared,
    about: "Turns the dense model into a mixture of experts, one way or another.",
    run,
};

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let UpcycleParams { init, moe, seed } = job.params()?;
    let dense = Checkpoint::read(files::folder(job, "pretrain")?, "model.safetensors")?;
    let method = upcycle::find(&init.method)?;
    // The plan has resolved the variant into an input; the method's check wants it named.
    let named = method.needs().subspaces.map(|_| job.node.place.to_string());
    let init = crate::config::InitConfig { subspaces: named, ..init };
    let settings = Settings::new(method, &init, moe.experts)?;
    let needs = method.needs();
    let model = if method.is_dense() {
        dense
    } else {
        let bases = needs.subspaces.is_some();
        let recipe = Recipe {
            method,
            settings,
            centroids: optional(job, needs.centroids, "cluster", "centroids")?,
            bases: optional(job, bases, "subspaces", "bases")?,
            seed,
        };
        mixture(&dense, &moe, &recipe)?
    };
    let (total, active) = model.counts();
    job.draft.metric("parameters_total", total as f64);
    job.draft.metric("parameters_active", active as f64);
    job.progress.message(format!("{total} parameters, {active} active"));
    files::write_model(job, &model, "model.safetensors")
}

/// A method and all that it reads.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) method: &'static dyn Method,
    pub(super) settings: Settings,
    pub(super) centroids: Option<Tensors>,
    pub(super) bases: Option<Tensors>,
    pub(super) seed: u64,
}

/// The mixture a recipe makes of a dense model.
pub(super) fn mixture(
    dense: &Checkpoint,
    moe: &MoeConfig,
    recipe: &Recipe,
) -> Result<Checkpoint> {
    let placement = placement(moe, dense, recipe.settings.rank());
    let mut layers = Vec::new();
    for tower in Tower::BOTH {
        let blocks = match tower {
            Tower::Vision => &placement.vision_blocks,
            Tower::Text => &placement.text_blocks,
        };
        for &block in blocks {
            let name = files::layer_name(tower, block);
            let ffn = dense_ffn(dense, tower, block)?;
            let centroids = recipe.centroids.as_ref();
            let centroids = centroids.map(|all| matrix(all, &name)).transpose()?;
            let bases = recipe.bases.as_ref();
            let bases = bases.map(|all| expert_bases(all, &name, moe.experts));
            let bases = bases.transpose()?;
            let evidence =
                Evidence { centroids: centroids.as_ref(), subspaces: bases.as_deref() };
            let streams = Streams::new(recipe.seed, &name);
            let (method, settings) = (recipe.method, &recipe.settings);
            let made =
                upcycle::upcycle_layer(method, &ffn, &evidence, settings, &streams)?;
            let mut layer = stacked(made);
            if let Some(deltas) = method.deltas(&ffn, settings, &streams)? {
                (layer.fc1_down, layer.fc2_down) = (deltas.fc1_down, deltas.fc2_down);
            }
            layers.push(layer);
        }
    }
    dense.with_experts(&placement, &layers)
}

fn placement(moe: &MoeConfig, dense: &Checkpoint, rank: Option<usize>) -> Moe {
    Moe {
        experts: moe.experts,
        top_k: moe.top_k,
        rank,
        vision_blocks: moe.vision_blocks.indices(dense.config.vision.layers),
        text_blocks: moe.text_blocks.indices(dense.config.text.layers),
    }
}

fn optional(
    job: &Job<'_>,
    wanted: bool,
    stage: &str,
    file: &str,
) -> Result<Option<Tensors>> {
    if !wanted {
        return Ok(None);
    }
    tensors::read(&job.input(stage, &format!("{file}.safetensors"))?).map(Some)
}

fn matrix(all: &Tensors, name: &str) -> Result<Matrix> {
    as_matrix(all.get(name).ok_or_else(|| {
        Error::corrupt(format!("centroids.safetensors has no tensor {name}"))
    })?)
    .context(|| format!("tensor {name}"))
}

fn as_matrix(tensor: &Tensor) -> Result<Matrix> {
    match tensor.shape.as_slice() {
        [rows, cols] => Matrix::new(*rows, *cols, tensor.data.clone()),
        other => Err(Error::corrupt(format!("found shape {other:?}, expected two axes"))),
    }
}

/// The bases of every expert of a layer; an absent one means full rank.
fn expert_bases(all: &Tensors, layer: &str, experts: usize) -> Result<Vec<ExpertBases>> {
    let of = |expert: usize, part: &str| -> Result<MatrixBasis> {
        let name = format!("{layer}.{expert}.{part}");
        let basis = all.get(&name).map(as_matrix).transpose();
        let mean = all.get(&format!("{name}.mean")).map(|t| t.data.clone());
        Ok(MatrixBasis { basis: basis.context(|| format!("tensor {name}"))?, mean })
    };
    let both = |e| Ok(ExpertBases { fc1: of(e, "fc1")?, fc2: of(e, "fc2")? });
    (0..experts).map(both).collect()
}

fn dense_ffn(model: &Checkpoint, tower: Tower, block: usize) -> Result<DenseFfn> {
    let shape = model.config.tower(tower);
    let ffn = model.dense_ffn(tower, block)?;
    Ok(DenseFfn {
        fc1: Matrix::new(shape.hidden, shape.width, ffn.fc1.to_vec())?,
        fc1_bias: ffn.fc1_bias.to_vec(),
        fc2: Matrix::new(shape.width, shape.hidden, ffn.fc2.to_vec())?,
        fc2_bias: ffn.fc2_bias.to_vec(),
    })
}

fn stacked(made: Experts) -> MoeLayer {
    let mut layer = MoeLayer { router: made.router.into_data(), ..MoeLayer::default() };
    for expert in made.experts {
        layer.fc1.extend(expert.fc1.into_data());
        layer.fc1_bias.extend(expert.fc1_bias);
        layer.fc2.extend(expert.fc2.into_data());
        layer.fc2_bias.extend(expert.fc2_bias);
    }
    layer
}
