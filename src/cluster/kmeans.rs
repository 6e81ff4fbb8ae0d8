//! The iterations of spherical k-means: assign, sum, normalize.
//!
//! One pass reads each row once and serves all restarts: nearest centroid, then, if that is
//! another one than before, the row's unit vector moves from one f64 sum to the other (few
//! rows move after the first iterations). The objective needs no further work:
//! with `s_c` the sum of cluster c, the mean cosine is `Σ_c <s_c, centroid_c> / n`, exact in
//! f64. It cannot fall, because the new centroid `s_c / |s_c|` maximizes `<s_c, ·>` on the
//! sphere and the next assignment maximizes each row's term. Refilling keeps that: moving x
//! from a cluster into its own changes `Σ |s_c|` by `|s - x| + 1 - |s| >= 0`.

use super::assign::{Centroids, unit};
use super::form::Form;
use super::kernel;
use super::params::{Precision, SphericalKMeans};
use super::seed;
use super::source::{self, CHUNK, Halved, RowSource, Slabs};
use crate::error::{Error, Result};
use crate::linalg::Matrix;
use crate::num;

/// One iteration of one restart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IterationStats {
    /// The restart, from 0.
    pub restart: usize,
    /// The iteration, from 0.
    pub iteration: usize,
    /// Mean cosine of the rows to the centroid they are assigned to in this iteration.
    pub objective: f64,
    /// Empty clusters that were given a row of the largest cluster afterwards.
    pub refilled: usize,
}

/// What has been done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The starting centroids of all restarts are drawn.
    Starts,
    /// This iteration, from 0, of all restarts.
    Iteration(usize),
}

/// The best of the restarts. All fields belong to the same restart and the same centroids:
/// [`SphericalKMeansModel::assign`] of the training rows gives the stored assignments.
#[derive(Debug, Clone, PartialEq)]
pub struct SphericalKMeansModel {
    /// Unit centroids [k, d].
    pub centroids: Matrix,
    /// Cluster of each row.
    pub assignments: Vec<u32>,
    /// Cosine of each row to its centroid; 0 for a row of zeros.
    pub cosines: Vec<f32>,
    /// Rows of each cluster; 0 only where there are fewer directions than clusters.
    pub sizes: Vec<usize>,
    /// Mean cosine to the assigned centroid.
    pub objective: f64,
    /// Every iteration of every restart, restart by restart.
    pub history: Vec<IterationStats>,
    /// The restart that won.
    pub restart: usize,
}

impl SphericalKMeans {
    /// Clusters rows by direction. Rows need not be normalized; a row of zeros has cosine 0
    /// to everything, goes to cluster 0 and moves no centroid.
    ///
    /// Reads the source once per iteration for all restarts together, `k + 2` times more to
    /// start, and keeps O(rows × restarts) numbers. The result depends on the rows, the
    /// parameters and the seed alone: neither on threads nor on the machine.
    pub fn fit_rows(&self, rows: &impl RowSource) -> Result<SphericalKMeansModel> {
        self.fit_watched(rows, &mut |_| {})
    }

