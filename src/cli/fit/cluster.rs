//! `upcycle-cluster fit`: spherical k-means of the vectors in a file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use linfa::ParamGuard as _;
use serde_json::json;

use super::{Common, Fit, brief, command, median};
use crate::cli;
use crate::cli::output::Folder;
use crate::cluster::{
    CHUNK, Done, Precision, RowSlice, RowSource, SphericalKMeans, SphericalKMeansModel,
};
use crate::engine::cpu::ops::simd;
use crate::error::{Context as _, Result};
use crate::io::tensors::{self, Tensor, Tensors};
use crate::io::vectors::VectorFile;
use crate::num::index_u32;
use crate::par;
use crate::pipeline::memory;
use crate::tables::{self, FitAssignmentRow, FitClusterRow, FitIterationRow, Row as _};

const EXAMPLES: &str = "\
Writes centroids.safetensors (`centroids` [k, d], unit rows), assignments.parquet (cluster and
cosine of each vector), clusters.parquet (sizes) and iterations.parquet (the objective), and
prints one line of JSON. The objective is the mean cosine to the own centroid.

Examples:
  upcycle-cluster fit --vectors x.parquet --column x --clusters 8 --out clusters
  upcycle-cluster fit --vectors x.safetensors --clusters 64 --restarts 1 --dtype bf16 --out c
  upcycle-cluster fit --vectors large.parquet --clusters 8 --memory 2G --out c";

/// The arguments.
#[derive(Debug, Clone, Args)]
pub(super) struct FitArgs {
    /// Vectors: Parquet (a column of f32 lists) or safetensors (F32 [rows, width]).
    #[arg(long, value_name = "FILE")]
    vectors: PathBuf,
    /// The column or tensor, if the file has several.
    #[arg(long, visible_alias = "tensor", value_name = "NAME")]
    column: Option<String>,
    /// Clusters k.
    #[arg(long, value_name = "K")]
    clusters: usize,
    /// Iterations of each restart, at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    iterations: usize,
    /// Independent starts that share every pass over the vectors; the best is kept.
    #[arg(long, value_name = "R", default_value_t = 5)]
    restarts: usize,
    /// A restart ends when its objective gains no more than this.
    #[arg(long, value_name = "T", default_value_t = 1e-7)]
    tolerance: f64,
    /// Seed of the starting centroids.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// What iterations read: the vectors, or a bf16 copy of them. Results are those of the
    /// vectors.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Vectors that need more than this are read from the file in every pass, with the same
    /// result [default: half of the free memory].
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Also measure a plain read of the same memory: the limit of a pass.
    #[arg(long)]
    bandwidth: bool,
    #[command(flatten)]
    common: Common,
}

/// What iterations read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

/// The names of this `fit`.
pub(super) const FIT: Fit = Fit {
    name: "upcycle-cluster fit",
    about: "Clusters vectors of a file by spherical k-means.",
    examples: EXAMPLES,
};

/// Runs `fit`.
pub(super) fn run(args: Vec<OsString>) -> Result<()> {
    let Some(args) = cli::parse::<FitArgs>(command(&FIT), args)? else {
        return Ok(());
    };

    // All that can be wrong with the arguments is found before the file is opened.
    let limit = match &args.memory {
        Some(text) => memory::parse(text)?,
        None => memory::half_of_free(),
    };
    let checked = SphericalKMeans::params(args.clusters)
        .iterations(args.iterations)
        .restarts(args.restarts)
        .tolerance(args.tolerance)
        .seed(args.seed)
        .precision(args.dtype.into())
        .check()?;

    let file = VectorFile::open(&args.vectors, args.column.as_deref())?;
    let out = args.common.folder()?;

    let line = args.common.pool(|threads| {
        // Vectors that fit are read once; the others cost a read per pass, with equal results.
        let bytes = (file.rows() * file.width() * 4) as u64;
        let held = bytes <= limit;
        let console = args.common.console();
        console.line(&format!(
            "{} vectors of {}, {:.2} GB: {}",
            file.rows(),
            file.width(),
            bytes as f64 / 1e9,
            if held { "held in memory" } else { "streamed from the file in every pass" }
        ));

        // Reading is timed by itself: it says nothing about the algorithm.
        let started = Instant::now();
        let data = if held { file.read()? } else { Vec::new() };
        let read = started.elapsed().as_secs_f64();

        let bandwidth = (held && args.bandwidth).then(|| bandwidth(&data));
        let work =
            Work { args: &args, checked: &checked, threads, held, read, bandwidth };
        if held {
            work.fit(&RowSlice::new(file.width(), &data)?, &out)
        } else {
            work.fit(&Streamed(&file), &out)
        }
    })?;

    out.publish()?;
    cli::print(&[line])
}

/// Rows that are read again in every pass.
struct Streamed<'a>(&'a VectorFile);

impl RowSource for Streamed<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn cols(&self) -> usize {
        self.0.width()
    }

    fn pass(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        self.0.stream(CHUNK, visit)
    }

    fn fetch(&self, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.0.fetch(indices)
    }
}

/// One fit and its circumstances.
struct Work<'a> {
    args: &'a FitArgs,
    checked: &'a SphericalKMeans,
    threads: usize,
    /// Whether the vectors are in memory.
    held: bool,
    /// Seconds that reading them took.
    read: f64,
    /// Gigabytes per second of a plain read, if it was measured.
    bandwidth: Option<f64>,
}

