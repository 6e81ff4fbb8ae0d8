//! `upcycle-subspaces fit`: data-aware subspaces of the weight matrices in files.

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use clap::{ArgAction, ArgGroup, Args};
use serde_json::json;

use super::{Common, Fit, brief, command};
use crate::cli;
use crate::cli::output::Folder;
use crate::config::{Center, Directions, Labels, SubspacesConfig};
use crate::error::{Context as _, Error, Result};
use crate::io::labels;
use crate::io::tensors::{self, Tensor, Tensors};
use crate::io::vectors::VectorFile;
use crate::linalg::Matrix;
use crate::lowrank::{Draws, MatrixMoments, Subspace, project};
use crate::num::{index_u32, widen};
use crate::par;
use crate::pipeline::memory;
use crate::tables::{self, FitSpectrumRow, FitSubspaceRow, Row as _};

const EXAMPLES: &str = "\
For each cluster and matrix W [out, in]: the orthonormal basis U [out, r] of the outputs to
keep; the expert's matrix is U Uᵀ W. Writes bases.safetensors (`<matrix>.<cluster>`),
subspaces.parquet (ranks, retained energy, errors), spectra.parquet, with --project also
projected.safetensors, and prints one line of JSON. Without --project no matrix is multiplied
out. Matrices run side by side.

Examples:
  upcycle-subspaces fit --weight w.safetensors --vectors x.parquet \\
    --labels clusters/assignments.parquet --tau 0.99 --out bases
  upcycle-subspaces fit --weight m.safetensors:fc1 --vectors x.safetensors:x \\
    --weight m.safetensors:fc2 --vectors x.safetensors:hidden \\
    --labels l.safetensors:labels --rank 64 --out bases";

/// The arguments.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("size").required(true).args(["tau", "rank"])))]
pub(super) struct FitArgs {
    /// A weight matrix, F32 [out, in]; may be repeated.
    #[arg(long, value_name = "FILE[:TENSOR]", required = true, action = ArgAction::Append)]
    weight: Vec<String>,
    /// The inputs of the matrix: one file for all, or one for each --weight.
    #[arg(long, value_name = "FILE[:NAME]", required = true, action = ArgAction::Append)]
    vectors: Vec<String>,
    /// The cluster of each input: one file for all, or one for each --weight.
    #[arg(long, value_name = "FILE[:NAME]", required = true, action = ArgAction::Append)]
    labels: Vec<String>,
    /// Fraction of the energy that the kept rank must retain.
    #[arg(long, value_name = "T")]
    tau: Option<f64>,
    /// The rank to keep.
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Take energies about each cluster's mean.
    #[arg(long = "centre")]
    center: bool,
    /// Clusters of fewer vectors are shrunk towards the whole.
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: usize,
    /// Shrinkage of those clusters.
    #[arg(long, value_name = "A", default_value_t = 0.1)]
    shrinkage: f64,
    /// Write U Uᵀ W of every cluster too.
    #[arg(long)]
    project: bool,
    #[command(flatten)]
    common: Common,
}

/// The names of this `fit`.
pub(super) const FIT: Fit = Fit {
    name: "upcycle-subspaces fit",
    about: "Finds the data-aware subspaces of weight matrices in files.",
    examples: EXAMPLES,
};

/// Runs `fit`.
pub(super) fn run(args: Vec<OsString>) -> Result<()> {
    let Some(args) = cli::parse::<FitArgs>(command(&FIT), args)? else {
        return Ok(());
    };

    // All that can be wrong with the arguments is found before hours of work.
    let config = args.config()?;
    let jobs = args.jobs()?;
    let out = args.common.folder()?;

    let line = args.common.pool(|threads| {
        let done = fit(&jobs, &config, &args)?;
        write(&jobs, &done, &out)?;
        Ok(line(&jobs, &done, threads))
    })?;

    out.publish()?;
    cli::print(&[line])
}

