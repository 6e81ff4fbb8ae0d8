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
use crate::io::table::{Column, Table};
use crate::io::tensors::{self, Tensor, Tensors};
use crate::model::Tower;
use crate::num::index_u32;
use crate::pipeline::{Job, Stage, Width};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "cluster",
    version: 1,
    width: Width::Shared,
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
        let file = format!("{}-{layer}.parquet", tower.name());
        let table = Table::read(&job.input("activations", &file)?)?;
        let (width, data) = table.vectors("x")?;

        let checked = SphericalKMeans::params(params.clusters)
            .iterations(params.cluster.iterations)
            .restarts(params.cluster.restarts)
            .tolerance(params.cluster.tolerance)
            .seed(layer_seed(params.seed, &name))
            .check()?;
        let model = checked
            .fit_rows(&RowSlice::new(width, data)?)
            .context(|| format!("clustering {name}"))?;

        job.draft.metric(&format!("objective_{name}"), model.objective);
        let shape = vec![params.clusters, width];
        centroids.insert(name, Tensor::new(shape, model.centroids.data().to_vec())?);
        out.add(tower, layer, &table, &model)?;
        job.progress.advance(1);
    }

    tensors::write(&job.output("centroids.safetensors"), &centroids)?;
    out.write(job)
}

/// A seed for each layer: equal layers must not get equal starts by accident.
fn layer_seed(seed: u64, name: &str) -> u64 {
    use crate::rng::RngExt;
    crate::rng::stream(seed, &format!("cluster/{name}")).random()
}

/// The recorded layers, by the names of their files.
fn layers(job: &Job<'_>) -> Result<Vec<(Tower, usize)>> {
    let folder = files::folder(job, "activations")?;
    let mut layers = Vec::new();
    for tower in Tower::BOTH {
        for layer in 0..1000 {
            if folder.join(format!("{}-{layer}.parquet", tower.name())).exists() {
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

/// The three tables, row by row.
#[derive(Debug, Default)]
struct Outputs {
    assignments: Assignments,
    clusters: Clusters,
    iterations: Iterations,
}

/// Columns of `assignments.parquet`.
#[derive(Debug, Default)]
struct Assignments {
    tower: Vec<String>,
    layer: Vec<u32>,
    sample: Vec<u32>,
    position: Vec<u32>,
    cluster: Vec<u32>,
    cosine: Vec<f32>,
}

/// Columns of `clusters.parquet`.
#[derive(Debug, Default)]
struct Clusters {
    tower: Vec<String>,
    layer: Vec<u32>,
    cluster: Vec<u32>,
    size: Vec<u32>,
    mean_cosine: Vec<f64>,
}

/// Columns of `iterations.parquet`.
#[derive(Debug, Default)]
struct Iterations {
    tower: Vec<String>,
    layer: Vec<u32>,
    restart: Vec<u32>,
    iteration: Vec<u32>,
    objective: Vec<f64>,
    refilled: Vec<u32>,
    chosen: Vec<bool>,
}

impl Outputs {
    fn add(
        &mut self,
        tower: Tower,
        layer: usize,
        table: &Table,
        model: &SphericalKMeansModel,
    ) -> Result<()> {
        let (tower, layer, n) = (tower.name().to_owned(), index_u32(layer), table.rows());
        let rows = &mut self.assignments;
        rows.tower.extend(std::iter::repeat_n(tower.clone(), n));
        rows.layer.extend(std::iter::repeat_n(layer, n));
        rows.sample.extend_from_slice(table.u32s("sample")?);
        rows.position.extend_from_slice(table.u32s("position")?);
        rows.cluster.extend_from_slice(&model.assignments);
        rows.cosine.extend_from_slice(&model.cosines);
        let means = model.mean_cosines();
        for (cluster, (&size, mean)) in model.sizes.iter().zip(means).enumerate() {
            let rows = &mut self.clusters;
            rows.tower.push(tower.clone());
            rows.layer.push(layer);
            rows.cluster.push(index_u32(cluster));
            rows.size.push(index_u32(size));
            rows.mean_cosine.push(mean);
        }
        for stats in &model.history {
            let rows = &mut self.iterations;
            rows.tower.push(tower.clone());
            rows.layer.push(layer);
            rows.restart.push(index_u32(stats.restart));
            rows.iteration.push(index_u32(stats.iteration));
            rows.objective.push(stats.objective);
            rows.refilled.push(index_u32(stats.refilled));
            rows.chosen.push(stats.restart == model.restart);
        }
        Ok(())
    }

    fn write(self, job: &Job<'_>) -> Result<()> {
        let rows = self.assignments;
        Table::new()
            .with("tower", Column::Text(rows.tower))
            .with("layer", Column::U32(rows.layer))
            .with("sample", Column::U32(rows.sample))
            .with("position", Column::U32(rows.position))
            .with("cluster", Column::U32(rows.cluster))
            .with("cosine", Column::F32(rows.cosine))
            .write(&job.output("assignments.parquet"))?;
        let rows = self.clusters;
        Table::new()
            .with("tower", Column::Text(rows.tower))
            .with("layer", Column::U32(rows.layer))
            .with("cluster", Column::U32(rows.cluster))
            .with("size", Column::U32(rows.size))
            .with("mean_cosine", Column::F64(rows.mean_cosine))
            .write(&job.output("clusters.parquet"))?;
        let rows = self.iterations;
        Table::new()
            .with("tower", Column::Text(rows.tower))
            .with("layer", Column::U32(rows.layer))
            .with("restart", Column::U32(rows.restart))
            .with("iteration", Column::U32(rows.iteration))
            .with("objective", Column::F64(rows.objective))
            .with("refilled", Column::U32(rows.refilled))
            .with("chosen", Column::Bool(rows.chosen))
            .write(&job.output("iterations.parquet"))
    }
}
