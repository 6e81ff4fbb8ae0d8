//! Cluster-aware upcycling and its controls: which experts, and which router.
//!
//! The method of the paper gives each expert what its cluster of tokens needs, and a router
//! that sends it that cluster. Each control changes one of the two and leaves the rest alone,
//! so that a difference between two rows of this table has one cause:
//!
//! | method | experts | router |
//! |---|---|---|
//! | `cluster-aware` | W projected on the subspace of the expert's cluster | centroids |
//! | `svd-only` | the same | random |
//! | `router-only` | exact copies: cluster-aware at τ = 1 | centroids |
//! | `random-clusters` | subspaces of shuffled labels | centroids |
//! | `mismatched-clusters` | those of cluster-aware, each dealt to another cluster | centroids |
//! | `random-subspace` | random subspaces of the same ranks, anywhere in output space | centroids |
//! | `random-subspace-rank` | random ones inside the column space of W, of the same ranks | centroids |
//! | `random-subspace-energy` | the same, as large as retaining τ takes | centroids |
//! | `soft-truncation` | those of cluster-aware, mixed with W by α | centroids |
//!
//! Shuffled labels make groups of equal statistics, so the experts of `random-clusters` are
//! nearly equal, and it loses the diversity together with the clusters. `mismatched-clusters`
//! keeps the experts exactly as far apart as cluster-aware does and takes only the match
//! away. `random-subspace` cuts away most of what W can express, because a direction outside
//! the column space of W carries no output; the two variants inside that space do not.
//! `soft-truncation` is ours: it breaks the symmetry of copies with less of the function lost.

use super::evidence::{ExpertSpaces, KeptSpace};
use super::projection::{Projection, project_ffn};
use super::{Form, LayerInput, MakeExperts, Method, Parameter, Router, SubspaceKind};
use crate::config::{Directions, Labels};
use crate::error::{Error, Result};
use crate::ffn::Ffn;
use crate::linalg::orthonormal;
use crate::linalg::wide::widened;
use crate::par;
use crate::rng::{SliceRandom, Stream};

const PAPER: &str = "Chu et al., Enhancing Mixture-of-Experts Specialization via Cluster-Aware \
                     Upcycling, CVPR 2026, https://arxiv.org/abs/2604.13508";

const CONTROL: &str =
    "control of this project for Chu et al., CVPR 2026, https://arxiv.org/abs/2604.13508";

/// The method and its controls, in the order of the tables.
pub(super) static CLUSTER_METHODS: [ClusterMethod; 9] = [
    ClusterMethod {
        name: "cluster-aware",
        reference: PAPER,
        about: "experts projected on the subspace of their token cluster; centroid router",
        experts: ExpertSource::Subspaces(CLUSTERS),
        router: Router::Centroids,
    },
    ClusterMethod {
        name: "random-clusters",
        reference: CONTROL,
        about: "as cluster-aware, but the subspaces come from shuffled labels; centroid router",
        experts: ExpertSource::Subspaces(SubspaceKind {
            labels: Labels::Shuffled,
            ..CLUSTERS
        }),
        router: Router::Centroids,
    },
    ClusterMethod {
        name: "mismatched-clusters",
        reference: CONTROL,
        about: "the experts of cluster-aware, each dealt to another cluster; centroid router",
        experts: ExpertSource::Mismatched,
        router: Router::Centroids,
    },
    ClusterMethod {
        name: "random-subspace",
        reference: CONTROL,
        about: "as cluster-aware, but the subspaces are random, of the same ranks; centroid \
                router",
        experts: ExpertSource::Random,
        router: Router::Centroids,
    },
    ClusterMethod {
        name: "random-subspace-rank",
        reference: CONTROL,
        about: "as random-subspace, but drawn inside the column space of W; centroid router",
        experts: ExpertSource::Subspaces(SubspaceKind {
            directions: Directions::RandomRank,
            ..CLUSTERS
        }),
        router: Router::Centroids,
    },
    ClusterMethod {
        name: "random-subspace-energy",
        reference: CONTROL,
        about: "random subspaces inside the column space of W that retain the energy tau; \
                centroid router",
        experts: ExpertSource::Subspaces(SubspaceKind {
            directions: Directions::RandomEnergy,
            ..CLUSTERS
        }),
        router: Router::Centroids,
    },
    ClusterMethod {
        name: "soft-truncation",
        reference: "a method of this project beside Chu et al., CVPR 2026, \
                    https://arxiv.org/abs/2604.13508",
        about: "as cluster-aware, but only the part `alpha` of what the subspace discards is \
                taken away; centroid router",
        experts: ExpertSource::Soft,
        router: Router::Centroids,
    },
    ClusterMethod {
        name: "svd-only",
        reference: CONTROL,
        about: "the experts of cluster-aware; random router",
        experts: ExpertSource::Subspaces(CLUSTERS),
        router: Router::Random,
    },
    ClusterMethod {
        name: "router-only",
        reference: CONTROL,
        about: "every expert is an exact copy of the dense FFN; centroid router",
        experts: ExpertSource::Copies,
        router: Router::Centroids,
    },
];

