//! The subspace one expert keeps of one matrix's outputs.
//!
//! For outputs with second moment M (about the origin, or about the cluster's mean), the
//! best rank-r approximation of W on the cluster is `U_r U_rᵀ W` with the top eigenvectors
//! `U_r` of M; its squared error there is the sum of the discarded eigenvalues. That is the
//! result of SVD-LLM's Cholesky route (arXiv 2403.07378), without root or inverse of the
//! inputs' moment, which may be singular.
//!
//! Outputs of a tall W = Q R [h, d] lie in the span of Q: moments of `R x` (d × d) have the
//! same eigenvalues, and U = Q V with V the small eigenvectors ([`super::frame`]). U is
//! orthonormal however small the eigenvalues are. (METHOD's form, `U = B V Σ⁻¹` with a root B
//! of the moment, needs a second eigenproblem per expert and divides by small numbers.)

use faer::{Mat, MatRef};

use super::draws::Draws;
use super::frame::Frame;
use super::moments::Moment;
use crate::config::{Center, Directions, SubspacesConfig};
use crate::error::{Error, Result};
use crate::linalg::{Matrix, eigen, orthonormal, wide};
use crate::num;
use crate::rng::Stream;
use crate::tables::SubspaceFigures;

/// Slack of the rank rule, as a fraction of the total energy: what counts as numerically zero
/// (`tests/fixtures/svd`).
const SLACK: f64 = 1e-12;

/// What one expert keeps of one matrix, and how good it is.
///
/// Errors are squared errors of the outputs (without bias, against the dense outputs),
/// relative to the outputs' squared length. `centre: mean` counts the bias correction.
#[derive(Debug, Clone, PartialEq)]
pub struct Subspace {
    /// Orthonormal columns U [out, r]; absent where the rank is full: the matrix is kept.
    pub basis: Option<Matrix>,
    /// Rank r.
    pub rank: usize,
    /// The largest possible rank.
    pub full_rank: usize,
    /// Mean output W μ, without bias; for `centre: mean` with a basis.
    pub mean: Option<Vec<f32>>,
    /// Energies of the directions as fractions of their total, `full_rank` of them:
    /// descending, or in the order in which random directions were drawn.
    pub spectrum: Vec<f64>,
    /// Fraction of the energy within the subspace.
    pub retained: f64,
    /// Error on the own cluster; 0 if it has no outputs.
    pub error_inside: f64,
    /// Error on all other clusters together.
    pub error_outside: f64,
    /// Error on each cluster.
    pub errors: Vec<f64>,
    /// Fraction α of the pooled moments that was mixed in; 1 for an empty cluster.
    pub shrinkage: f64,
    /// Tokens of the cluster.
    pub tokens: usize,
    /// The paper's cross term of this cluster's tokens, `Σ_{j≠i} |W X_i - W_j X_i|² / (E-1)`,
    /// relative to `|W X_i|²`. The paper subtracts it; nothing optimizes it directly.
    pub cross: f64,
}

impl Subspace {
    /// The figures that tables show.
    pub fn figures(&self) -> SubspaceFigures {
        SubspaceFigures {
            tokens: num::index_u32(self.tokens),
            rank: num::index_u32(self.rank),
            full_rank: num::index_u32(self.full_rank),
            retained: self.retained,
            error_inside: self.error_inside,
            error_outside: self.error_outside,
            shrinkage: self.shrinkage,
        }
    }
}

/// Where the outputs of one matrix live: a frame Q (absent: the identity) and coordinates.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) frame: Option<Frame>,
    pub(super) full_rank: usize,
    /// Moments of the coordinates, cluster by cluster.
    pub(super) clusters: Vec<Moment>,
    /// Moments over all clusters.
    pub(super) pooled: Moment,
}