/// Times of a fit, in seconds.
#[derive(Debug, Default)]
struct Times {
    /// Until all restarts had their first centroids.
    start: f64,
    /// Of each iteration of all restarts together.
    iterations: Vec<f64>,
    /// From the beginning to the end.
    all: f64,
}

impl Work<'_> {
    /// Clusters, writes the results and returns the line of JSON about them.
    fn fit(&self, rows: &impl RowSource, out: &Folder) -> Result<String> {
        let bar = self.args.common.console().bar("cluster");
        bar.start(self.args.iterations, "iterations");

        // An iteration lasts from the end of the one before to its own end.
        let begun = Instant::now();
        let (mut last, mut times) = (begun, Times::default());

        let fitted = self.checked.fit_watched(rows, &mut |done| {
            let now = Instant::now();
            let seconds = (now - last).as_secs_f64();
            last = now;
            match done {
                Done::Starts => times.start = seconds,
                Done::Iteration(_) => {
                    times.iterations.push(seconds);
                    bar.advance(1);
                }
            }
        });
        bar.finish();

        let path = self.args.vectors.display();
        let model = fitted.context(|| format!("clustering {path}"))?;
        times.all = begun.elapsed().as_secs_f64();
        write(&model, out)?;
        Ok(self.line(rows, &model, times))
    }

    /// The line of JSON about a fit.
    fn line(
        &self,
        rows: &impl RowSource,
        model: &SphericalKMeansModel,
        times: Times,
    ) -> String {
        let (n, d) = (rows.rows(), rows.cols());
        let (dtype, size) = match self.args.dtype {
            Dtype::F32 => ("f32", 4),
            Dtype::Bf16 => ("bf16", 2),
        };

        let own = model.history.iter().filter(|stats| stats.restart == model.restart);
        let objectives: Vec<f64> = own.map(|stats| stats.objective).collect();

        // An iteration reads every value once, whatever the number of restarts.
        let iterations = times.iterations.len();
        let seconds = median(times.iterations);
        let bandwidth = (n * d * size) as f64 / seconds / 1e9;

        json!({
            "objectives": objectives,
            "objective": model.objective,
            "restart": model.restart,
            "seconds_per_iteration": brief(seconds),
            "gigabytes_per_second": brief(bandwidth),
            "read_gigabytes_per_second": self.bandwidth.map(brief),
            "seconds": {
                "read": brief(self.read),
                "start": brief(times.start),
                "fit": brief(times.all),
            },
            "iterations": iterations,
            "n": n,
            "d": d,
            "k": self.args.clusters,
            "restarts": self.args.restarts,
            "seed": self.args.seed,
            "threads": self.threads,
            "dtype": dtype,
            "streamed": !self.held,
            "peak_bytes": crate::artifact::peak_memory(),
        })
        .to_string()
    }
}

/// GB/s of summing all values up, median of seven passes.
fn bandwidth(data: &[f32]) -> f64 {
    let pass = || {
        // Chunks of a megabyte: enough of them for the threads, long enough to stream.
        let started = Instant::now();
        let chunks: Vec<&[f32]> = data.chunks(1 << 18).collect();
        let sums = par::map(chunks.len(), |index| {
            simd::dispatch(
                #[inline(always)]
                || {
                    let mut lanes = [0.0_f32; 64];
                    for chunk in chunks[index].as_chunks::<64>().0 {
                        lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane += v);
                    }
                    lanes.iter().sum::<f32>()
                },
            )
        });

        // Without a use of the sums the compiler would drop the reads.
        std::hint::black_box(sums);
        size_of_val(data) as f64 / started.elapsed().as_secs_f64() / 1e9
    };
    median((0..7).map(|_| pass()).collect())
}

/// Writes the four files.
fn write(model: &SphericalKMeansModel, out: &Folder) -> Result<()> {
    let shape = vec![model.centroids.rows(), model.centroids.cols()];
    let centroids = Tensor::new(shape, model.centroids.data().to_vec())?;
    let named = Tensors::from([("centroids".to_owned(), centroids)]);
    tensors::write(&out.path("centroids.safetensors"), &named)?;

    let assignments = model.assignments.iter().zip(&model.cosines);
    let assignments =
        assignments.map(|(&cluster, &cosine)| FitAssignmentRow { cluster, cosine });
    tables::write(&out.path(FitAssignmentRow::FILE), assignments.collect())?;

    let clusters = model.sizes.iter().zip(model.mean_cosines()).enumerate();
    let clusters = clusters.map(|(cluster, (&size, mean_cosine))| {
        let (cluster, size) = (index_u32(cluster), index_u32(size));
        FitClusterRow { cluster, size, mean_cosine }
    });
    tables::write(&out.path(FitClusterRow::FILE), clusters.collect())?;

    // All restarts are in the table; `chosen` marks the one whose centroids are kept.
    let iterations = model.history.iter().map(|stats| FitIterationRow {
        restart: index_u32(stats.restart),
        iteration: index_u32(stats.iteration),
        objective: stats.objective,
        refilled: index_u32(stats.refilled),
        chosen: stats.restart == model.restart,
    });
    tables::write(&out.path(FitIterationRow::FILE), iterations.collect())
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}
