//! How a dense FFN becomes E experts and a router: one trait, one list.
//!
//! The methods differ in what diversity the experts start with and where it comes from, and
//! the comparison of the paper is a comparison of exactly this step. So a method sees one
//! [`LayerInput`]: the FFN, the evidence it asked for and named random streams, and nothing else:
//! no checkpoint, no tower, no training. What all methods share (the router, and the checks
//! before and after) is [`upcycle_layer`]; to add a method see `docs/adding-a-method.md`.
//!
//! | method | experts | router |
//! |---|---|---|
//! | [`dense`](Dense) | none | none |
//! | [`sparse`](Sparse) | exact copies | random |
//! | [`drop`](Drop) | some hidden units redrawn | random |
//! | [`drop-svd`](DropSvd) | lowest singular directions redrawn | random |
//! | [`ders-lm`](DersLm) | one shared FFN and a product of low rank each | random |
//! | `cluster-aware` and its controls | `cluster_aware.rs` has their table | as named |
//!
//! Shapes: `fc1` `[h, d]`, `fc2` `[d, h]`, router `[E, d]`.

mod check;
mod cluster_aware;
mod dense;
mod ders_lm;
mod drop;
mod drop_svd;
mod evidence;
mod projection;
mod router;
#[cfg(test)]
mod samples;
mod settings;
mod sparse;
mod streams;

pub use dense::Dense;
pub use ders_lm::DersLm;
pub use drop::Drop;
pub use drop_svd::DropSvd;
pub use evidence::{Evidence, ExpertSpaces, KeptSpace};
pub use router::Router;
pub use settings::{Indices, Parameter, Settings, check_inits};
pub use sparse::Sparse;
pub use streams::Streams;

use crate::config::{Directions, Labels};
use crate::error::{Error, Result, did_you_mean};
use crate::ffn::{Ffn, FfnTensors};
use crate::linalg::Matrix;

/// Compiles and runs the example of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/adding-a-method.md")]
struct Guide;

/// The methods of the other files, in the order of the tables.
static METHODS: &[&dyn Method] = &[&Dense, &Sparse, &Drop, &DropSvd, &DersLm];

/// One way to turn a dense FFN into experts and a router.
pub trait Method: std::fmt::Debug + Sync {
    /// The name used in `pipeline.yaml`.
    fn name(&self) -> &'static str;

    /// Paper and address.
    fn reference(&self) -> &'static str;

    /// One sentence for `--help`.
    fn describe(&self) -> &'static str;

    /// What the method makes of an FFN, known before any layer is seen.
    fn form(&self) -> Form<'_>;

    /// The kind of subspaces that the method reads, if it reads any.
    fn subspaces(&self) -> Option<SubspaceKind> {
        None
    }

    /// The parameters of `inits.<name>` that the method takes besides that of its router; all
    /// others are refused.
    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    /// What has to be found out about a layer before the method can run.
    fn needs(&self) -> Needs {
        // Only the router reads centroids; experts read subspaces.
        let centroids = self.form().router() == Some(Router::Centroids);
        Needs { centroids, subspaces: self.subspaces() }
    }
}

/// What becomes of an FFN, and who makes it.
#[derive(Debug, Clone, Copy)]
pub enum Form<'m> {
    /// No experts: the model stays dense.
    Dense,
    /// Exact copies of the FFN, which the router alone tells apart.
    Copies(Router),
    /// Whole experts.
    Experts(Router, &'m dyn MakeExperts),
    /// One shared FFN, and for each expert a product of low rank; all begin as copies.
    LowRank(Router, &'m dyn MakeDeltas),
}

impl Form<'_> {
    /// Whether the model stays dense: no layer is turned into experts.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense)
    }

    /// The router, if there are experts.
    pub fn router(&self) -> Option<Router> {
        match self {
            Self::Dense => None,
            Self::Copies(router)
            | Self::Experts(router, _)
            | Self::LowRank(router, _) => Some(*router),
        }
    }
}

