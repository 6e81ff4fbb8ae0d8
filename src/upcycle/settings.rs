//! The parameters of one initialization: typed as in `pipeline.yaml`, checked once against
//! what its method takes.
//!
//! A parameter that a method ignores would make two equal runs look different, so it is an
//! error and not a default.

use std::collections::BTreeMap;

use super::{Form, Method, Router, find};
use crate::config::{InitConfig, SubspacesConfig};
use crate::error::{Error, Result};

/// Standard deviation of random routers unless the configuration says otherwise
/// (METHOD §3, the value of sparse upcycling for all methods with a random router).
const ROUTER_STD: f64 = 0.02;

/// A parameter of an entry of `inits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// `ratio`; a method that takes it needs it.
    Ratio,
    /// `rank`; a method that takes it needs it.
    Rank,
    /// `alpha`; a method that takes it needs it.
    Alpha,
    /// `independent_indices`.
    IndependentIndices,
    /// `router_scale`.
    RouterScale,
    /// `router_std`.
    RouterStd,
}

impl Router {
    /// The parameter that this router takes.
    pub(super) fn parameter(self) -> Parameter {
        match self {
            Self::Random => Parameter::RouterStd,
            Self::Centroids => Parameter::RouterScale,
        }
    }
}

impl Parameter {
    /// The key in `pipeline.yaml`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::Rank => "rank",
            Self::Alpha => "alpha",
            Self::IndependentIndices => "independent_indices",
            Self::RouterScale => "router_scale",
            Self::RouterStd => "router_std",
        }
    }
}

/// Whether the two matrices of an FFN lose the same hidden units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indices {
    /// One index set for the rows of `fc1` and the columns of `fc2`.
    Shared,
    /// One index set for each matrix.
    Independent,
}

/// Checked parameters: what a method runs on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    experts: usize,
    ratio: f64,
    rank: Option<usize>,
    alpha: f64,
    indices: Indices,
    router_scale: f64,
    router_std: f64,
    identical: bool,
}

