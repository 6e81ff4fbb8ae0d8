//! How a dense FFN becomes E experts and a router: one file a method, one trait, one list.
//!
//! The methods differ in what diversity the experts start with and where it comes from, and
//! the comparison of the paper is a comparison of exactly this step. So a method sees one
//! layer's FFN, the evidence it asked for and named random streams, and nothing else: no
//! checkpoint, no tower, no training. What all methods share (checks before and after) is
//! [`upcycle_layer`]; to add a method see `docs/adding-a-method.md`.
//!
//! | method | experts | router |
//! |---|---|---|
//! | [`dense`](Dense) | none | none |
//! | [`sparse`](Sparse) | exact copies | random |
//! | [`drop`](Drop) | some hidden units redrawn | random |
//! | [`drop-svd`](DropSvd) | lowest singular directions redrawn | random |
//! | [`ders-lm`](DersLm) | one shared FFN and a product of low rank each | random |
//! | [`cluster-aware`](ClusterAware) | projected on their cluster's subspace | centroids |
//! | [`random-clusters`](RandomClusters) | the same from shuffled labels | centroids |
//! | [`random-subspace`](RandomSubspace) | random subspace of the same rank | centroids |
//! | [`svd-only`](SvdOnly) | as cluster-aware | random |
//! | [`router-only`](RouterOnly) | exact copies | centroids |
//!
//! Shapes: `fc1` `[h, d]`, `fc2` `[d, h]`, router `[E, d]`.

mod cluster_aware;
mod dense;
mod ders_lm;
mod drop;
mod drop_svd;
mod evidence;
mod ffn;
mod projection;
mod random_clusters;
mod random_subspace;
mod router;
mod router_only;
#[cfg(test)]
mod samples;
mod settings;
mod sparse;
mod streams;
mod svd_only;

pub use cluster_aware::ClusterAware;
pub use dense::Dense;
pub use ders_lm::{Deltas, DersLm};
pub use drop::Drop;
pub use drop_svd::DropSvd;
pub use evidence::{Evidence, ExpertBases, MatrixBasis};
pub use ffn::{DenseFfn, Experts};
pub use random_clusters::RandomClusters;
pub use random_subspace::RandomSubspace;
pub use router::{centroid_router, random_router};
pub use router_only::RouterOnly;
pub use settings::{Indices, Parameter, Settings, check_inits};
pub use sparse::Sparse;
pub use streams::Streams;
pub use svd_only::SvdOnly;

use crate::config::Labels;
use crate::error::{Error, Result, did_you_mean};

/// Compiles and runs the example of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/adding-a-method.md")]
struct Guide;

/// Every method, in the order of the tables.
static METHODS: &[&dyn Method] = &[
    &Dense,
    &Sparse,
    &Drop,
    &DropSvd,
    &DersLm,
    &ClusterAware,
    &RandomClusters,
    &RandomSubspace,
    &SvdOnly,
    &RouterOnly,
];

/// One way to turn a dense FFN into experts and a router.
pub trait Method: std::fmt::Debug + Sync {
    /// The name used in `pipeline.yaml`.
    fn name(&self) -> &'static str;

    /// Paper and address.
    fn reference(&self) -> &'static str;

    /// One sentence for `--help`.
    fn describe(&self) -> &'static str;

    /// What the method has to see besides the dense FFN.
    fn needs(&self) -> Needs;

    /// The parameters of `inits.<name>` the method takes; all others are refused.
    fn parameters(&self) -> &'static [Parameter];

    /// Whether the model stays dense: no layer is turned into experts.
    fn is_dense(&self) -> bool {
        false
    }

    /// Whether every expert is an exact copy of the dense FFN.
    fn copies(&self) -> bool {
        false
    }

    /// What tells the experts of one layer apart, where a method keeps one shared FFN instead
    /// of whole experts: the experts it makes are then copies.
    ///
    /// # Errors
    /// A rank above the layer's widths.
    fn deltas(
        &self,
        _dense: &DenseFfn,
        _settings: &Settings,
        _streams: &Streams<'_>,
    ) -> Result<Option<Deltas>> {
        Ok(None)
    }

    /// Makes the experts and the router of one layer.
    ///
    /// Inputs are checked: call it through [`upcycle_layer`]. Expert i depends on the
    /// evidence of expert i and its own stream, not on the number of experts.
    fn experts(
        &self,
        dense: &DenseFfn,
        evidence: &Evidence<'_>,
        settings: &Settings,
        streams: &Streams<'_>,
    ) -> Result<Experts>;
}

/// What a method reads besides the dense FFN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The layer's centroids `[E, d]`.
    pub centroids: bool,
    /// The experts' subspaces, computed from these labels.
    pub subspaces: Option<Labels>,
}

/// Every method, in the order of the tables.
pub fn methods() -> &'static [&'static dyn Method] {
    METHODS
}

/// The method of this name; the error names the nearest known one.
pub fn find(name: &str) -> Result<&'static dyn Method> {
    if let Some(method) = METHODS.iter().find(|method| method.name() == name) {
        return Ok(*method);
    }
    let hint = did_you_mean(name, METHODS.iter().map(|method| method.name()));
    Err(Error::usage(format!("there is no method named {name}{hint}")))
}

