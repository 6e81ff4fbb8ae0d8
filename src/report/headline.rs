//! The headline metrics: which rows of `metrics.parquet` they are and what they mean.

use std::collections::{BTreeMap, BTreeSet};

use super::outcomes;
use super::stats::{BySeed, Difference, Estimate};
use super::study::{Basis, MetricKey, Model, Study, in_points};
use super::words;
use crate::eval::Mixed;

/// What a headline metric speaks about in the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Area {
    /// Accuracy under distribution shift.
    Shift,
    /// Retrieval both ways.
    Retrieval,
    /// Few-shot probes.
    Probes,
    /// In the table only.
    Other,
}

/// One column of the comparison.
#[derive(Debug, Clone)]
pub(super) struct Headline {
    pub(super) label: String,
    pub(super) definition: String,
    pub(super) area: Area,
    pub(super) task: &'static str,
    pub(super) metric: String,
    /// The splits over which the value is the mean.
    pub(super) splits: Vec<String>,
}

impl Headline {
    /// The value of one run by seed: the mean over the splits. A seed that lacks one of the
    /// splits has no value, because a mean over fewer would be another metric.
    pub(super) fn values(&self, study: &Study<'_>, run: &str, point: &str) -> BySeed {
        let mut collected: BTreeMap<u64, Vec<f64>> = BTreeMap::new();

        for split in &self.splits {
            let (task, metric) = (self.task, self.metric.as_str());
            for (seed, value) in
                study.metric(MetricKey { run, point, task, split, metric })
            {
                collected.entry(seed).or_default().push(value);
            }
        }

        collected.retain(|_, values| values.len() == self.splits.len());
        let means = collected.into_iter();
        means.map(|(seed, values)| (seed, crate::num::mean(&values))).collect()
    }

    /// The paired difference of two models in percentage points.
    pub(super) fn difference(
        &self,
        study: &Study<'_>,
        ours: Model<'_>,
        theirs: Model<'_>,
        coverage: f64,
    ) -> Option<Difference> {
        self.estimate(study, ours, theirs)?.at(coverage).map(in_points)
    }

    /// What the paired difference of two models is estimated from: pictures, seeds and bases
    /// where single pictures are known, else seeds, else the examples of one seed.
    pub(super) fn estimate(
        &self,
        study: &Study<'_>,
        ours: Model<'_>,
        theirs: Model<'_>,
    ) -> Option<Estimate> {
        let values = (
            self.values(study, ours.run, ours.point),
            self.values(study, theirs.run, theirs.point),
        );

        // With one seed, resamples know the luck of few-shot sets, which single pictures do
        // not: their outcomes are means over the sets.
        let resampled: Vec<f64> = self
            .resampled(study, ours)
            .into_iter()
            .zip(self.resampled(study, theirs))
            .map(|(a, b)| a - b)
            .collect();
        if study.basis() == Basis::Examples && !resampled.is_empty() {
            let one = |values: &BySeed| values.values().next().copied();
            return Some(Estimate::Examples(
                (one(&values.0)?, one(&values.1)?),
                resampled,
            ));
        }

        let mixed = self.contrast(study, &[(ours, 1.0), (theirs, -1.0)]);
        let over_seeds = || Estimate::over_seeds(&values.0, &values.1);
        Some(mixed.map_or_else(over_seeds, Estimate::Pictures))
    }