    /// As [`SphericalKMeans::fit_rows`], telling `watch` what has been done: for progress and
    /// clocks, which have no place here.
    pub fn fit_watched(
        &self,
        rows: &impl RowSource,
        watch: &mut dyn FnMut(Done),
    ) -> Result<SphericalKMeansModel> {
        let (n, d) = (rows.rows(), rows.cols());
        if d == 0 || n < self.clusters {
            let k = self.clusters;
            return Err(Error::failed(format!(
                "cannot form {k} clusters from {n} rows of {d} values: expected at least as \
                 many rows as clusters, and at least one value per row"
            )));
        }

        let norms = norms(rows)?;
        if norms.iter().all(|&norm| norm == 0.0) {
            return Err(Error::failed(format!(
                "all {n} rows are zero: none has a direction to cluster by"
            )));
        }

        let runs = match self.precision {
            Precision::F32 => self.run(rows, &norms, watch)?,
            Precision::Bf16 => {
                // The copy is a data set of its own, with norms of its own.
                let halved = Halved::copy(rows)?;
                let norms = self::norms(&halved)?;
                self.run(&halved, &norms, watch)?
            }
        };

        // The first of equals wins, so that the choice does not depend on rounding later on.
        let last =
            |run: &Run| run.stats.last().map_or(f64::NEG_INFINITY, |s| s.objective);
        let winner = runs.iter().reduce(|a, b| if last(b) > last(a) { b } else { a });
        let winner = winner.ok_or_else(|| Error::failed("k-means ran no restart"))?;

        // Labels and cosines are those of the stored f32 centroids on the rows themselves.
        let centroids = winner.centroids.iter().map(|&v| num::round_f32(v)).collect();
        let centroids = Matrix::new(self.clusters, d, centroids)?;
        let (restart, found) = (winner.restart, label(&centroids, rows, &norms)?);
        let history = runs.into_iter().flat_map(|run| run.stats).collect();
        Ok(found.into_model(centroids, history, restart))
    }

    /// All restarts from their starts to their ends.
    fn run(
        &self,
        rows: &impl Slabs,
        norms: &[f64],
        watch: &mut dyn FnMut(Done),
    ) -> Result<Vec<Run>> {
        let (n, d) = (rows.count(), rows.width());
        let starts =
            seed::plus_plus(rows, norms, self.clusters, self.restarts, self.seed)?;

        let starts = starts.chunks_exact(self.clusters * d).enumerate();
        let mut runs: Vec<Run> = starts
            .map(|(restart, start)| Run::new(restart, n, d, start.to_vec()))
            .collect();

        watch(Done::Starts);
        self.iterate(rows, norms, &mut runs, watch)?;
        Ok(runs)
    }

    /// Runs all restarts side by side until each has converged or used its iterations.
    fn iterate(
        &self,
        rows: &impl Slabs,
        norms: &[f64],
        runs: &mut [Run],
        watch: &mut dyn FnMut(Done),
    ) -> Result<()> {
        for iteration in 0..self.iterations {
            // A restart that has converged takes no further part in the passes.
            let mut active: Vec<&mut Run> =
                runs.iter_mut().filter(|run| !run.converged(self.tolerance)).collect();
            if active.is_empty() {
                break;
            }
            accumulate(rows, norms, &mut active)?;

            // The last assignments belong to the last centroids: nothing moves after them.
            let last = iteration + 1 == self.iterations;
            for run in active {
                let objective = run.sums.objective(&run.centroids) / norms.len() as f64;
                let restart = run.restart;
                let mut stats =
                    IterationStats { restart, iteration, objective, refilled: 0 };
                if !last && run.sums.counts.contains(&0) {
                    stats.refilled = run.refill(rows, norms)?;
                }
                run.stats.push(stats);

                if !last && !run.converged(self.tolerance) {
                    run.sums.normalize_into(&mut run.centroids);
                }
            }
            watch(Done::Iteration(iteration));
        }
        Ok(())
    }
}

impl SphericalKMeansModel {
    /// Mean cosine of each cluster's rows; 0 for an empty one.
    pub fn mean_cosines(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.sizes.len()];
        for (&cluster, &cosine) in self.assignments.iter().zip(&self.cosines) {
            sums[num::widen(cluster)] += f64::from(cosine);
        }
        let sizes = self.sizes.iter();
        sums.iter().zip(sizes).map(|(sum, &size)| sum / size.max(1) as f64).collect()
    }

    /// The nearest centroid of each row by cosine, ties to the lower index, and the cosine.
    pub fn assign(&self, rows: &impl RowSource) -> Result<(Vec<u32>, Vec<f32>)> {
        let (found, expected) = (rows.cols(), self.centroids.cols());
        if found != expected {
            return Err(Error::failed(format!(
                "found rows of {found} values, expected {expected} as in the centroids"
            )));
        }
        let found = label(&self.centroids, rows, &norms(rows)?)?;
        Ok((found.labels, found.cosines.iter().map(|&v| num::round_f32(v)).collect()))
    }
}