/// One expert's solution in the coordinates of its [`Space`].
#[derive(Debug)]
pub(super) struct Solved {
    pub(super) values: Vec<f64>,
    pub(super) vectors: Mat<f64>,
    pub(super) rank: usize,
    mean: Vec<f64>,
    centered: bool,
    shrinkage: f64,
    /// `I - V Vᵀ` on the outputs; absent at full rank.
    discard: Option<Mat<f64>>,
}

/// The solved eigenproblems of a matrix, one per cluster, and where they live.
#[derive(Debug)]
pub struct Solutions {
    space: Space,
    solved: Vec<Solved>,
}

impl Solutions {
    /// Bases in output space, and how good they are.
    pub fn describe(&self) -> Vec<Subspace> {
        self.space.describe(&self.solved)
    }
}

impl Space {
    /// Outputs of `w` from moments of its inputs.
    pub(super) fn of_inputs(w: Mat<f64>, inputs: &[Moment]) -> Self {
        let full_rank = w.nrows().min(w.ncols());
        let is_tall = w.nrows() > w.ncols();
        let (frame, coordinates) = if is_tall {
            let (frame, r) = Frame::of(w);
            (Some(frame), r)
        } else {
            (None, w)
        };

        let r = coordinates.as_ref();
        let clusters = crate::par::map(inputs.len(), |index| {
            let Moment { count, sum, second } = &inputs[index];
            let sum = Mat::from_fn(sum.len(), 1, |i, _| sum[i]);
            let sum = wide::product(r, sum.as_ref());
            // A triangular R halves the work; both ways end exactly symmetric.
            let second = if is_tall {
                wide::congruence(r, second.as_ref())
            } else {
                let half = wide::product(r, second.as_ref());
                let mut second = wide::product(half.as_ref(), r.transpose());
                wide::mirror(second.as_mut());
                second
            };
            let sum = sum.col(0).iter().copied().collect();
            Moment { count: *count, sum, second }
        });
        Self::new(frame, full_rank, clusters)
    }

    /// The subspaces of all clusters, not yet described.
    pub(super) fn solved(
        self,
        config: &SubspacesConfig,
        draws: &Draws<'_>,
    ) -> Result<Solutions> {
        let clusters = self.clusters.len();
        let solved = crate::par::try_map(clusters, |index| {
            let top = self.solve(index, config)?;
            match config.directions {
                Directions::Top => Ok(top),
                Directions::RandomRank | Directions::RandomEnergy => {
                    self.at_random(top, config, &mut draws.stream(index))
                }
            }
        })?;
        Ok(Solutions { space: self, solved })
    }

    pub(super) fn new(
        frame: Option<Frame>,
        full_rank: usize,
        clusters: Vec<Moment>,
    ) -> Self {
        let mut pooled = Moment::zeros(clusters.first().map_or(0, |m| m.sum.len()));
        for cluster in &clusters {
            pooled.merge(cluster);
        }
        Self { frame, full_rank, clusters, pooled }
    }

    /// The subspace of one cluster.
    pub(super) fn solve(
        &self,
        expert: usize,
        config: &SubspacesConfig,
    ) -> Result<Solved> {
        let own = &self.clusters[expert];
        let centered = config.center == Center::Mean;
        let shrinkage = match own.count {
            0 => 1.0,
            count if count < config.min_tokens => config.shrinkage,
            _ => 0.0,
        };

        // An empty cluster has nothing of its own: it keeps what all tokens need.
        let basis_of = if own.count == 0 { &self.pooled } else { own };
        let mut moment = energy(basis_of, centered);
        if shrinkage > 0.0 && own.count > 0 {
            let fraction = own.count as f64 / self.pooled.count as f64;
            let pooled = energy(&self.pooled, centered);
            moment = moment * faer::Scale(1.0 - shrinkage)
                + pooled * faer::Scale(shrinkage * fraction);
        }

        let eigen::SymmetricEigen { mut values, vectors } =
            eigen::symmetric(moment.as_ref())?;
        values.truncate(self.full_rank);
        // A moment has no negative energies; rounding does.
        for value in &mut values {
            *value = value.max(0.0);
        }

        // The smallest r that keeps the fraction τ of the energy (METHOD §2.3).
        let rank = self.rank(&values, config);
        let discard = self.discard(vectors.as_ref(), rank);
        let mean = basis_of.mean();
        Ok(Solved { values, vectors, rank, mean, centered, shrinkage, discard })
    }