impl Settings {
    /// Checks the parameters of `init` for `method` and fills in the defaults.
    ///
    /// # Errors
    /// A parameter that the method does not take, a missing `ratio`, `rank` or `alpha`,
    /// `subspaces` given to a method that reads none or absent for one that does, and values
    /// out of range.
    pub fn new(method: &dyn Method, init: &InitConfig, experts: usize) -> Result<Self> {
        if experts == 0 {
            return Err(Error::usage("moe.experts: found 0, expected at least 1"));
        }
        refuse_others(method, init)?;
        refuse_missing(method, init)?;

        // The defaults of METHOD §3. A method without a ratio or an alpha never reads
        // them.
        let settings = Self {
            experts,
            ratio: init.ratio.unwrap_or(0.0),
            rank: init.rank,
            alpha: init.alpha.unwrap_or(1.0),
            indices: match init.independent_indices {
                Some(true) => Indices::Independent,
                Some(false) | None => Indices::Shared,
            },
            router_scale: init.router_scale.unwrap_or(1.0),
            router_std: init.router_std.unwrap_or(ROUTER_STD),
            identical: init.allow_identical.unwrap_or(false),
        };

        settings.check_ranges()?;
        settings.refuse_twins(method)?;
        Ok(settings)
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Fraction of hidden units or singular directions that is drawn anew, 0 to 1.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// Rank of the experts' deltas, at least 1, of a method that makes them.
    pub fn rank(&self) -> Option<usize> {
        self.rank
    }

    /// Part of the discarded outputs that is taken away, 0 to 1.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Whether both matrices lose the same hidden units.
    pub fn indices(&self) -> Indices {
        self.indices
    }

    /// Factor on centroid routers, above 0.
    pub fn router_scale(&self) -> f64 {
        self.router_scale
    }

    /// Whether equal experts with equal router rows are accepted.
    pub fn allows_identical(&self) -> bool {
        self.identical
    }

    /// Standard deviation of random routers, 0 or more.
    pub fn router_std(&self) -> f64 {
        self.router_std
    }

    fn check_ranges(&self) -> Result<()> {
        let ratio = (0.0..=1.0).contains(&self.ratio);
        in_range(ratio, Parameter::Ratio, self.ratio, "0 to 1")?;

        let alpha = (0.0..=1.0).contains(&self.alpha);
        in_range(alpha, Parameter::Alpha, self.alpha, "0 to 1")?;

        let scale = self.router_scale > 0.0 && self.router_scale.is_finite();
        in_range(scale, Parameter::RouterScale, self.router_scale, "above 0")?;

        let std = self.router_std >= 0.0 && self.router_std.is_finite();
        in_range(std, Parameter::RouterStd, self.router_std, "0 or more")
    }

    /// Refuses equal experts behind a router of zeros, before any layer is made: training
    /// could never tell them apart.
    fn refuse_twins(&self, method: &dyn Method) -> Result<()> {
        let form = method.form();

        let twins = matches!(
            form,
            Form::Copies(Router::Random) | Form::LowRank(Router::Random, _)
        );
        if !twins || self.router_std > 0.0 || self.identical {
            return Ok(());
        }

        let name = method.name();
        Err(Error::usage(format!(
            "router_std: found 0, but method {name} makes equal experts, which training can \
             tell apart by the router alone; expected above 0, or allow_identical: true"
        )))
    }
}

/// Checks every entry of `inits`: its method exists, takes the entry's parameters, and the
/// subspaces it names are of the kind that it needs.
pub fn check_inits(
    inits: &BTreeMap<String, InitConfig>,
    variants: &BTreeMap<String, SubspacesConfig>,
) -> Result<()> {
    for (name, init) in inits {
        check_init(init, variants).map_err(|e| {
            Error::new(e.kind(), format!("inits.{name}: {}", e.message()))
        })?;
    }
    Ok(())
}

fn check_init(
    init: &InitConfig,
    variants: &BTreeMap<String, SubspacesConfig>,
) -> Result<()> {
    let method = find(&init.method)?;
    // No check depends on the number of experts, which stands in another section.
    Settings::new(method, init, 1)?;

    let (Some(needed), Some(variant)) = (method.subspaces(), &init.subspaces) else {
        return Ok(());
    };
    let Some(found) = variants.get(variant) else {
        return Err(Error::usage(format!("subspaces: found no variant named {variant}")));
    };

    // A control that read the wrong subspaces would look like the method itself.
    let name = method.name();
    for (key, found, expected) in [
        ("labels", found.labels.name(), needed.labels.name()),
        ("directions", found.directions.name(), needed.directions.name()),
    ] {
        if found != expected {
            return Err(Error::usage(format!(
                "subspaces: {variant} has {key}: {found}, method {name} expects \
                 {key}: {expected}"
            )));
        }
    }
    Ok(())
}

/// Refuses the parameters that `method` does not take, and a lack or excess of `subspaces`.
fn refuse_others(method: &dyn Method, init: &InitConfig) -> Result<()> {
    let name = method.name();
    let given = [
        (Parameter::Ratio, init.ratio.is_some()),
        (Parameter::Rank, init.rank.is_some()),
        (Parameter::Alpha, init.alpha.is_some()),
        (Parameter::IndependentIndices, init.independent_indices.is_some()),
        (Parameter::RouterScale, init.router_scale.is_some()),
        (Parameter::RouterStd, init.router_std.is_some()),
    ];

    let takes = taken(method);
    if let Some((other, _)) = given.iter().find(|(p, there)| *there && !takes.contains(p))
    {
        let list: Vec<_> = takes.iter().map(|p| p.key()).collect();
        let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        let key = other.key();
        return Err(Error::usage(format!(
            "{key}: method {name} takes no {key}; its parameters: {list}"
        )));
    }

    match (&init.subspaces, method.subspaces()) {
        (Some(_), None) => {
            Err(Error::usage(format!("subspaces: method {name} reads no subspaces")))
        }
        (None, Some(_)) => Err(Error::usage(format!(
            "subspaces: found none, method {name} expects the name of a variant"
        ))),
        _ => Ok(()),
    }
}

/// Refuses the absence of a parameter that has no default.
fn refuse_missing(method: &dyn Method, init: &InitConfig) -> Result<()> {
    let (takes, name) = (taken(method), method.name());
    for (key, given) in [(Parameter::Ratio, init.ratio), (Parameter::Alpha, init.alpha)] {
        if takes.contains(&key) && given.is_none() {
            let key = key.key();
            return Err(Error::usage(format!(
                "{key}: found none, expected a number from 0 to 1 for method {name}"
            )));
        }
    }

    // A product of rank 0 would leave the experts equal forever.
    if takes.contains(&Parameter::Rank) && init.rank.unwrap_or(0) == 0 {
        let found = init.rank.map_or("none".to_owned(), |rank| rank.to_string());
        return Err(Error::usage(format!(
            "rank: found {found}, expected at least 1 for method {name}"
        )));
    }
    Ok(())
}

/// All parameters of a method: its own, then its router's.
fn taken(method: &dyn Method) -> Vec<Parameter> {
    let router = method.form().router().map(Router::parameter);
    method.parameters().iter().copied().chain(router).collect()
}

fn in_range(holds: bool, key: Parameter, found: f64, expected: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        let key = key.key();
        Err(Error::usage(format!("{key}: found {found}, expected {expected}")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::init_of;
    use super::*;

    fn refusal(name: &str, spoil: impl Fn(&mut InitConfig)) -> String {
        let method = find(name).unwrap();
        let mut init = init_of(method);
        spoil(&mut init);
        Settings::new(method, &init, 4).unwrap_err().message().to_owned()
    }

    #[test]
    fn a_parameter_a_method_does_not_take_is_refused_by_name() {
        assert_eq!(
            refusal("sparse", |init| init.ratio = Some(0.5)),
            "ratio: method sparse takes no ratio; its parameters: router_std"
        );
        assert_eq!(
            refusal("dense", |init| init.router_std = Some(0.5)),
            "router_std: method dense takes no router_std; its parameters: none"
        );
        let drop_svd = refusal("drop-svd", |init| init.independent_indices = Some(true));
        assert!(
            drop_svd.starts_with("independent_indices: method drop-svd"),
            "{drop_svd}"
        );
        let centroids = refusal("cluster-aware", |init| init.router_std = Some(0.1));
        assert!(centroids.starts_with("router_std: method cluster-aware"), "{centroids}");
        let random = refusal("svd-only", |init| init.router_scale = Some(0.1));
        assert!(random.starts_with("router_scale: method svd-only"), "{random}");
    }

    #[test]
    fn lacking_and_impossible_values_are_refused() {
        for spoilt in [
            refusal("drop", |init| init.ratio = None),
            refusal("drop", |init| init.ratio = Some(1.5)),
            refusal("drop-svd", |init| init.ratio = Some(f64::NAN)),
            refusal("soft-truncation", |init| init.alpha = None),
            refusal("soft-truncation", |init| init.alpha = Some(1.1)),
            refusal("soft-truncation", |init| init.alpha = Some(f64::NAN)),
            refusal("cluster-aware", |init| init.alpha = Some(0.5)),
            refusal("ders-lm", |init| init.rank = None),
            refusal("ders-lm", |init| init.rank = Some(0)),
            refusal("sparse", |init| init.rank = Some(4)),
            refusal("sparse", |init| init.router_std = Some(-0.1)),
            refusal("router-only", |init| init.router_scale = Some(0.0)),
            refusal("cluster-aware", |init| init.subspaces = None),
            refusal("router-only", |init| init.subspaces = Some("paper".into())),
        ] {
            assert!(spoilt.contains(": "), "{spoilt}");
        }
        assert!(
            Settings::new(find("sparse").unwrap(), &init_of(&super::super::Sparse), 0)
                .is_err()
        );
    }

    #[test]
    fn the_control_must_not_read_the_real_labels() {
        let config =
            crate::config::load_default(&crate::config::Overrides::default()).unwrap();
        let mut inits = config.inits;
        inits.get_mut("random-clusters").unwrap().subspaces = Some("paper".into());
        let error = check_inits(&inits, &config.subspaces).unwrap_err();
        assert_eq!(
            error.message(),
            "inits.random-clusters: subspaces: paper has labels: clusters, method \
             random-clusters expects labels: shuffled"
        );
    }

    #[test]
    fn a_random_subspace_must_not_read_the_top_directions() {
        let config =
            crate::config::load_default(&crate::config::Overrides::default()).unwrap();
        let method = find("random-subspace-energy").unwrap();
        let init = InitConfig { subspaces: Some("paper".into()), ..init_of(method) };
        let inits = [("energy".to_owned(), init)].into();
        assert_eq!(
            check_inits(&inits, &config.subspaces).unwrap_err().message(),
            "inits.energy: subspaces: paper has directions: top, method \
             random-subspace-energy expects directions: random-energy"
        );
    }
}