/// One restart on its way.
struct Run {
    restart: usize,
    centroids: Vec<f64>,
    /// Cluster of each row in the last assignment; [`NONE`] before the first.
    labels: Vec<u32>,
    sums: Sums,
    stats: Vec<IterationStats>,
}

/// The label of a row before its first assignment.
const NONE: u32 = u32::MAX;

impl Run {
    fn new(restart: usize, n: usize, d: usize, centroids: Vec<f64>) -> Self {
        let sums = Sums::zeros(centroids.len() / d, d);
        Self { restart, centroids, labels: vec![NONE; n], sums, stats: Vec::new() }
    }

    /// Whether the last iteration gained no more than the tolerance, refills aside.
    fn converged(&self, tolerance: f64) -> bool {
        // A refill changes the clusters by hand, so what follows it is no sign of an end.
        let [.., before, last] = self.stats.as_slice() else { return false };
        let refilled = before.refilled + last.refilled;
        refilled == 0 && last.objective - before.objective <= tolerance
    }

    /// Gives each empty cluster the row of the largest cluster that lies furthest from its
    /// centroid. Stops where the largest cluster is a single direction: nothing to gain.
    fn refill<X: Slabs>(&mut self, rows: &X, norms: &[f64]) -> Result<usize> {
        let k = self.sums.counts.len();
        let current = Centroids::<X::Form>::new(rows.width(), k, self.centroids.clone());
        let cosines = label_exactly(&current, rows, norms)?.cosines;

        // Decided from cosines alone first: the rows that move are fetched together.
        let mut moves = Vec::new();
        for empty in 0..k {
            if self.sums.counts[empty] > 0 {
                continue;
            }

            let largest = first_largest(&self.sums.counts);
            let label = num::index_u32(largest);
            // Rows of zeros have no direction to found a cluster on.
            let usable =
                (0..norms.len()).filter(|&i| self.labels[i] == label && norms[i] > 0.0);
            let furthest =
                usable.reduce(|a, b| if cosines[b] < cosines[a] { b } else { a });
            let Some(row) = furthest.filter(|&row| cosines[row] < 1.0 - 1e-12) else {
                break;
            };

            self.labels[row] = num::index_u32(empty);
            self.sums.counts[largest] -= 1;
            self.sums.counts[empty] += 1;
            moves.push((row, largest, empty));
        }

        let indices: Vec<usize> = moves.iter().map(|&(row, ..)| row).collect();
        for (&(row, from, to), values) in moves.iter().zip(rows.single(&indices)?) {
            self.sums.add(from, -1.0 / norms[row], &values);
            self.sums.add(to, 1.0 / norms[row], &values);
        }
        Ok(moves.len())
    }
}

/// Sums of unit rows by centroid, and how many rows there are; or changes of both.
struct Sums {
    sums: Vec<f64>,
    counts: Vec<i64>,
}

impl Sums {
    fn zeros(count: usize, cols: usize) -> Self {
        Self { sums: vec![0.0; count * cols], counts: vec![0; count] }
    }

    fn cols(&self) -> usize {
        self.sums.len() / self.counts.len()
    }

    /// Adds `scale * row` to one sum.
    fn add(&mut self, centroid: usize, scale: f64, row: &[f32]) {
        let cols = row.len();
        kernel::add_scaled(&mut self.sums[centroid * cols..][..cols], scale, row);
    }

    /// Adds changes, which may belong to several runs: those from centroid `first` on.
    fn change(&mut self, changes: &Self, first: usize) {
        let (count, cols) = (self.counts.len(), self.cols());
        let sums = &changes.sums[first * cols..][..count * cols];
        self.sums.iter_mut().zip(sums).for_each(|(total, change)| *total += change);
        let counts = &changes.counts[first..first + count];
        self.counts.iter_mut().zip(counts).for_each(|(total, change)| *total += change);
    }