/// A method that makes whole experts.
pub trait MakeExperts: Method {
    /// The experts of one layer, whose inputs are checked: call it by [`upcycle_layer`].
    ///
    /// Expert i depends on the evidence of expert i and its own stream, not on the number of
    /// experts, unless the method says otherwise.
    fn experts(&self, layer: &LayerInput<'_>) -> Result<Vec<Ffn>>;
}

/// A method whose experts share one FFN.
pub trait MakeDeltas: Method {
    /// What tells the experts of one layer apart, of the rank given.
    ///
    /// # Errors
    /// A rank above the layer's widths.
    fn deltas(&self, layer: &LayerInput<'_>, rank: usize) -> Result<Deltas>;
}

/// One layer as a method sees it.
#[derive(Debug, Clone, Copy)]
pub struct LayerInput<'a> {
    /// The dense FFN.
    pub dense: FfnTensors<'a>,
    /// What was found out about the layer.
    pub evidence: Evidence<'a>,
    /// The method's parameters.
    pub settings: &'a Settings,
    /// Where random draws come from, and the layer's name.
    pub streams: Streams<'a>,
}

/// What a method has made of one layer.
#[derive(Debug, Clone, PartialEq)]
pub enum Upcycled {
    /// Nothing: the FFN stays.
    Dense,
    /// Whole experts.
    Experts(Experts),
    /// Experts that share the dense FFN.
    LowRank(LowRankExperts),
}

/// The experts of one layer and their router.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// E experts, each of the dense FFN's shape.
    pub experts: Vec<Ffn>,
    /// Wr `[E, d]`, without bias.
    pub router: Matrix,
}

/// The deltas of one layer's experts and their router; the shared FFN is the dense one.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankExperts {
    /// What tells the experts apart.
    pub deltas: Deltas,
    /// Wr `[E, d]`, without bias.
    pub router: Matrix,
}

/// The A of a layer's products `B_e A_e`; the B begin at zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Deltas {
    /// Of the first layer [E, r, d].
    pub fc1_down: Vec<f32>,
    /// Of the second layer [E, r, h].
    pub fc2_down: Vec<f32>,
}

/// What a method reads besides the dense FFN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The layer's centroids `[E, d]`.
    pub centroids: bool,
    /// The experts' subspaces, of this kind.
    pub subspaces: Option<SubspaceKind>,
}

/// A kind of subspaces: whose labels, and which directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubspaceKind {
    /// The labels that group the tokens.
    pub labels: Labels,
    /// The directions kept of each group's outputs.
    pub directions: Directions,
}

/// Every method, in the order of the tables.
pub fn methods() -> impl Iterator<Item = &'static dyn Method> {
    let cluster_methods = cluster_aware::CLUSTER_METHODS.iter();
    METHODS.iter().copied().chain(cluster_methods.map(|method| method as &dyn Method))
}

/// The method of this name; the error names the nearest known one.
pub fn find(name: &str) -> Result<&'static dyn Method> {
    if let Some(method) = methods().find(|method| method.name() == name) {
        return Ok(method);
    }
    let hint = did_you_mean(name, methods().map(Method::name));
    Err(Error::usage(format!("there is no method named {name}{hint}")))
}

/// Upcycles one layer: checks what goes in, runs the method, checks what comes out.
///
/// # Errors
/// Tensors of the wrong shape or with non-finite values, evidence that is missing or not what
/// it claims (centroids of unit length, orthonormal bases), and two experts that are equal in
/// weights and in router row: they would get the same gradient forever.
pub fn upcycle_layer(method: &dyn Method, layer: &LayerInput<'_>) -> Result<Upcycled> {
    let LayerInput { dense, evidence, settings, streams } = layer;
    let (place, name, n_experts) = (streams.place(), method.name(), settings.experts());

    // Inputs come from files, so they are checked before any method computes with them.
    check::check_dense(*dense, place)?;
    evidence.check(method, *dense, n_experts, place)?;

    let (router, experts) = match method.form() {
        Form::Dense => return Ok(Upcycled::Dense),
        Form::Copies(router) => (router, vec![dense.copied(); n_experts]),
        Form::Experts(router, maker) => (router, maker.experts(layer)?),
        Form::LowRank(router, maker) => return low_rank(method, layer, router, maker),
    };
    let made = Experts { experts, router: router.of(method, layer)? };

    // Whatever the method made must be a layer that can be trained.
    let here = format!("{place}, {name}");
    made.check(*dense, n_experts, &here)?;
    if !settings.allows_identical() {
        made.check_symmetry(&here)?;
    }
    Ok(Upcycled::Experts(made))
}

