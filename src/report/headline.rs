//! The headline metrics: which rows of `metrics.parquet` they are and what they mean.

use std::collections::{BTreeMap, BTreeSet};

use super::stats::BySeed;
use super::study::Study;

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
    /// The splits whose mean is the figure.
    pub(super) splits: Vec<String>,
}

impl Headline {
    /// The figure of one run by seed: the mean over the splits, where all are there.
    pub(super) fn values(&self, study: &Study<'_>, run: &str, point: &str) -> BySeed {
        let mut collected: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for split in &self.splits {
            for (seed, value) in
                study.metric(run, point, (self.task, split, &self.metric))
            {
                collected.entry(seed).or_default().push(value);
            }
        }
        let complete = |values: &Vec<f64>| values.len() == self.splits.len();
        let complete = collected.into_iter().filter(|(_, values)| complete(values));
        complete.map(|(seed, values)| (seed, crate::num::mean(&values))).collect()
    }
}

/// The headline metrics that any run has, in report order.
pub(super) fn headlines(study: &Study<'_>) -> Vec<Headline> {
    let meta = &study.inputs.dataset;
    let config = &study.config().evaluate;
    let pair = meta.retrieval.as_str();
    let k = config.recall_at.iter().min().copied().unwrap_or(1);
    let place =
        if k == 1 { "comes first".to_owned() } else { format!("is among the first {k}") };
    let shifts = super::words::list(&meta.shifts);
    let held_out = meta.held_out.as_deref().unwrap_or("heldout");
    let mut wanted = vec![
        (Area::Shift, "summary", "shift".to_owned(), "Shift".to_owned(), "",
         format!("mean zero-shot top-1 accuracy over all concepts on {shifts}, splits of styles never trained on")),
        (Area::Other, "concept", "acc1".to_owned(), "Pair acc@1".to_owned(), pair,
         format!("zero-shot top-1 accuracy over all concepts on `{pair}`: unseen pictures in styles of the training data")),
        (Area::Other, "heldout", "acc1".to_owned(), "Held-out acc@1".to_owned(), held_out,
         "zero-shot top-1 accuracy among concepts that no training picture shows".to_owned()),
        (Area::Retrieval, "retrieval", format!("image_retrieval_recall@{k}"), format!("Text\u{2192}image R@{k}"), pair,
         format!("`image_retrieval_recall@{k}`: share of captions whose own picture {place}")),
        (Area::Retrieval, "retrieval", format!("text_retrieval_recall@{k}"), format!("Image\u{2192}text R@{k}"), pair,
         format!("`text_retrieval_recall@{k}`: share of pictures with any own caption that {place}")),
        (Area::Other, "subgroup", "acc1".to_owned(), "Subgroup acc@1".to_owned(), pair,
         "zero-shot top-1 accuracy over subgroups; a subgroup is the mean of its concepts' prompts".to_owned()),
    ];
    for shots in &config.shots {
        wanted.push((Area::Probes, "probe", format!("logistic-{shots}"), format!("{shots}-shot"), "",
            format!("`logistic-{shots}`: logistic regression on frozen features with {shots} pictures a class, mean over draws")));
    }
    wanted
        .into_iter()
        .filter_map(|(area, task, metric, label, prefer, definition)| {
            let splits = splits(study, task, &metric, prefer);
            let several = splits.len() > 1;
            let on = splits.join(", ");
            let definition = match (several, task) {
                (true, _) => format!("{definition}; mean over {on}"),
                (false, "subgroup" | "retrieval") => format!("{definition}; on `{on}`"),
                (false, _) => definition,
            };
            let splits_found = !splits.is_empty();
            splits_found.then_some(Headline {
                label,
                definition,
                area,
                task,
                metric,
                splits,
            })
        })
        .collect()
}

/// Where a metric is read: the preferred split; else the only one; else the shift splits;
/// else the first of the tests.
fn splits(study: &Study<'_>, task: &str, metric: &str, prefer: &str) -> Vec<String> {
    let found: BTreeSet<&str> = study
        .metrics()
        .keys()
        .filter(|key| key.2 == task && key.4 == metric)
        .map(|key| key.3)
        .collect();
    let meta = &study.inputs.dataset;
    let owned = |split: &str| vec![split.to_owned()];
    if found.len() <= 1 || found.contains(prefer) {
        let one = found.get(prefer).or_else(|| found.first());
        return one.map_or_else(Vec::new, |split| owned(split));
    }
    if let Some(joint) = found.get("shift") {
        return owned(joint);
    }
    if !meta.shifts.is_empty() && meta.shifts.iter().all(|s| found.contains(s.as_str())) {
        return meta.shifts.clone();
    }
    let first = meta.tests.iter().find(|split| found.contains(split.as_str()));
    first.map_or_else(|| found.first().map_or_else(Vec::new, |s| owned(s)), |s| owned(s))
}