    /// `Σ_c <s_c, centroid_c>`: the sum of the cosines.
    fn objective(&self, centroids: &[f64]) -> f64 {
        let by_cluster = self.sums.chunks_exact(self.cols());
        by_cluster
            .zip(centroids.chunks_exact(self.cols()))
            .map(|(sum, centroid)| {
                sum.iter().zip(centroid).map(|(s, c)| s * c).sum::<f64>()
            })
            .sum()
    }

    /// Writes the unit sums; a cluster that is empty or whose rows cancel keeps its centroid.
    fn normalize_into(&self, centroids: &mut [f64]) {
        let cols = self.cols();
        for (index, sum) in self.sums.chunks_exact(cols).enumerate() {
            let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
            // Below this the direction of a sum is what rounding has left.
            if length > 1e-9 * self.counts[index].max(1) as f64 {
                centroids[index * cols..(index + 1) * cols].copy_from_slice(&unit(sum));
            }
        }
    }
}

/// The index of the largest count, ties to the lower index.
fn first_largest(counts: &[i64]) -> usize {
    (1..counts.len()).fold(0, |best, i| if counts[i] > counts[best] { i } else { best })
}

/// The lengths of all rows; refuses values that are not finite.
fn norms<X: Slabs>(rows: &X) -> Result<Vec<f64>> {
    let cols = rows.width();
    let mut all = Vec::with_capacity(rows.count());
    let measure = |first: usize, chunk: &[Unit<X>]| {
        let mut scratch = Vec::new();
        let units = chunk.chunks_exact(X::Form::units(cols));
        let made: Vec<f64> = units
            .map(|row| kernel::norm(X::Form::row(row, cols, &mut scratch)))
            .collect();

        match made.iter().position(|norm| !norm.is_finite()) {
            None => Ok(made),
            Some(bad) => {
                let row = first + bad;
                Err(Error::failed(format!("row {row} has a value that is not finite")))
            }
        }
    };
    source::scan(rows, 8 * CHUNK, measure, |_, made| all.extend(made))?;
    Ok(all)
}

/// What a row of a source is a slice of.
type Unit<X> = <<X as Slabs>::Form as Form>::Unit;

/// One pass: assigns every row in every run and moves what changed between the sums.
fn accumulate<X: Slabs>(rows: &X, norms: &[f64], runs: &mut [&mut Run]) -> Result<()> {
    let (cols, k) = (rows.width(), runs[0].sums.counts.len());
    let units = X::Form::units(cols);
    let all = runs.iter().flat_map(|run| run.centroids.iter().copied()).collect();
    let centroids = Centroids::<X::Form>::new(cols, k, all);
    let before: Vec<Vec<u32>> =
        runs.iter_mut().map(|run| std::mem::take(&mut run.labels)).collect();

    let work = |first: usize, chunk: &[Unit<X>]| {
        let norms = &norms[first..first + chunk.len() / units];
        let mut changes = Sums::zeros(centroids.count(), cols);
        let mut labels = vec![NONE; before.len() * norms.len()];
        let mut scratch = Vec::new();
        let mut changed = false;
        centroids.nearest(chunk, norms, |row, run, centroid| {
            let label = num::index_u32(centroid - run * k);
            let old = before[run][first + row];
            labels[run * norms.len() + row] = label;
            if label == old {
                return;
            }

            changed = true;
            let scale = if norms[row] > 0.0 { 1.0 / norms[row] } else { 0.0 };
            let values = &chunk[row * units..(row + 1) * units];
            let values = X::Form::row(values, cols, &mut scratch);
            changes.counts[centroid] += 1;
            changes.add(centroid, scale, values);
            // A row without a former label only arrives.
            if old != NONE {
                changes.counts[run * k + num::widen(old)] -= 1;
                changes.add(run * k + num::widen(old), -scale, values);
            }
        });
        Ok((changed.then_some(changes), labels))
    };

    // Chunks meet in the order of the rows, so the sums do not depend on the threads.
    let size = 8 * centroids.count() * cols;
    source::scan(rows, size, work, |_, (changes, labels)| {
        let labels = labels.chunks_exact(labels.len() / runs.len());
        for (index, (run, labels)) in runs.iter_mut().zip(labels).enumerate() {
            if let Some(changes) = &changes {
                run.sums.change(changes, index * k);
            }
            run.labels.extend_from_slice(labels);
        }
    })
}

