//! Differences picture by picture: from `outcomes.parquet` of several models to an interval
//! that covers training luck and test pictures ([`crate::eval::mixed()`]).

use super::inputs::{OutcomeKey, RunInputs};
use super::study::{MetricKey, Model, Study};
use crate::eval::{Bootstrap, Mixed, Replicate, mixed};

/// A metric that is a mean over pictures: that of one split, or the mean over several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured<'a> {
    pub(super) task: &'a str,
    pub(super) metric: &'a str,
    pub(super) splits: &'a [&'a str],
}

/// How the splits of a metric add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weighing {
    /// Every split counts the same.
    Splits,
    /// Every picture counts the same.
    Pictures,
}

/// The difference of `key` from the same metric of the run `theirs`, over the seeds and
/// pictures that both have; `None` for a metric that is no mean over pictures.
pub(super) fn difference(
    study: &Study<'_>,
    key: MetricKey<'_>,
    theirs: &str,
) -> Option<Mixed> {
    if key.run == theirs {
        return None;
    }
    let model = |run| Model { run, point: key.point };
    let terms = [(model(key.run), 1.0), (model(theirs), -1.0)];
    let measured = Measured { task: key.task, metric: key.metric, splits: &[key.split] };
    contrast(study, measured, &terms)
}

/// The weighted sum of a metric over models, over the seeds that all of them have; `None`
/// where they do not have the same pictures.
pub(super) fn contrast(
    study: &Study<'_>,
    measured: Measured<'_>,
    terms: &[(Model<'_>, f64)],
) -> Option<Mixed> {
    let shifts: Vec<&str> =
        study.inputs.dataset.shifts.iter().map(String::as_str).collect();
    let (measured, weighing) = parts(measured, &shifts);
    let (first, rest) = terms.split_first()?;

    let mut replicates = Vec::new();
    for own in study.of(first.0.run) {
        // A seed that one of the models lacks is no pair.
        let others = rest
            .iter()
            .map(|(model, _)| study.of(model.run).find(|other| other.seed == own.seed));
        let Some(others) = others.collect::<Option<Vec<_>>>() else { continue };

        // The sum is taken on each picture before any picture is drawn: that pairs the models.
        let runs = std::iter::once(own).chain(others);
        let sides: Vec<Side<'_>> = runs
            .zip(terms)
            .map(|(run, (model, weight))| Side {
                run,
                point: model.point,
                weight: *weight,
            })
            .collect();

        let strata = measured.splits.iter().map(|split| {
            let pictures = sides.iter().map(|side| side.pictures(measured, split));
            summed(&pictures.collect::<Option<Vec<_>>>()?)
        });
        let strata = strata.collect::<Option<Vec<_>>>()?;
        replicates.push(Replicate { base: study.config().base_of(own.seed), strata });
    }

    let sizes: Vec<usize> = replicates.first()?.strata.iter().map(Vec::len).collect();
    let total: usize = sizes.iter().sum();
    let weight = |size: usize| match weighing {
        Weighing::Splits => 1.0 / sizes.len() as f64,
        Weighing::Pictures => size as f64 / total as f64,
    };
    let weights: Vec<f64> = sizes.iter().map(|&size| weight(size)).collect();

    // One name for all pairs of runs: their pictures are drawn alike.
    let bootstrap = Bootstrap::new(0, study.config().evaluate.bootstrap).ok()?;
    let Measured { task, metric, splits } = measured;
    let name = format!("{task}/{}/{metric}", splits.join("+"));
    mixed(&replicates, &weights, (bootstrap, &name))
}

/// The splits whose pictures a metric is a mean over.
fn parts<'a>(measured: Measured<'a>, shifts: &'a [&'a str]) -> (Measured<'a>, Weighing) {
    let Measured { task, metric, splits } = measured;
    match (task, splits) {
        // The score over shifts is the mean of its splits, whatever their sizes.
        ("summary", _) => {
            let parts = Measured { task: "concept", metric: "acc1", splits: shifts };
            (parts, Weighing::Splits)
        }
        // Probes and fine-tuning are judged on all shift splits together.
        (_, ["shift"]) => (Measured { task, metric, splits: shifts }, Weighing::Pictures),
        _ => (measured, Weighing::Splits),
    }
}

/// One model at one seed, with its weight in a contrast.
struct Side<'a> {
    run: &'a RunInputs,
    point: &'a str,
    weight: f64,
}

/// The pictures of one model, with its weight.
type Weighted<'a> = (&'a [(u32, f32)], f64);

impl<'a> Side<'a> {
    /// The pictures of a split, where they are known one by one.
    fn pictures(&self, measured: Measured<'_>, split: &str) -> Option<Weighted<'a>> {
        let key = OutcomeKey {
            point: self.point.to_owned(),
            task: measured.task.to_owned(),
            metric: measured.metric.to_owned(),
            split: split.to_owned(),
        };
        Some((self.run.outcomes.get(&key)?.as_slice(), self.weight))
    }
}

/// The weighted sum of several models on each picture; `None` where they do not have the same
/// pictures.
fn summed(sides: &[Weighted<'_>]) -> Option<Vec<f64>> {
    let samples = |pictures: &[(u32, f32)]| -> Vec<u32> {
        pictures.iter().map(|(sample, _)| *sample).collect()
    };
    let own = samples(sides.first()?.0);
    let same = sides.iter().all(|(pictures, _)| samples(pictures) == own);
    let sum = |index: usize| {
        let values = sides.iter();
        values.map(|(pictures, weight)| weight * f64::from(pictures[index].1)).sum()
    };
    same.then(|| (0..own.len()).map(sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_paired_by_sample() {
        let (ours, theirs) = ([(3, 0.0), (7, 1.0)], [(3, 1.0), (7, 1.0)]);
        let found = summed(&[(&ours, 1.0), (&theirs, -1.0)]);
        assert_eq!(found, Some(vec![-1.0, 0.0]));
        assert_eq!(summed(&[(&ours, 1.0), (&[(3, 1.0), (8, 1.0)], -1.0)]), None);
        assert_eq!(summed(&[]), None);
    }

    #[test]
    fn a_score_over_splits_weighs_splits_and_one_over_all_pictures_weighs_those() {
        let shifts = ["v2", "3d"];
        let of = |task, splits| parts(Measured { task, metric: "m", splits }, &shifts);
        let (measured, weighing) = of("summary", &["shift"]);
        assert_eq!((measured.task, measured.metric), ("concept", "acc1"));
        assert_eq!((measured.splits, weighing), (&shifts[..], Weighing::Splits));
        let (measured, weighing) = of("probe", &["shift"]);
        assert_eq!((measured.splits, weighing), (&shifts[..], Weighing::Pictures));
        let (measured, _) = of("concept", &["pair"]);
        assert_eq!(measured.splits, ["pair"]);
    }
}