/// All matrices, phase by phase: inputs are streamed one matrix at a time, with all threads in
/// each; then the clusters of all matrices run side by side.
fn fit(jobs: &[Job], config: &SubspacesConfig, args: &FitArgs) -> Result<Outcome> {
    let bar = args.common.console().bar("subspaces");
    bar.start(jobs.len() + 2, "matrices");

    let (mut seconds, mut gathered) = (Seconds::default(), Vec::new());
    for job in jobs {
        let moments = job.gather(&mut seconds);
        gathered.push(moments.context(|| format!("moments of {}", job.name))?);
        bar.advance(1);
    }

    // Every cluster of every matrix is one eigenproblem on one thread.
    let mut clock = Instant::now();
    let solved = par::try_map_each(gathered, |index, moments| {
        // The directions are those of the largest energy: nothing is drawn.
        let draws = Draws { seed: 0, place: &jobs[index].name };
        moments.solve(config, &draws).context(|| format!("subspaces of {}", draws.place))
    })?;
    seconds.eigen = lap(&mut clock);
    bar.advance(1);

    let found = par::map(jobs.len(), |index| solved[index].describe());
    seconds.assembly = lap(&mut clock);

    let mut projected = Vec::new();
    if args.project {
        projected = par::try_map(jobs.len(), |index| {
            let found = &found[index];
            par::try_map(found.len(), |i| project(&jobs[index].weight, &found[i]))
        })?;
        seconds.project = lap(&mut clock);
    }
    bar.finish();
    Ok(Outcome { found, projected, seconds })
}

/// Seconds since the last lap.
fn lap(clock: &mut Instant) -> f64 {
    let now = Instant::now();
    let seconds = (now - *clock).as_secs_f64();
    *clock = now;
    seconds
}

impl FitArgs {
    /// What the library is asked for; a fixed rank is the smallest rank at a τ of nothing.
    fn config(&self) -> Result<SubspacesConfig> {
        if self.rank == Some(0) {
            return Err(Error::usage("--rank 0: expected at least 1"));
        }
        Ok(SubspacesConfig {
            labels: Labels::Clusters,
            directions: Directions::Top,
            center: if self.center { Center::Mean } else { Center::None },
            tau: self.tau.unwrap_or(f64::MIN_POSITIVE),
            min_rank: self.rank.unwrap_or(1),
            min_tokens: self.min_tokens,
            shrinkage: self.shrinkage,
        })
    }

    /// The matrices with their inputs and labels.
    ///
    /// # Errors
    /// Where the numbers of files do not go together, or two matrices have one name.
    fn jobs(&self) -> Result<Vec<Job>> {
        let count = self.weight.len();
        for (name, files) in [("vectors", &self.vectors), ("labels", &self.labels)] {
            if files.len() != 1 && files.len() != count {
                let found = files.len();
                return Err(Error::usage(format!(
                    "found {found} of --{name} for {count} of --weight, expected 1 or {count}"
                )));
            }
        }

        let one =
            |files: &[String], index: usize| files[index.min(files.len() - 1)].clone();
        let job = |index: usize| {
            Job::new(
                &self.weight[index],
                &one(&self.vectors, index),
                one(&self.labels, index),
            )
        };

        // Results are named after the matrix.
        let jobs: Vec<Job> = (0..count).map(job).collect::<Result<_>>()?;
        for (index, job) in jobs.iter().enumerate() {
            if jobs[..index].iter().any(|other| other.name == job.name) {
                let name = &job.name;
                return Err(Error::usage(format!(
                    "two tensors of --weight are called {name}, expected different names"
                )));
            }
        }
        Ok(jobs)
    }
}

/// One matrix and where its inputs are.
#[derive(Debug)]
struct Job {
    name: String,
    weight: Matrix,
    vectors: VectorFile,
    labels: String,
}

