//! Stage `upcycle`: one initialization of a mixture from a dense model.
//!
//! Writes `model.safetensors` and `config.json`.

use serde::{Deserialize, Serialize};

use super::files;
use crate::config::{InitConfig, MoeConfig};
use crate::error::{Context as _, Error, Result};
use crate::ffn::FfnTensors;
use crate::io::tensors::{Tensor, TensorFile};
use crate::linalg::Matrix;
use crate::model::layers::{Mixture, MoeLayer};
use crate::model::params::parameter_counts;
use crate::model::{Checkpoint, ClipConfig, Moe, Tower};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::upcycle::{
    self, Evidence, ExpertSpaces, KeptSpace, LayerInput, Method, Needs, Settings,
    Streams, Upcycled,
};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "upcycle",
    version: 1,
    width: Width::Shared,
    reach: Reach::Process,
    about: "Turns the dense model into a mixture of experts, one way or another.",
    run,
};

/// Stage `upcycle`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpcycleParams {
    /// One entry of section `inits`, without the name of its subspace variant.
    pub init: InitConfig,
    /// Section `moe`.
    pub moe: MoeConfig,
    /// Seed of this run.
    pub seed: u64,
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let UpcycleParams { init, moe, seed } = job.params()?;
    let dense = Checkpoint::read(files::folder(job, "pretrain")?, "model.safetensors")?;
    let method = upcycle::find(&init.method)?;

    // The plan has resolved the variant into an input; the method's check wants it named.
    let named = method.subspaces().map(|_| job.node.place.to_string());
    let init = InitConfig { subspaces: named, ..init };
    let settings = Settings::new(method, &init, moe.experts)?;

    // The dense model is the reference of the comparison, and goes the same way as the others.
    let (total, active) = if method.form().is_dense() {
        files::write_model(job, &dense, "model.safetensors")?;
        dense.counts()
    } else {
        let Needs { centroids, subspaces, multiplet } = method.needs();
        let recipe = Recipe {
            method,
            settings,
            centroids: optional(job, centroids, "cluster", "centroids")?,
            subspaces: optional(job, subspaces.is_some(), "subspaces", "bases")?,
            multiplet: optional(job, multiplet, "multiplet", "ffns")?,
            seed,
        };

        // The mixture is written layer by layer: it is never whole in memory.
        let mixture = mixture(&dense, &moe, &recipe);
        let counts = parameter_counts(mixture.config());
        files::write_config(job, mixture.config())?;
        mixture.write(&job.output("model.safetensors"))?;
        counts
    };

    job.draft.metric("parameters_total", total as f64);
    job.draft.metric("parameters_active", active as f64);
    job.progress.message(format!("{total} parameters, {active} active"));
    Ok(())
}

/// A method and all that it reads.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) method: &'static dyn Method,
    pub(crate) settings: Settings,
    /// `centroids.safetensors`, if the method needs them.
    pub(crate) centroids: Option<TensorFile>,
    /// `bases.safetensors` of a subspace variant, if the method needs one.
    pub(crate) subspaces: Option<TensorFile>,
    /// `ffns.safetensors` of stage `multiplet`, if the method needs it.
    pub(crate) multiplet: Option<TensorFile>,
    pub(crate) seed: u64,
}

/// The mixture a recipe makes of a dense model, layer by layer.
pub(crate) fn mixture<'a>(
    dense: &'a Checkpoint,
    moe: &'a MoeConfig,
    recipe: &'a Recipe,
) -> Mixture<'a, impl FnMut(Tower, usize) -> Result<MoeLayer>> {
    let placement = placement(moe, &dense.config, recipe.settings.rank());
    Mixture::new(dense, placement, |tower, block| {
        let name = files::layer_name(tower, block);
        recipe.layer(dense.dense_ffn(tower, block)?, &name)
    })
}