/// As [`upcycle_layer`], for a method whose experts share one FFN.
fn low_rank(
    method: &dyn Method,
    layer: &LayerInput<'_>,
    router: Router,
    maker: &dyn MakeDeltas,
) -> Result<Upcycled> {
    let LayerInput { dense, settings, streams, .. } = layer;
    let here = format!("{}, {}", streams.place(), method.name());
    let rank = settings.rank().ok_or_else(|| {
        Error::usage(format!("{here}: rank: found none, expected at least 1"))
    })?;

    let deltas = maker.deltas(layer, rank)?;

    let made = LowRankExperts { deltas, router: router.of(method, layer)? };
    made.check(*dense, [settings.experts(), rank], &here)?;
    if !settings.allows_identical() {
        made.check_symmetry(&here)?;
    }
    Ok(Upcycled::LowRank(made))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{Parts, bits, ffn, run, settings, settings_with, upcycle};
    use super::*;

    /// The methods that make experts.
    fn mixtures() -> impl Iterator<Item = &'static dyn Method> {
        methods().filter(|method| !method.form().is_dense())
    }

    #[test]
    fn names_are_unique_and_found() {
        for method in methods() {
            assert_eq!(find(method.name()).unwrap().name(), method.name());
            assert!(method.reference().contains("https://"), "{}", method.name());
            assert!(method.describe().len() > 20, "{}", method.name());
        }
        let names: std::collections::BTreeSet<_> = methods().map(Method::name).collect();
        assert_eq!(names.len(), methods().count());
    }

    #[test]
    fn an_unknown_name_meets_the_nearest_known_one() {
        let error = find("cluster_aware").unwrap_err();
        assert!(error.message().contains("did you mean cluster-aware?"), "{error}");
        assert!(find("drop-svdd").unwrap_err().message().contains("mean drop-svd?"));
    }

    #[test]
    fn only_the_dense_method_is_dense() {
        for method in methods() {
            assert_eq!(method.form().is_dense(), method.name() == "dense");
        }
    }

    #[test]
    fn the_shipped_configuration_passes_and_its_full_profile_has_every_method() {
        for profile in [None, Some("full".to_owned())] {
            let full = profile.is_some();
            let overrides = crate::config::Overrides { profile, set: vec![] };
            let config = crate::config::load_default(&overrides).unwrap();
            check_inits(&config.inits, &config.subspaces).unwrap();
            let runs = config.runs.values().map(|run| &config.inits[&run.init]);
            let used: std::collections::BTreeSet<_> =
                runs.map(|init| init.method.as_str()).collect();
            let all = methods().all(|method| used.contains(method.name()));
            assert_eq!(all, full);
        }
    }

    #[test]
    fn missing_evidence_is_named() {
        let parts = Parts::new(5, 7, 3, 2);
        let cases = [("router-only", "centroids"), ("svd-only", "subspaces")];
        for (name, missing) in cases {
            let method = find(name).unwrap();
            let error = upcycle_layer(
                method,
                &LayerInput {
                    dense: parts.dense.tensors(),
                    evidence: Evidence::default(),
                    settings: &settings(method, 3),
                    streams: Streams::new(1, "vision.1"),
                },
            )
            .unwrap_err();
            assert!(error.message().contains("vision.1"), "{error}");
            assert!(error.message().contains(name), "{error}");
            assert!(error.message().contains(missing), "{error}");
        }
    }

    #[test]
    fn equal_experts_behind_an_equal_router_are_refused_unless_asked_for() {
        let parts = Parts::new(4, 6, 3, 2);
        // Redrawing a fraction of nothing leaves copies; only the result shows it.
        let method = find("drop").unwrap();
        let asked = |allowed: Option<bool>| {
            let settings = settings_with(method, 3, |init| {
                init.ratio = Some(0.0);
                init.router_std = Some(0.0);
                init.allow_identical = allowed;
            });
            upcycle(method, &parts, &settings, 1, "text.0")
        };
        let error = asked(None).unwrap_err();
        assert!(error.message().contains("experts 0 and 1"), "{error}");
        assert!(error.message().contains("drop"), "{error}");
        assert!(asked(Some(true)).is_ok());
    }

    #[test]
    fn copies_with_a_silent_router_are_refused_by_the_configuration() {
        let init = |allow_identical: Option<bool>| {
            let sparse = samples::init_of(find("sparse").unwrap());
            crate::config::InitConfig { router_std: Some(0.0), allow_identical, ..sparse }
        };
        let check = |init| check_inits(&[("twins".to_owned(), init)].into(), &[].into());
        let error = check(init(None)).unwrap_err();
        assert!(error.message().contains("inits.twins: router_std"), "{error}");
        check(init(Some(true))).unwrap();
    }

    #[test]
    fn malformed_dense_tensors_are_named() {
        let good = ffn(4, 6, 1);
        let broken = [
            ("fc1", Ffn { fc1_bias: vec![0.0; 5], ..good.clone() }),
            ("fc2", Ffn { fc2: vec![0.0; 25], ..good.clone() }),
            ("FFN", Ffn { fc2_bias: vec![], ..good.clone() }),
            ("fc2 bias", Ffn { fc2_bias: vec![0.0, 0.0, f32::NAN, 0.0], ..good }),
        ];
        let method = find("sparse").unwrap();
        for (tensor, dense) in broken {
            let parts = Parts { dense, ..Parts::new(4, 6, 2, 2) };
            let made = upcycle(method, &parts, &settings(method, 2), 1, "text.0");
            let error = made.unwrap_err();
            let begin = format!("text.0: {tensor}: found");
            assert!(error.message().starts_with(&begin), "{error}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let parts = Parts::new(9, 14, 4, 3);
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        for method in mixtures() {
            let one = pool(1).unwrap().install(|| run(method, &parts, 4, 3));
            let three = pool(3).unwrap().install(|| run(method, &parts, 4, 3));
            assert_eq!(bits(&one), bits(&three), "{}", method.name());
        }
    }

    #[test]
    fn seeds_and_places_separate_random_methods() {
        let parts = Parts::new(6, 9, 2, 2);
        for name in ["sparse", "drop", "drop-svd", "random-subspace", "svd-only"] {
            let method = find(name).unwrap();
            let at = |seed, place| match upcycle(
                method,
                &parts,
                &settings(method, 2),
                seed,
                place,
            ) {
                Ok(Upcycled::Experts(made)) => bits(&made),
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(at(1, "text.0"), at(1, "text.0"), "{name}");
            assert_ne!(at(1, "text.0"), at(2, "text.0"), "{name}");
            assert_ne!(at(1, "text.0"), at(1, "text.1"), "{name}");
        }
    }

    /// Fewer experts are a prefix of more: expert i sees only its own stream and evidence.
    /// Dealing clusters out is a permutation of all experts, which has no prefix.
    #[test]
    fn an_expert_does_not_depend_on_how_many_there_are() {
        let parts = Parts::new(6, 9, 4, 2);
        let fewer = parts.first(2);
        for method in mixtures().filter(|m| m.name() != "mismatched-clusters") {
            let four = run(method, &parts, 4, 5);
            let two = run(method, &fewer, 2, 5);
            assert_eq!(four.experts[..2], two.experts[..], "{}", method.name());
            assert_eq!(four.router.row(1), two.router.row(1), "{}", method.name());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        // From d = 2: one dimension has two unit vectors, too few distinct centroids.
        #[test]
        fn every_method_keeps_the_shapes(
            d in 2_usize..12, h in 1_usize..20, e in 1_usize..6, rank in 1_usize..12,
        ) {
            let parts = Parts::new(d, h, e, rank);
            // One expert alone cannot be dealt to another cluster.
            for method in mixtures().filter(|m| e > 1 || m.name() != "mismatched-clusters") {
                let made = run(method, &parts, e, 11);
                prop_assert_eq!(made.experts.len(), e);
                prop_assert_eq!((made.router.rows(), made.router.cols()), (e, d));
                for expert in &made.experts {
                    prop_assert_eq!((expert.fc1.len(), expert.fc2.len()), (h * d, d * h));
                    prop_assert_eq!(expert.fc1_bias.len(), h);
                    prop_assert_eq!(expert.fc2_bias.len(), d);
                }
            }
        }
    }
}