/// Cluster and cosine of every row.
struct Found {
    labels: Vec<u32>,
    cosines: Vec<f64>,
}

impl Found {
    fn into_model(
        self,
        centroids: Matrix,
        history: Vec<IterationStats>,
        restart: usize,
    ) -> SphericalKMeansModel {
        let mut sizes = vec![0; centroids.rows()];
        self.labels.iter().for_each(|&label| sizes[num::widen(label)] += 1);

        SphericalKMeansModel {
            centroids,
            assignments: self.labels,
            cosines: self.cosines.iter().map(|&v| num::round_f32(v)).collect(),
            sizes,
            objective: num::mean(&self.cosines),
            history,
            restart,
        }
    }
}

/// Labels by stored centroids, which are f32 and so not unit to the last bit.
fn label<X: Slabs>(centroids: &Matrix, rows: &X, norms: &[f64]) -> Result<Found> {
    let wide = centroids
        .iter_rows()
        .flat_map(|row| unit(&row.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()));
    let exact =
        Centroids::<X::Form>::new(centroids.cols(), centroids.rows(), wide.collect());
    label_exactly(&exact, rows, norms)
}

/// Labels and f64 cosines by the centroids of one restart.
fn label_exactly<X: Slabs>(
    centroids: &Centroids<X::Form>,
    rows: &X,
    norms: &[f64],
) -> Result<Found> {
    let cols = rows.width();
    let units = X::Form::units(cols);
    let mut all = Found { labels: Vec::new(), cosines: Vec::new() };
    let work = |first: usize, chunk: &[Unit<X>]| {
        let norms = &norms[first..first + chunk.len() / units];
        let mut scratch = Vec::new();
        let mut found = Vec::with_capacity(norms.len());
        centroids.nearest(chunk, norms, |row, _, centroid| {
            let values = &chunk[row * units..(row + 1) * units];
            let values = X::Form::row(values, cols, &mut scratch);
            let dot = kernel::dot_exact(values, centroids.row(centroid));
            let cosine = if norms[row] > 0.0 { dot / norms[row] } else { 0.0 };
            found.push((num::index_u32(centroid), cosine));
        });
        Ok(found)
    };

    source::scan(rows, 16 * CHUNK, work, |_, found| {
        all.labels.extend(found.iter().map(|&(label, _)| label));
        all.cosines.extend(found.iter().map(|&(_, cosine)| cosine));
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use linfa::ParamGuard;

    #[test]
    fn clusters_that_start_empty_are_refilled_and_the_objective_still_rises() {
        let mut x = Matrix::zeros(300, 6);
        rng::fill_normal(&mut rng::stream(2, "test"), 1.0, x.data_mut());
        let norms = norms(&x).unwrap();
        // Four equal starts: ties go to the first, the others are empty.
        let start = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0].repeat(4);
        let params = SphericalKMeans::params(4).tolerance(0.0).check().unwrap();
        let mut runs = [Run::new(0, 300, 6, start)];
        params.iterate(&x, &norms, &mut runs, &mut |_| {}).unwrap();
        let [Run { stats, sums, labels, .. }] = &runs;
        assert_eq!(stats[0].refilled, 3);
        for pair in stats.windows(2) {
            assert!(pair[1].objective >= pair[0].objective - 1e-12);
        }
        assert_eq!(stats.last().unwrap().refilled, 0);
        assert!(sums.counts.iter().all(|&count| count > 0), "{:?}", sums.counts);
        // Sums kept by changes are the sums.
        let mut fresh = Sums::zeros(4, 6);
        for (i, &label) in labels.iter().enumerate() {
            fresh.add(num::widen(label), 1.0 / norms[i], x.row(i));
        }
        let gap = fresh.sums.iter().zip(&sums.sums).map(|(a, b)| (a - b).abs());
        assert!(gap.fold(0.0, f64::max) < 1e-12);
    }
}