impl Recipe {
    /// The layer of a name, with router and experts.
    fn layer(&self, dense: FfnTensors<'_>, name: &str) -> Result<MoeLayer> {
        // Evidence is read for this layer alone.
        let centroids = self.centroids.as_ref();
        let centroids = centroids.map(|file| matrix(file, name)).transpose()?;
        let subspaces = self.subspaces.as_ref();
        let experts = self.settings.experts();
        let subspaces =
            subspaces.map(|file| expert_spaces(file, name, experts)).transpose()?;
        let multiplet = self.multiplet.as_ref();
        let multiplet = multiplet
            .map(|file| super::multiplet::read(file, name, experts))
            .transpose()?;

        let made = upcycle::upcycle_layer(
            self.method,
            &LayerInput {
                dense,
                evidence: Evidence {
                    centroids: centroids.as_ref(),
                    subspaces: subspaces.as_deref(),
                    multiplet: multiplet.as_deref(),
                },
                settings: &self.settings,
                streams: Streams::new(self.seed, name),
            },
        )?;

        match made {
            Upcycled::Dense => {
                let method = self.method.name();
                Err(Error::failed(format!(
                    "{name}: method {method} leaves the FFN dense, expected experts for an \
                     MoE layer"
                )))
            }
            Upcycled::Experts(made) => Ok(MoeLayer {
                router: made.router.into_data(),
                experts: made.experts,
                ..MoeLayer::default()
            }),
            // The mixture keeps the dense FFN as the shared one.
            Upcycled::LowRank(made) => Ok(MoeLayer {
                router: made.router.into_data(),
                fc1_down: made.deltas.fc1_down,
                fc2_down: made.deltas.fc2_down,
                ..MoeLayer::default()
            }),
        }
    }
}

/// Which blocks of a dense model become MoE layers, and of what kind.
pub(crate) fn placement(moe: &MoeConfig, dense: &ClipConfig, rank: Option<usize>) -> Moe {
    Moe {
        experts: moe.experts,
        top_k: moe.top_k,
        rank,
        vision_blocks: moe.vision_blocks.indices(dense.vision.layers),
        text_blocks: moe.text_blocks.indices(dense.text.layers),
    }
}

/// Opens a file of tensors of an input if the method wants it.
fn optional(
    job: &Job<'_>,
    wanted: bool,
    stage: &str,
    file: &str,
) -> Result<Option<TensorFile>> {
    if !wanted {
        return Ok(None);
    }
    TensorFile::open(&job.input(stage, &format!("{file}.safetensors"))?).map(Some)
}

/// The centroids of a layer, [E, d].
fn matrix(file: &TensorFile, name: &str) -> Result<Matrix> {
    as_matrix(file.read(name)?.ok_or_else(|| {
        Error::corrupt(format!(
            "centroids.safetensors has no tensor {name}, expected one per MoE layer"
        ))
    })?)
    .context(|| format!("tensor {name}"))
}

/// A tensor of two axes as a matrix.
fn as_matrix(tensor: Tensor) -> Result<Matrix> {
    match tensor.shape.as_slice() {
        [rows, cols] => Matrix::new(*rows, *cols, tensor.data),
        other => Err(Error::corrupt(format!("found shape {other:?}, expected two axes"))),
    }
}

/// The spaces that every expert of a layer keeps; an absent basis means full rank.
fn expert_spaces(
    file: &TensorFile,
    layer: &str,
    experts: usize,
) -> Result<Vec<ExpertSpaces>> {
    let of = |expert: usize, part: &str| -> Result<KeptSpace> {
        let name = format!("{layer}.{expert}.{part}");
        let basis = file.read(&name)?.map(as_matrix).transpose();
        let mean = file.read(&format!("{name}.mean"))?.map(|tensor| tensor.data);
        Ok(KeptSpace { basis: basis.context(|| format!("tensor {name}"))?, mean })
    };
    let both = |e| Ok(ExpertSpaces { fc1: of(e, "fc1")?, fc2: of(e, "fc2")? });
    (0..experts).map(both).collect()
}