/// The results, one entry per matrix.
#[derive(Debug)]
struct Outcome {
    found: Vec<Vec<Subspace>>,
    /// U Uᵀ W by cluster; empty unless asked for.
    projected: Vec<Vec<Matrix>>,
    seconds: Seconds,
}

/// Times of the phases, in seconds on the wall clock.
#[derive(Debug, Default)]
struct Seconds {
    read: f64,
    moments: f64,
    eigen: f64,
    assembly: f64,
    project: f64,
}

/// Splits `file:name`; the name is what follows the colon behind the ending of the file's name,
/// because both may have colons themselves.
fn place(text: &str) -> (&Path, Option<&str>) {
    for ending in [".safetensors:", ".parquet:"] {
        if let Some(at) = text.rfind(ending) {
            let (file, name) = text.split_at(at + ending.len());
            return (Path::new(file.trim_end_matches(':')), Some(name));
        }
    }
    (Path::new(text), None)
}

impl Job {
    /// Reads the matrix, and opens its inputs, which have to be as wide as it is.
    fn new(weight: &str, vectors: &str, labels: String) -> Result<Self> {
        let (path, tensor) = place(weight);
        let file = VectorFile::open(path, tensor)?;
        let name = file.name().to_owned();
        let matrix = Matrix::new(file.rows(), file.width(), file.read()?)?;

        let (path, column) = place(vectors);
        let vectors = VectorFile::open(path, column)?;
        if vectors.width() != matrix.cols() {
            let (path, found) = (path.display(), vectors.width());
            let (out, inputs) = (matrix.rows(), matrix.cols());
            return Err(Error::usage(format!(
                "{path}: found vectors of {found} values, expected {inputs} for the matrix \
                 {name} [{out}, {inputs}]"
            )));
        }
        Ok(Self { name, weight: matrix, vectors, labels })
    }

    /// Refuses labels that would need absurd memory, before any is taken.
    fn check(&self, clusters: usize) -> Result<()> {
        // The moments of a cluster are a matrix of f64 on the smaller side.
        let side = self.weight.rows().min(self.weight.cols()) as u64;
        let needed = (clusters as u64).saturating_mul(side * side * 8);
        let limit = memory::half_of_free();
        if clusters <= self.vectors.rows() && needed <= limit {
            return Ok(());
        }

        let rows = self.vectors.rows();
        Err(Error::usage(format!(
            "{clusters} clusters of {rows} vectors need {needed} bytes of moments, expected at \
             most {rows} clusters and {limit} bytes"
        )))
    }

    /// Streams the inputs into moments.
    fn gather(&self, seconds: &mut Seconds) -> Result<MatrixMoments<'_>> {
        let begun = Instant::now();
        let (path, column) = place(&self.labels);
        let labels = labels::read(path, column)?;
        if labels.len() != self.vectors.rows() {
            let (found, expected) = (labels.len(), self.vectors.rows());
            let path = path.display();
            return Err(Error::usage(format!(
                "{path}: found {found} labels, expected {expected}, one per vector"
            )));
        }

        // Labels count from 0, and a label that no vector has is an empty cluster.
        let clusters = labels.iter().max().map_or(0, |&most| widen(most) + 1);
        self.check(clusters)?;

        // What is not spent on moments is spent on reading: the two take turns.
        let mut builder = MatrixMoments::builder(&self.weight, clusters)?;
        let (mut at, mut moments) = (0, 0.0);
        self.vectors.stream(1, &mut |rows| {
            let mut clock = Instant::now();
            let count = rows.len() / self.vectors.width();
            builder.push(rows, &labels[at..at + count])?;
            at += count;
            moments += lap(&mut clock);
            Ok(())
        })?;

        let mut clock = Instant::now();
        let gathered = builder.finish()?;
        moments += lap(&mut clock);
        seconds.moments += moments;
        seconds.read += begun.elapsed().as_secs_f64() - moments;
        Ok(gathered)
    }
}