/// The subspaces of the paper: top directions of the clusters that k-means found.
const CLUSTERS: SubspaceKind =
    SubspaceKind { labels: Labels::Clusters, directions: Directions::Top };

/// One combination of experts and a router.
#[derive(Debug)]
pub(super) struct ClusterMethod {
    name: &'static str,
    reference: &'static str,
    about: &'static str,
    experts: ExpertSource,
    router: Router,
}

/// Where the experts come from.
#[derive(Debug, Clone, Copy)]
enum ExpertSource {
    /// Exact copies.
    Copies,
    /// The dense FFN projected on subspaces of this kind.
    Subspaces(SubspaceKind),
    /// Projected on the clusters' subspaces, none on that of its own cluster.
    Mismatched,
    /// Projected on random subspaces of the clusters' ranks, anywhere in output space.
    Random,
    /// Part of the way from the dense FFN to the projection on the clusters' subspaces.
    Soft,
}

impl Method for ClusterMethod {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reference(&self) -> &'static str {
        self.reference
    }

    fn describe(&self) -> &'static str {
        self.about
    }

    fn subspaces(&self) -> Option<SubspaceKind> {
        match self.experts {
            ExpertSource::Copies => None,
            ExpertSource::Subspaces(kind) => Some(kind),
            // The random draw anywhere takes the ranks and means of the clusters' subspaces.
            ExpertSource::Mismatched | ExpertSource::Random | ExpertSource::Soft => {
                Some(CLUSTERS)
            }
        }
    }

    fn parameters(&self) -> &'static [Parameter] {
        match self.experts {
            ExpertSource::Soft => &[Parameter::Alpha],
            _ => &[],
        }
    }

    fn form(&self) -> Form<'_> {
        match self.experts {
            ExpertSource::Copies => Form::Copies(self.router),
            _ => Form::Experts(self.router, self),
        }
    }
}

impl MakeExperts for ClusterMethod {
    fn experts(&self, layer: &LayerInput<'_>) -> Result<Vec<Ffn>> {
        let found = layer.evidence.subspaces(self, layer.streams.place())?;
        let count = found.len();

        Ok(match self.experts {
            ExpertSource::Copies => vec![layer.dense.copied(); count],
            ExpertSource::Subspaces(_) => projected(layer, count, |e| &found[e], 1.0),
            ExpertSource::Soft => {
                projected(layer, count, |e| &found[e], layer.settings.alpha())
            }
            ExpertSource::Mismatched => {
                let dealt = self.dealt(layer, count)?;
                projected(layer, count, |e| &found[dealt[e]], 1.0)
            }
            ExpertSource::Random => par::map(count, |e| {
                // A stream per expert, so that one more expert changes no earlier one.
                let mut stream = layer.streams.expert(self.name, e);
                let (h, d) = (layer.dense.hidden(), layer.dense.width());

                let fc1 = random_like(&found[e].fc1, h, &mut stream);
                let fc2 = random_like(&found[e].fc2, d, &mut stream);

                project_ffn(layer.dense, &fc1, &fc2)
            }),
        })
    }
}

impl ClusterMethod {
    /// Whose subspaces each expert gets: a uniformly random permutation without a fixed
    /// point. It belongs to all experts together, so it changes with their number.
    fn dealt(&self, layer: &LayerInput<'_>, count: usize) -> Result<Vec<usize>> {
        if count < 2 {
            let (place, name) = (layer.streams.place(), self.name);
            return Err(Error::usage(format!(
                "{place}: method {name} deals each expert to another cluster, but found \
                 {count}; expected moe.experts of at least 2"
            )));
        }

        // Rejection keeps the draw uniform; e = 2.7 shuffles are expected at any count.
        let mut stream = layer.streams.layer(self.name);
        let mut dealt: Vec<usize> = (0..count).collect();
        while dealt.iter().enumerate().any(|(expert, of)| expert == *of) {
            dealt.shuffle(&mut stream);
        }
        Ok(dealt)
    }
}

