//! Stage `cluster`: spherical k-means of each layer's activations.
//!
//! Writes `centroids.safetensors`, `assignments.parquet`, `clusters.parquet` and
//! `iterations.parquet`.

use linfa::ParamGuard;
use serde::{Deserialize, Serialize};

use super::files;
use crate::cluster::{RowSlice, SphericalKMeans, SphericalKMeansModel};
use crate::config::ClusterConfig;
use crate::error::{Context, Error, Result};
use crate::io::table::Table;
use crate::io::tensors::{self, Tensor, Tensors};
use crate::model::Tower;
use crate::num::index_u32;
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::tables::{
    self, Activations, AssignmentRow, ClusterRow, IterationRow, Layer, Row as _, TokenRow,
};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "cluster",
    version: 1,
    width: Width::Shared,
    reach: Reach::Process,
    about: "Clusters the activations of each layer by spherical k-means.",
    run,
};

/// Stage `cluster`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterParams {
    /// Section `cluster`.
    pub cluster: ClusterConfig,
    /// Number of clusters of each layer: `moe.experts`.
    pub clusters: usize,
    /// Seed of this base.
    pub seed: u64,
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let params: ClusterParams = job.params()?;
    let layers = layers(job)?;
    job.progress.start(layers.len(), "layers");

    let mut out = Outputs::default();
    let mut centroids = Tensors::new();

    for (tower, layer) in layers {
        let name = files::layer_name(tower, layer);
        let path = job.input("activations", &Activations::file(tower.name(), layer))?;
        let recorded = Activations::from_table(Table::read(&path)?)
            .context(|| format!("reading {}", path.display()))?;
        let Activations { tokens, width, inputs } = recorded;

        // One cluster per expert; centroids are unit rows [E, d].
        let checked = SphericalKMeans::params(params.clusters)
            .iterations(params.cluster.iterations)
            .restarts(params.cluster.restarts)
            .tolerance(params.cluster.tolerance)
            .seed(layer_seed(params.seed, &name))
            .check()?;
        let model = checked
            .fit_rows(&RowSlice::new(width, &inputs)?)
            .context(|| format!("clustering {name}"))?;

        job.draft.metric(&format!("objective_{name}"), model.objective);
        let shape = vec![params.clusters, width];
        centroids.insert(name, Tensor::new(shape, model.centroids.data().to_vec())?);
        out.add(&Layer::new(tower.name(), layer), tokens, &model);
        job.progress.advance(1);
    }

    tensors::write(&job.output("centroids.safetensors"), &centroids)?;
    out.write(job)
}

/// The seed of a layer. Each has its own, because equal layers must not get equal starts by
/// accident.
fn layer_seed(seed: u64, name: &str) -> u64 {
    use crate::rng::RngExt;
    crate::rng::stream(seed, &format!("cluster/{name}")).random()
}

/// The recorded layers, by the names of their files.
fn layers(job: &Job<'_>) -> Result<Vec<(Tower, usize)>> {
    let folder = files::folder(job, "activations")?;
    let mut layers = Vec::new();
    for tower in Tower::BOTH {
        // A checked configuration has fewer blocks than this.
        for layer in 0..1024 {
            if folder.join(Activations::file(tower.name(), layer)).exists() {
                layers.push((tower, layer));
            }
        }
    }

    if layers.is_empty() {
        let folder = folder.display();
        return Err(Error::corrupt(format!(
            "{folder} has no recorded layer, expected files like vision-1.parquet; make the \
             stage activations again"
        )));
    }
    Ok(layers)
}

/// The rows of the three tables.
#[derive(Debug, Default)]
struct Outputs {
    assignments: Vec<AssignmentRow>,
    clusters: Vec<ClusterRow>,
    iterations: Vec<IterationRow>,
}

impl Outputs {
    /// Adds the rows of one layer.
    fn add(
        &mut self,
        layer: &Layer,
        tokens: Vec<TokenRow>,
        model: &SphericalKMeansModel,
    ) {
        // Assignments are in the order of the recorded rows, which say whose token each is.
        let found = model.assignments.iter().zip(&model.cosines);
        let assignments = tokens.into_iter().zip(found);
        self.assignments.extend(assignments.map(|(token, (&cluster, &cosine))| {
            AssignmentRow { token, cluster, cosine }
        }));

        let clusters = model.sizes.iter().zip(model.mean_cosines()).enumerate();
        self.clusters.extend(clusters.map(|(cluster, (&size, mean_cosine))| {
            let (cluster, size) = (index_u32(cluster), index_u32(size));
            ClusterRow { layer: layer.clone(), cluster, size, mean_cosine }
        }));

        self.iterations.extend(model.history.iter().map(|stats| IterationRow {
            layer: layer.clone(),
            restart: index_u32(stats.restart),
            iteration: index_u32(stats.iteration),
            objective: stats.objective,
            refilled: index_u32(stats.refilled),
            chosen: stats.restart == model.restart,
        }));
    }

    /// Writes the tables.
    fn write(self, job: &Job<'_>) -> Result<()> {
        tables::write(&job.output(AssignmentRow::FILE), self.assignments)?;
        tables::write(&job.output(ClusterRow::FILE), self.clusters)?;
        tables::write(&job.output(IterationRow::FILE), self.iterations)
    }
}