/// Writes the bases and, if there are any, the projected matrices; then the tables.
fn write(jobs: &[Job], done: &Outcome, out: &Folder) -> Result<()> {
    let (mut subspace_bases, mut projected) = (Tensors::new(), Tensors::new());

    let tensor = |m: &Matrix| Tensor::new(vec![m.rows(), m.cols()], m.data().to_vec());
    for (job, found) in jobs.iter().zip(&done.found) {
        for (cluster, found) in found.iter().enumerate() {
            let name = format!("{}.{cluster}", job.name);
            if let Some(basis) = &found.basis {
                // Where the rank is full there is no basis: the matrix stays as it is.
                subspace_bases.insert(name.clone(), tensor(basis)?);
            }

            // There is a mean where energies are taken about it.
            if let Some(mean) = &found.mean {
                let mean = Tensor::new(vec![mean.len()], mean.clone())?;
                subspace_bases.insert(format!("{name}.mean"), mean);
            }
        }
    }

    for (job, matrices) in jobs.iter().zip(&done.projected) {
        for (cluster, matrix) in matrices.iter().enumerate() {
            projected.insert(format!("{}.{cluster}", job.name), tensor(matrix)?);
        }
    }

    tensors::write(&out.path("bases.safetensors"), &subspace_bases)?;
    if !projected.is_empty() {
        tensors::write(&out.path("projected.safetensors"), &projected)?;
    }
    write_tables(jobs, done, out)
}

/// Writes one row per cluster and matrix, and one per direction of each.
fn write_tables(jobs: &[Job], done: &Outcome, out: &Folder) -> Result<()> {
    let (mut subspaces, mut spectra) = (Vec::new(), Vec::new());
    for (job, found) in jobs.iter().zip(&done.found) {
        for (cluster, s) in found.iter().enumerate() {
            let cluster = index_u32(cluster);
            subspaces.push(FitSubspaceRow {
                matrix: job.name.clone(),
                cluster,
                figures: s.figures(),
            });

            let spectrum = s.spectrum.iter().enumerate();
            spectra.extend(spectrum.map(|(index, &energy)| FitSpectrumRow {
                matrix: job.name.clone(),
                cluster,
                index: index_u32(index),
                energy,
            }));
        }
    }
    tables::write(&out.path(FitSubspaceRow::FILE), subspaces)?;
    tables::write(&out.path(FitSpectrumRow::FILE), spectra)
}

/// The line of JSON about the work.
fn line(jobs: &[Job], done: &Outcome, threads: usize) -> String {
    let matrices: Vec<serde_json::Value> = jobs
        .iter()
        .zip(&done.found)
        .map(|(job, found)| {
            json!({
                "matrix": job.name,
                "out": job.weight.rows(),
                "in": job.weight.cols(),
                "n": job.vectors.rows(),
                "clusters": found.len(),
                "ranks": found.iter().map(|s| s.rank).collect::<Vec<_>>(),
                "retained": found.iter().map(|s| s.retained).collect::<Vec<_>>(),
                "error_inside": found.iter().map(|s| s.error_inside).collect::<Vec<_>>(),
            })
        })
        .collect();

    let Seconds { read, moments, eigen, assembly, project } = done.seconds;
    json!({
        "matrices": matrices,
        "seconds": {
            "read": brief(read),
            "moments": brief(moments),
            "eigen": brief(eigen),
            "assembly": brief(assembly),
            "project": brief(project),
            "work": brief(moments + eigen + assembly + project),
        },
        "threads": threads,
        "peak_bytes": crate::artifact::peak_memory(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_the_ending_of_a_file() {
        let parsed = |text| place(text);
        assert_eq!(
            parsed("a.safetensors:w.x"),
            (Path::new("a.safetensors"), Some("w.x"))
        );
        assert_eq!(parsed("a:b/x.parquet"), (Path::new("a:b/x.parquet"), None));
        assert_eq!(parsed("a.parquet:x:y"), (Path::new("a.parquet"), Some("x:y")));
    }
}