/// The dense FFN projected for each expert on the spaces it is given (METHOD §2.3).
fn projected<'a>(
    layer: &LayerInput<'_>,
    count: usize,
    spaces: impl Fn(usize) -> &'a ExpertSpaces + Sync + Send,
    alpha: f64,
) -> Vec<Ffn> {
    let onto = |space: &'a KeptSpace| Projection {
        basis: space.basis.as_ref().map(widened),
        mean: space.mean.as_deref(),
        alpha,
    };

    // Experts are independent of each other: order and threads change no bit.
    par::map(count, |expert| {
        let ExpertSpaces { fc1, fc2 } = spaces(expert);
        project_ffn(layer.dense, &onto(fc1), &onto(fc2))
    })
}

/// A random subspace of the same rank, with the same mean. A matrix of full rank stays whole.
fn random_like<'a>(
    found: &'a KeptSpace,
    outputs: usize,
    stream: &mut Stream,
) -> Projection<'a> {
    let rank = found.rank(outputs);

    // The mean stays the cluster's, so that this control changes the directions alone.
    let basis = (rank < outputs).then(|| orthonormal::random(outputs, rank, stream));
    Projection { basis, mean: found.mean.as_deref(), alpha: 1.0 }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{
        Parts, bits, distance, run, run_with, settings_with, upcycle,
    };
    use super::super::{Experts, Sparse, find};
    use super::*;
    use crate::linalg::Matrix;

    fn made(name: &str, parts: &Parts, n: usize) -> Experts {
        run(find(name).unwrap(), parts, n, 1)
    }

    fn fc1(ffn: &Ffn) -> Matrix {
        let h = ffn.fc1_bias.len();
        Matrix::new(h, ffn.fc1.len() / h, ffn.fc1.clone()).unwrap()
    }

    fn fc2(ffn: &Ffn) -> Matrix {
        let d = ffn.fc2_bias.len();
        Matrix::new(d, ffn.fc2.len() / d, ffn.fc2.clone()).unwrap()
    }

    #[test]
    fn full_rank_returns_the_dense_ffn_bit_for_bit() {
        let mut parts = Parts::new(5, 9, 3, 2);
        parts.subspaces = vec![ExpertSpaces::default(); 3];
        let cluster_aware = made("cluster-aware", &parts, 3);
        assert!(cluster_aware.experts.iter().all(|expert| *expert == parts.dense));
        assert_eq!(cluster_aware, made("router-only", &parts, 3));
        assert_eq!(cluster_aware, made("random-subspace", &parts, 3));
    }

    /// The slow reference: the out × out projector written out, entry by entry.
    fn reference(w: &Matrix, basis: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(w.rows(), w.cols());
        for i in 0..w.rows() {
            for j in 0..w.cols() {
                let entry: f64 = (0..w.rows())
                    .map(|k| {
                        let p: f64 = (0..basis.cols())
                            .map(|r| {
                                f64::from(basis.row(i)[r]) * f64::from(basis.row(k)[r])
                            })
                            .sum();
                        p * f64::from(w.row(k)[j])
                    })
                    .sum();
                out.row_mut(i)[j] = crate::num::round_f32(entry);
            }
        }
        out
    }

    #[test]
    fn experts_are_the_dense_matrices_projected() {
        let parts = Parts::new(5, 9, 3, 2);
        let made = made("cluster-aware", &parts, 3);
        for (expert, spaces) in made.experts.iter().zip(&parts.subspaces) {
            let slow = reference(&fc1(&parts.dense), spaces.fc1.basis.as_ref().unwrap());
            assert!(distance(&fc1(expert), &slow) < 1e-6);
            let slow = reference(&fc2(&parts.dense), spaces.fc2.basis.as_ref().unwrap());
            assert!(distance(&fc2(expert), &slow) < 1e-6);
        }
    }

    #[test]
    fn biases_move_only_with_a_mean() {
        let mut parts = Parts::new(5, 9, 2, 2);
        let moved = made("cluster-aware", &parts, 2);
        assert_ne!(moved.experts[0].fc1_bias, parts.dense.fc1_bias);
        assert_ne!(moved.experts[0].fc2_bias, parts.dense.fc2_bias);
        for spaces in &mut parts.subspaces {
            spaces.fc1.mean = None;
            spaces.fc2.mean = None;
        }
        let plain = made("cluster-aware", &parts, 2);
        assert_eq!(plain.experts[0].fc1_bias, parts.dense.fc1_bias);
        assert_eq!(plain.experts[0].fc2_bias, parts.dense.fc2_bias);
        assert_eq!(plain.experts[0].fc1, moved.experts[0].fc1);
    }

    #[test]
    fn each_control_changes_the_experts_or_the_router_and_not_both() {
        let parts = Parts::new(5, 9, 3, 2);
        let method = made("cluster-aware", &parts, 3);
        assert_eq!(method.router, parts.centroids);
        for row in &CLUSTER_METHODS[1..] {
            let control = made(row.name, &parts, 3);
            // Given equal evidence, controls that differ in the evidence alone are the method.
            let same_experts = matches!(row.experts, ExpertSource::Subspaces(_));
            assert_eq!(control.experts == method.experts, same_experts, "{}", row.name);
            let same_router = row.router == Router::Centroids;
            assert_eq!(control.router == method.router, same_router, "{}", row.name);
        }
    }

    /// Runs of one seed share the router, so they differ in the experts alone.
    #[test]
    fn the_random_router_is_that_of_sparse_upcycling() {
        let parts = Parts::new(5, 9, 3, 2);
        let (control, sparse) = (made("svd-only", &parts, 3), run(&Sparse, &parts, 3, 1));
        assert_eq!(control.router, sparse.router);
        assert_ne!(control.experts, sparse.experts);
    }

    #[test]
    fn router_only_is_exact_copies() {
        let parts = Parts::new(5, 9, 4, 2);
        let made = made("router-only", &parts, 4);
        assert!(made.experts.iter().all(|expert| *expert == parts.dense));
    }

    #[test]
    fn a_soft_truncation_goes_from_router_only_to_cluster_aware() {
        let parts = Parts::new(6, 10, 3, 2);
        let method = find("soft-truncation").unwrap();
        let soft = |alpha| {
            let settings = settings_with(method, 3, |init| init.alpha = Some(alpha));
            run_with(method, &parts, &settings, 1)
        };
        assert_eq!(bits(&soft(1.0)), bits(&made("cluster-aware", &parts, 3)));
        assert_eq!(bits(&soft(0.0)), bits(&made("router-only", &parts, 3)));
        let half = soft(0.5);
        let ends = (soft(0.0), soft(1.0));
        for (e, expert) in half.experts.iter().enumerate() {
            let (whole, cut) = (&ends.0.experts[e].fc1, &ends.1.experts[e].fc1);
            for ((v, a), b) in expert.fc1.iter().zip(whole).zip(cut) {
                assert!((v - f32::midpoint(*a, *b)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn mismatched_experts_are_those_of_the_method_none_in_its_place() {
        let parts = Parts::new(5, 9, 5, 2);
        let method = made("cluster-aware", &parts, 5);
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let control = run(find("mismatched-clusters").unwrap(), &parts, 5, seed);
            let place = |expert| method.experts.iter().position(|own| own == expert);
            let dealt: Vec<usize> =
                control.experts.iter().map(|expert| place(expert).unwrap()).collect();
            assert!(dealt.iter().enumerate().all(|(expert, of)| expert != *of));
            let mut sorted = dealt.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            orders.insert(dealt);
        }
        // All 44 permutations of five without a fixed point come up, or nearly all.
        assert!((35..=44).contains(&orders.len()), "{}", orders.len());

        let method = find("mismatched-clusters").unwrap();
        let alone = Parts::new(5, 9, 1, 2);
        let settings = settings_with(method, 1, |_| ());
        let error = upcycle(method, &alone, &settings, 1, "text.1").unwrap_err();
        assert!(error.message().contains("moe.experts of at least 2"), "{error}");
    }

    fn rank(matrix: &Matrix) -> usize {
        let values = widened(matrix).singular_values().unwrap();
        values.iter().filter(|&&v| v > 1e-5 * values[0]).count()
    }

    #[test]
    fn random_subspaces_keep_ranks_and_not_directions() {
        let mut parts = Parts::new(6, 9, 3, 2);
        parts.subspaces[1].fc2 = KeptSpace::default();
        let control = made("random-subspace", &parts, 3);
        let method = made("cluster-aware", &parts, 3);
        for (ours, theirs) in control.experts.iter().zip(&method.experts) {
            assert_eq!(rank(&fc1(ours)), rank(&fc1(theirs)));
            assert_eq!(rank(&fc2(ours)), rank(&fc2(theirs)));
            assert_ne!(ours.fc1, theirs.fc1);
        }
        assert_eq!(control.experts[1].fc2, parts.dense.fc2);
        assert_ne!(control.experts[0].fc1, control.experts[2].fc1);
    }
}