    /// The rank that the configuration keeps of directions with these energies.
    fn rank(&self, energies: &[f64], config: &SubspacesConfig) -> usize {
        if config.tau >= 1.0 {
            return self.full_rank;
        }
        rank_for(energies, config.tau).max(config.min_rank).min(self.full_rank)
    }

    /// The projector on the directions that are not kept; absent at full rank.
    fn discard(&self, vectors: MatRef<'_, f64>, rank: usize) -> Option<Mat<f64>> {
        (rank < self.full_rank)
            .then(|| wide::gram(vectors.subcols(rank, vectors.ncols() - rank)))
    }

    /// A solution with its directions replaced by uniformly random ones inside the column
    /// space of W: as many as it has, or as many as it takes to retain as much energy.
    ///
    /// The coordinates are the column space of a W of full rank. Where they have more
    /// dimensions (a W [d, h] with h < d), the outputs of all tokens span it.
    fn at_random(
        &self,
        top: Solved,
        config: &SubspacesConfig,
        stream: &mut Stream,
    ) -> Result<Solved> {
        let (n, full) = (top.vectors.nrows(), self.full_rank);
        let mut vectors = orthonormal::random(full, full, stream);
        if n > full {
            let spanning = eigen::symmetric(self.pooled.second.as_ref())?.vectors;
            vectors = wide::product(spanning.subcols(0, full), vectors.as_ref());
        }

        // With M = Σ λ_k v_k v_kᵀ the energy along q is Σ λ_k (v_kᵀ q)².
        let cosines = wide::product(top.vectors.transpose(), vectors.as_ref());
        let along = |column: usize| -> f64 {
            let terms = top.values.iter().enumerate();
            terms.map(|(k, value)| value * cosines[(k, column)].powi(2)).sum()
        };

        let values: Vec<f64> = (0..full).map(along).collect();

        let rank = match config.directions {
            Directions::RandomEnergy => self.rank(&values, config),
            Directions::Top | Directions::RandomRank => top.rank,
        };
        let discard = self.discard(vectors.as_ref(), rank);
        Ok(Solved { values, vectors, rank, discard, ..top })
    }

    /// Squared output error of an expert's matrix (and bias correction) on a cluster:
    /// `Σ |(I - P)(y - c)|²` with c the expert's mean output if centered, else 0.
    fn error(&self, solved: &Solved, cluster: usize) -> f64 {
        let Some(discard) = &solved.discard else { return 0.0 };
        let Moment { count, sum, second } = &self.clusters[cluster];

        // tr((I - P) M) is the part about the origin; c shifts it.
        let mut error = inner(discard.as_ref(), second.as_ref());
        if solved.centered {
            let center = Mat::from_fn(sum.len(), 1, |i, _| solved.mean[i]);
            let off = wide::product(discard.as_ref(), center.as_ref());
            let along = |other: &[f64]| {
                other.iter().zip(off.col(0).iter()).map(|(a, b)| a * b).sum()
            };
            let (with_sum, with_mean): (f64, f64) = (along(sum), along(&solved.mean));
            error += *count as f64 * with_mean - 2.0 * with_sum;
        }
        error.max(0.0)
    }