/// Upcycles one layer: checks what goes in, runs the method, checks what comes out.
///
/// # Errors
/// Tensors of wrong shape or with non-finite values, evidence that is missing or not what
/// it claims (centroids of unit length, orthonormal bases), a method without experts, and
/// two experts that are equal in weights and in router row: they would get the same
/// gradient for ever.
pub fn upcycle_layer(
    method: &dyn Method,
    dense: &DenseFfn,
    evidence: &Evidence<'_>,
    settings: &Settings,
    streams: &Streams<'_>,
) -> Result<Experts> {
    let place = streams.place();
    dense.check(place)?;
    evidence.check(method, dense, settings.experts(), place)?;
    let result = method.experts(dense, evidence, settings, streams)?;
    let named = format!("{place}, {}", method.name());
    result.check(dense, settings.experts(), &named)?;
    if !settings.allows_identical() {
        result.check_symmetry(&named)?;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{Parts, bits, ffn, run, settings};
    use super::*;
    use crate::linalg::Matrix;

    #[test]
    fn names_are_unique_and_found() {
        for method in methods() {
            assert_eq!(find(method.name()).unwrap().name(), method.name());
            assert!(method.reference().contains("https://"), "{}", method.name());
            assert!(method.describe().len() > 20, "{}", method.name());
        }
        let names: std::collections::BTreeSet<_> =
            methods().iter().map(|m| m.name()).collect();
        assert_eq!(names.len(), methods().len());
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
            assert_eq!(method.is_dense(), method.name() == "dense");
        }
    }

    #[test]
    fn the_shipped_configuration_passes() {
        let config =
            crate::config::load_default(&crate::config::Overrides::default()).unwrap();
        check_inits(&config.inits, &config.subspaces).unwrap();
        let used: std::collections::BTreeSet<_> =
            config.inits.values().map(|init| init.method.as_str()).collect();
        assert!(methods().iter().all(|method| used.contains(method.name())));
    }

    #[test]
    fn missing_evidence_is_named() {
        let parts = Parts::new(5, 7, 3, 2);
        let cases = [("router-only", "centroids"), ("svd-only", "subspaces")];
        for (name, missing) in cases {
            let method = find(name).unwrap();
            let error = upcycle_layer(
                method,
                &parts.dense,
                &Evidence::default(),
                &settings(method, 3),
                &Streams::new(1, "vision.1"),
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
        let streams = Streams::new(1, "text.0");
        let none = Evidence::default();
        // Redrawing a share of nothing leaves copies; only the result shows it.
        let method = find("drop").unwrap();
        let asked = |allowed: Option<bool>| {
            let settings = samples::settings_with(method, 3, |init| {
                init.ratio = Some(0.0);
                init.router_std = Some(0.0);
                init.allow_identical = allowed;
            });
            upcycle_layer(method, &parts.dense, &none, &settings, &streams)
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
            ("fc1 bias", DenseFfn { fc1_bias: vec![0.0; 5], ..good.clone() }),
            ("fc2", DenseFfn { fc2: Matrix::zeros(6, 4), ..good.clone() }),
            ("fc2 bias", DenseFfn { fc2_bias: vec![0.0; 6], ..good.clone() }),
            ("fc1", DenseFfn { fc1: Matrix::zeros(0, 4), ..good.clone() }),
            ("fc2 bias", DenseFfn { fc2_bias: vec![0.0, 0.0, f32::NAN, 0.0], ..good }),
        ];
        let method = find("sparse").unwrap();
        for (tensor, dense) in broken {
            let streams = Streams::new(1, "text.0");
            let settings = settings(method, 2);
            let error =
                upcycle_layer(method, &dense, &Evidence::default(), &settings, &streams)
                    .unwrap_err();
            let begin = format!("text.0: {tensor}: found");
            assert!(error.message().starts_with(&begin), "{error}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let parts = Parts::new(9, 14, 4, 3);
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        for method in methods().iter().filter(|method| !method.is_dense()) {
            let one = pool(1).unwrap().install(|| run(*method, &parts, 4, 3));
            let three = pool(3).unwrap().install(|| run(*method, &parts, 4, 3));
            assert_eq!(bits(&one), bits(&three), "{}", method.name());
        }
    }

    #[test]
    fn seeds_and_places_separate_random_methods() {
        let parts = Parts::new(6, 9, 2, 2);
        for name in ["sparse", "drop", "drop-svd", "random-subspace", "svd-only"] {
            let method = find(name).unwrap();
            let at = |seed, place| {
                let streams = Streams::new(seed, place);
                let settings = settings(method, 2);
                bits(
                    &upcycle_layer(
                        method,
                        &parts.dense,
                        &parts.evidence(),
                        &settings,
                        &streams,
                    )
                    .unwrap(),
                )
            };
            assert_eq!(at(1, "text.0"), at(1, "text.0"), "{name}");
            assert_ne!(at(1, "text.0"), at(2, "text.0"), "{name}");
            assert_ne!(at(1, "text.0"), at(1, "text.1"), "{name}");
        }
    }

    /// Fewer experts are a prefix of more: expert i sees only its own stream and evidence.
    #[test]
    fn an_expert_does_not_depend_on_how_many_there_are() {
        let parts = Parts::new(6, 9, 4, 2);
        let fewer = parts.first(2);
        for method in methods().iter().filter(|method| !method.is_dense()) {
            let four = run(*method, &parts, 4, 5);
            let two = run(*method, &fewer, 2, 5);
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
            for method in methods().iter().filter(|method| !method.is_dense()) {
                let made = run(*method, &parts, e, 11);
                prop_assert_eq!(made.experts.len(), e);
                prop_assert_eq!((made.router.rows(), made.router.cols()), (e, d));
                for expert in &made.experts {
                    prop_assert_eq!((expert.fc1.rows(), expert.fc1.cols()), (h, d));
                    prop_assert_eq!((expert.fc2.rows(), expert.fc2.cols()), (d, h));
                    prop_assert_eq!(expert.fc1_bias.len(), h);
                    prop_assert_eq!(expert.fc2_bias.len(), d);
                }
            }
        }
    }
}