    /// The weighted sum of this metric over models, picture by picture; `None` where single
    /// pictures are not known.
    pub(super) fn contrast(
        &self,
        study: &Study<'_>,
        terms: &[(Model<'_>, f64)],
    ) -> Option<Mixed> {
        let splits: Vec<&str> = self.splits.iter().map(String::as_str).collect();
        let measured =
            outcomes::Measured { task: self.task, metric: &self.metric, splits: &splits };
        outcomes::contrast(study, measured, terms)
    }

    /// The mean over the splits on every resample; nothing where a split has none.
    fn resampled(&self, study: &Study<'_>, model: Model<'_>) -> Vec<f64> {
        let Model { run, point } = model;
        let of_split = |split: &String| {
            let (task, metric) = (self.task, self.metric.as_str());
            study.resampled(MetricKey { run, point, task, split, metric })
        };
        let splits: Vec<&[f32]> = self.splits.iter().map(of_split).collect();
        let count = splits.iter().map(|values| values.len()).min().unwrap_or(0);
        let mean = |index: usize| {
            let values = splits.iter().map(|values| f64::from(values[index]));
            crate::num::mean(&values.collect::<Vec<f64>>())
        };
        (0..count).map(mean).collect()
    }

    /// Finds the splits of a metric; `None` if no run has it.
    fn placed(mut self, study: &Study<'_>, prefer: &str) -> Option<Self> {
        self.splits = splits(study, self.task, &self.metric, prefer);

        // Where the definition does not name its splits, they are added to it.
        let on = self.splits.join(", ");
        match (self.splits.len(), self.task) {
            (0, _) => return None,
            (1, "subgroup" | "retrieval") => {
                self.definition = format!("{}; on `{on}`", self.definition);
            }
            (1, _) => {}
            _ => self.definition = format!("{}; mean over {on}", self.definition),
        }
        Some(self)
    }
}

/// The headline metrics that any run has, in report order.
pub(super) fn headlines(study: &Study<'_>) -> Vec<Headline> {
    let meta = &study.inputs.dataset;
    let pair = meta.retrieval.as_str();
    let held_out = meta.held_out.as_deref().unwrap_or("heldout");

    let mut all = Vec::new();
    let shipped = study.shipped_pictures();
    let among = match meta.classes {
        None => "all concepts".to_owned(),
        Some(classes) => format!("the {classes} concepts that are classes"),
    };
    all.extend(shift(&meta.shifts, &among, shipped).placed(study, ""));
    all.extend(concepts(pair, &among, shipped).placed(study, pair));
    all.extend(held_out_concepts().placed(study, held_out));

    // The strictest recall is a headline; those at larger k stand in the table of all
    // metrics.
    let smallest = study.config().evaluate.recall_at.iter().min();
    for headline in retrieval(smallest.copied().unwrap_or(1)) {
        all.extend(headline.placed(study, pair));
    }

    // Pictures without labels are all of one subgroup, of which nothing can be told.
    if shipped {
        all.extend(subgroups().placed(study, pair));
    }
    let evaluate = &study.config().evaluate;
    for &shots in &evaluate.shots {
        all.extend(probe(shots, evaluate.probe_classes).placed(study, ""));
    }
    all
}

fn shift(shifts: &[String], among: &str, shipped: bool) -> Headline {
    let shifts = words::list(shifts);
    Headline {
        label: "Shift".to_owned(),
        definition: format!(
            "mean zero-shot top-1 accuracy over {among} on {shifts}{}",
            if shipped { ", splits of styles never trained on" } else { "" }
        ),
        area: Area::Shift,
        task: "summary",
        metric: "shift".to_owned(),
        splits: Vec::new(),
    }
}

fn concepts(pair: &str, among: &str, shipped: bool) -> Headline {
    let label = if shipped {
        format!("{} acc@1", words::capital(pair))
    } else {
        "Accuracy".to_owned()
    };
    let unseen = if shipped {
        "unseen pictures in styles of the training data"
    } else {
        "pictures that were never trained on"
    };
    Headline {
        label,
        definition: format!(
            "zero-shot top-1 accuracy over {among} on `{pair}`: {unseen}"
        ),
        area: Area::Other,
        task: "concept",
        metric: "acc1".to_owned(),
        splits: Vec::new(),
    }
}

fn held_out_concepts() -> Headline {
    Headline {
        label: "Held-out acc@1".to_owned(),
        definition:
            "zero-shot top-1 accuracy among concepts that no training picture shows"
                .to_owned(),
        area: Area::Other,
        task: "heldout",
        metric: "acc1".to_owned(),
        splits: Vec::new(),
    }
}

fn retrieval(k: usize) -> [Headline; 2] {
    let place =
        if k == 1 { "comes first".to_owned() } else { format!("is among the first {k}") };

    let headline = |label: String, metric: String, what: String| Headline {
        label,
        definition: format!("`{metric}`: {what} {place}"),
        area: Area::Retrieval,
        task: "retrieval",
        metric,
        splits: Vec::new(),
    };

    [
        headline(
            format!("Text\u{2192}image R@{k}"),
            format!("image_retrieval_recall@{k}"),
            "fraction of captions whose own picture".to_owned(),
        ),
        headline(
            format!("Image\u{2192}text R@{k}"),
            format!("text_retrieval_recall@{k}"),
            "fraction of pictures for which one of their own captions".to_owned(),
        ),
    ]
}

fn subgroups() -> Headline {
    Headline {
        label: "Subgroup acc@1".to_owned(),
        definition:
            "zero-shot top-1 accuracy over subgroups; a subgroup is the mean of the \
                     prompts of its concepts"
                .to_owned(),
        area: Area::Other,
        task: "subgroup",
        metric: "acc1".to_owned(),
        splits: Vec::new(),
    }
}

/// Few-shot accuracy over at most `bound` classes, or over all where it is 0.
fn probe(shots: usize, bound: usize) -> Headline {
    let among = match bound {
        0 => "all classes".to_owned(),
        _ => format!("at most {bound} classes, those with the most training pictures"),
    };
    Headline {
        label: format!("{shots}-shot"),
        definition: format!(
            "`logistic-{shots}`: logistic regression on frozen features with {shots} \
             pictures per class, over {among}; mean over draws"
        ),
        area: Area::Probes,
        task: "probe",
        metric: format!("logistic-{shots}"),
        splits: Vec::new(),
    }
}

/// Where a metric is read: on the preferred split, else on the only one, else on the shift
/// splits, else on the first of the tests.
fn splits(study: &Study<'_>, task: &str, metric: &str, prefer: &str) -> Vec<String> {
    let keys = study.metrics().keys();
    let found: BTreeSet<&str> = keys
        .filter(|key| key.task == task && key.metric == metric)
        .map(|key| key.split)
        .collect();
    let owned = |split: &str| vec![split.to_owned()];

    if found.len() <= 1 || found.contains(prefer) {
        let one = found.get(prefer).or_else(|| found.first());
        return one.map_or_else(Vec::new, |split| owned(split));
    }

    // Probes are measured on all shift splits together, under this name.
    if found.contains("shift") {
        return owned("shift");
    }

    let meta = &study.inputs.dataset;
    if !meta.shifts.is_empty() && meta.shifts.iter().all(|s| found.contains(s.as_str())) {
        return meta.shifts.clone();
    }
    let first = meta.tests.iter().find(|split| found.contains(split.as_str()));
    let first = first.map(String::as_str).or_else(|| found.first().copied());
    first.map_or_else(Vec::new, owned)
}