    /// Turns solutions into results: bases in output space, errors everywhere.
    pub(super) fn describe(&self, solved: &[Solved]) -> Vec<Subspace> {
        let experts = solved.len();
        let totals: Vec<f64> =
            self.clusters.iter().map(|m| trace(m.second.as_ref())).collect();
        // Row i: the errors of expert i on every cluster.
        let table: Vec<Vec<f64>> = crate::par::map(experts, |i| {
            (0..experts).map(|j| self.error(&solved[i], j)).collect()
        });

        crate::par::map(experts, |i| {
            let others = |values: &dyn Fn(usize) -> f64| -> f64 {
                (0..experts).filter(|&j| j != i).map(values).sum()
            };
            // Sums over the other clusters: relative to all their outputs, not a mean of ratios.
            let outside = (others(&|j| table[i][j]), others(&|j| totals[j]));
            let cross =
                others(&|j| table[j][i]) / experts.saturating_sub(1).max(1) as f64;

            let solution = &solved[i];
            let total: f64 = solution.values.iter().sum();
            let kept: f64 = solution.values[..solution.rank].iter().sum();
            let has_basis = solution.discard.is_some();

            Subspace {
                basis: has_basis.then(|| {
                    let columns = solution.vectors.subcols(0, solution.rank);
                    wide::narrowed(self.to_outputs(columns).as_ref())
                }),
                rank: solution.rank,
                full_rank: self.full_rank,
                mean: (has_basis && solution.centered).then(|| {
                    let mean = &solution.mean;
                    let mean = Mat::from_fn(mean.len(), 1, |k, _| mean[k]);
                    let mean = self.to_outputs(mean.as_ref());
                    mean.col(0).iter().map(|&v| num::round_f32(v)).collect()
                }),
                spectrum: solution.values.iter().map(|&v| ratio(v, total)).collect(),
                retained: if total > 0.0 { kept / total } else { 1.0 },
                error_inside: ratio(table[i][i], totals[i]),
                error_outside: ratio(outside.0, outside.1),
                errors: (0..experts).map(|j| ratio(table[i][j], totals[j])).collect(),
                shrinkage: solution.shrinkage,
                tokens: self.clusters[i].count,
                cross: ratio(cross, totals[i]),
            }
        })
    }

    /// Columns in coordinates as columns in output space.
    pub(super) fn to_outputs(&self, columns: MatRef<'_, f64>) -> Mat<f64> {
        match &self.frame {
            Some(frame) => frame.outputs(columns),
            None => columns.to_owned(),
        }
    }
}

/// Refuses a τ or a shrinkage that is not a fraction.
pub(super) fn check(config: &SubspacesConfig) -> Result<()> {
    let SubspacesConfig { tau, shrinkage, .. } = config;
    if *tau > 0.0 && *tau <= 1.0 && (0.0..=1.0).contains(shrinkage) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "subspaces: found tau {tau} and shrinkage {shrinkage}, expected 0 < tau <= 1 and \
         0 <= shrinkage <= 1"
    )))
}

/// The second moment whose eigenvalues are the energies: about the origin or the mean.
fn energy(moment: &Moment, centered: bool) -> Mat<f64> {
    if !centered || moment.count == 0 {
        return moment.second.clone();
    }

    let mean = moment.mean();
    let n = moment.count as f64;
    let entry = |i: usize, j: usize| moment.second[(i, j)] - n * (mean[i] * mean[j]);
    Mat::from_fn(mean.len(), mean.len(), entry)
}

/// The smallest rank whose discarded energy is at most `(1 - tau)` of the total, with a
/// slack of 1e-12 of the total. Values are not negative; the last ones are discarded first.
pub fn rank_for(values: &[f64], tau: f64) -> usize {
    let total: f64 = values.iter().sum();
    let allowed = (1.0 - tau) * total + SLACK * total;

    // From the end: what is discarded is summed without the rounding of the large values.
    let (mut rank, mut discarded) = (values.len(), 0.0);
    while rank > 0 && discarded + values[rank - 1] <= allowed {
        discarded += values[rank - 1];
        rank -= 1;
    }
    rank
}

/// `part / whole`, 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn trace(matrix: MatRef<'_, f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

/// `Σ a_ij b_ij`.
fn inner(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    let columns = a.col_iter().zip(b.col_iter());
    columns.map(|(a, b)| a.iter().zip(b.iter()).map(|(a, b)| a * b).sum::<f64>()).sum()
}
