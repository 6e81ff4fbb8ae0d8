//! What the numbers of a report say about a claim: paired differences over seeds, and whether
//! all of them point where the claim says.

use std::collections::{BTreeMap, BTreeSet};

use super::headline::{Area, Headline};
use super::outcomes;
use super::stats::{BySeed, COVERAGE, Difference, Estimate, one_sample, paired};
use super::study::{FINAL, LayerKey, MetricKey, Model, Study, in_points};
use super::words;
use crate::eval::CONTRASTIVE;
use crate::num;
use crate::tables::{Layer, LogRow, WHOLE_LAYER};

/// Accuracy of full fine-tuning; the run is that of whoever asks.
const FINE_TUNING: MetricKey<'static> =
    MetricKey { run: "", point: FINAL, task: "finetune", split: "shift", metric: "acc1" };

/// What is decided about a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every interval lies where the claim says.
    Confirmed,
    /// Some interval does not.
    NotConfirmed,
    /// No experiment of this size can tell.
    NotTestable,
    /// The runs, the seeds or the measurements that could tell are not in this report.
    NotTested,
}

impl Verdict {
    /// How it is written.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::NotConfirmed => "not confirmed",
            Self::NotTestable => "not testable at this scale",
            Self::NotTested => "not tested in this report",
        }
    }
}

/// Where the intervals of a claim have to lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Side {
    /// Above zero.
    Above,
    /// Below zero.
    Below,
    /// No farther from zero than this. An interval that only covers zero would prove nothing:
    /// with few seeds it covers everything.
    Within(f64),
    /// No higher above zero than this.
    AtMost(f64),
}

impl Side {
    fn holds(self, (low, high): (f64, f64)) -> bool {
        match self {
            Self::Above => low > 0.0,
            Self::Below => high < 0.0,
            Self::Within(margin) => low >= -margin && high <= margin,
            Self::AtMost(margin) => high <= margin,
        }
    }
}

/// One difference that bears on a claim.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    /// What differs from what.
    pub(super) what: String,
    /// By how much; `None` where the report lacks one of the two.
    pub(super) difference: Option<Difference>,
    /// Digits after the point.
    pub(super) decimals: usize,
}

impl Finding {
    /// The difference in words, with its interval.
    pub(super) fn words(&self) -> String {
        let Finding { what, difference, decimals } = self;
        let signed = |value| words::signed(value, *decimals);
        match difference {
            None => format!("{what}: no number"),
            Some(Difference { mean, interval: None, .. }) => {
                format!("{what}: {} (no interval)", signed(*mean))
            }
            Some(Difference { mean, interval: Some((low, high)), .. }) => {
                format!("{what}: {} [{}, {}]", signed(*mean), signed(*low), signed(*high))
            }
        }
    }
}

/// What is known about a claim.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    pub(super) verdict: Verdict,
    pub(super) evidence: Vec<String>,
    /// Whether it rests on times or memory of a machine, and may differ on another.
    pub(super) measured: bool,
}

impl Decision {
    /// Nothing of this size can tell, and why.
    pub(super) fn not_testable(why: &str) -> Self {
        let evidence = vec![why.to_owned()];
        Self { verdict: Verdict::NotTestable, evidence, measured: false }
    }

    /// Whether all findings lie on their side. A finding without a number or an interval
    /// leaves the claim open, unless another one lies on the wrong side.
    pub(super) fn of(findings: &[(Finding, Side)]) -> Self {
        let held = |(finding, side): &(Finding, Side)| {
            let interval = finding.difference?.interval?;
            Some(side.holds(interval))
        };
        let held: Vec<Option<bool>> = findings.iter().map(held).collect();

        // One difference on the wrong side is enough, whatever else is missing.
        let verdict = if held.contains(&Some(false)) {
            Verdict::NotConfirmed
        } else if held.is_empty() || held.contains(&None) {
            Verdict::NotTested
        } else {
            Verdict::Confirmed
        };
        let evidence = findings.iter().map(|(finding, _)| finding.words());
        Self { verdict, evidence: evidence.collect(), measured: false }
    }

    /// Whether a cost is at most twice the `claimed` one, of which the paper says "about". The
    /// finding is the percentage beyond the claim. Times of a machine that did other work vary
    /// by more than that, and then confirm nothing.
    pub(super) fn of_cost(finding: Finding, claimed: f64) -> Self {
        Self { measured: true, ..Self::all(vec![finding], Side::AtMost(claimed)) }
    }

    /// [`Decision::of`] findings that share a side.
    pub(super) fn all(findings: Vec<Finding>, side: Side) -> Self {
        let sided: Vec<_> = findings.into_iter().map(|finding| (finding, side)).collect();
        Self::of(&sided)
    }
}

/// Two runs, of which the first is expected to differ from the second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) ours: &'a str,
    pub(super) theirs: &'a str,
}

impl Pair<'_> {
    fn title(&self, study: &Study<'_>, what: &str) -> String {
        format!("{what}, {} \u{2212} {}", study.name(self.ours), study.name(self.theirs))
    }

    /// The difference of a number of each run by seed.
    fn finding(
        &self,
        study: &Study<'_>,
        what: &str,
        decimals: usize,
        of: impl Fn(&str) -> BySeed,
    ) -> Finding {
        Finding {
            what: self.title(study, what),
            difference: paired(&of(self.ours), &of(self.theirs), COVERAGE),
            decimals,
        }
    }
}

/// The gains of a pair in the headline metrics of some areas, in percentage points.
pub(super) fn gains(
    study: &Study<'_>,
    headlines: &[Headline],
    areas: &[Area],
    pair: Pair<'_>,
) -> Vec<Finding> {
    let model = |run| Model { run, point: FINAL };

    // A headline keeps its own way of pairing: over seeds, or over pictures for one seed.
    headlines
        .iter()
        .filter(|headline| areas.contains(&headline.area))
        .map(|headline| {
            let (ours, theirs) = (model(pair.ours), model(pair.theirs));
            Finding {
                what: pair.title(study, &headline.label),
                difference: headline.difference(study, ours, theirs, COVERAGE),
                decimals: 1,
            }
        })
        .collect()
}

/// The gain of a pair in full fine-tuning, in percentage points.
pub(super) fn fine_tuned(study: &Study<'_>, pair: Pair<'_>) -> Finding {
    let what = "full fine-tuning";
    let key = MetricKey { run: pair.ours, ..FINE_TUNING };

    // Single pictures are known where the stage wrote them; else seeds alone give an interval.
    let pictures = outcomes::difference(study, key, pair.theirs);
    let mut finding = pair.finding(study, what, 1, |run| fine_tuning(study, run));
    if let Some(mixed) = pictures {
        finding.difference = Estimate::Pictures(mixed).at(COVERAGE);
    }
    finding.difference = finding.difference.map(in_points);
    finding
}

/// How much more a pair gains with the fewest shots than in full fine-tuning, in percentage
/// points.
pub(super) fn few_shot_over_full(
    study: &Study<'_>,
    headlines: &[Headline],
    pair: Pair<'_>,
) -> Vec<Finding> {
    let Some(few) = headlines.iter().find(|headline| headline.area == Area::Probes)
    else {
        return Vec::new();
    };
    let gain = |run: &str| less(&few.values(study, run, FINAL), &fine_tuning(study, run));
    let mut finding = pair.finding(study, "gain of few shots over that of all", 1, gain);
    finding.difference = finding.difference.map(in_points);
    vec![finding]
}

fn fine_tuning(study: &Study<'_>, run: &str) -> BySeed {
    study.metric(MetricKey { run, ..FINE_TUNING })
}

/// The difference of a pair in an analysis of layers, mean over all of them.
pub(super) fn layers(
    study: &Study<'_>,
    metric: &str,
    what: &str,
    pair: Pair<'_>,
) -> Finding {
    pair.finding(study, what, 3, |run| mean_over_layers(study, metric, (run, FINAL)))
}

/// The differences of a pair in an analysis, layer by layer.
pub(super) fn each_layer(
    study: &Study<'_>,
    metric: &str,
    what: &str,
    pair: Pair<'_>,
) -> Vec<Finding> {
    let of_layer = |layer: &Layer| {
        let what = format!("{what}, {} block {}", layer.tower, layer.block);
        pair.finding(study, &what, 3, |run| {
            study.layer(LayerKey { run, point: FINAL, layer, metric })
        })
    };
    study.moe_layers().iter().map(of_layer).collect()
}

/// How an analysis of one run changes from one point to another, mean over layers.
pub(super) fn change(
    study: &Study<'_>,
    metric: &str,
    what: &str,
    (run, from, to): (&str, &str, &str),
) -> Finding {
    let at = |point| mean_over_layers(study, metric, (run, point));
    Finding {
        what: format!("{what}, {}", study.name(run)),
        difference: paired(&at(to), &at(from), COVERAGE),
        decimals: 3,
    }
}

/// How similarity runs over the depth of each tower that has `least` MoE layers, and how
/// entropy goes with it, after training: each with the side on which the paper sees it.
pub(super) fn over_depth(
    study: &Study<'_>,
    least: usize,
    run: &str,
) -> Vec<(Finding, Side)> {
    let layers = study.moe_layers();
    let towers: BTreeSet<&str> = layers.iter().map(|l| l.tower.as_str()).collect();

    let mut all = Vec::new();
    for tower in towers {
        let own: Vec<&Layer> = layers.iter().filter(|l| l.tower == tower).collect();
        let &[first, .., before, last] = own.as_slice() else { continue };
        if own.len() < least {
            continue;
        }

        let of = |layer: &Layer, metric| {
            study.layer(LayerKey { run, point: FINAL, layer, metric })
        };
        let similarity = |layer| of(layer, "similarity");
        let fall = paired(&similarity(before), &similarity(first), COVERAGE);
        let rise = paired(&similarity(last), &similarity(before), COVERAGE);

        // One correlation over the layers of each seed: layers of a model are not independent.
        let correlation = similarity(first).into_keys().filter_map(|seed| {
            let at = |metric| -> Option<Vec<f64>> {
                own.iter().map(|layer| of(layer, metric).get(&seed).copied()).collect()
            };
            Some(correlated(&at("similarity")?, &at("entropy_normalised")?))
        });

        let name = study.name(run);
        let finding = |what: &str, difference, decimals| Finding {
            what: format!("{what}, {tower} tower, {name}"),
            difference,
            decimals,
        };
        all.push((finding("similarity up to the last layer", fall, 3), Side::Below));
        all.push((finding("similarity in the last layer", rise, 3), Side::Above));
        let correlation = one_sample(correlation, COVERAGE);
        let what = "correlation of entropy and similarity";
        all.push((finding(what, correlation, 2), Side::Above));
    }
    all
}

/// Pearson's correlation; NaN where one side does not vary.
fn correlated(a: &[f64], b: &[f64]) -> f64 {
    let (mean_a, mean_b) = (num::mean(a), num::mean(b));
    let moment = |x: &[f64], m: f64, y: &[f64], n: f64| -> f64 {
        x.iter().zip(y).map(|(u, v)| (u - m) * (v - n)).sum()
    };
    let spread = moment(a, mean_a, a, mean_a) * moment(b, mean_b, b, mean_b);
    moment(a, mean_a, b, mean_b) / spread.sqrt()
}

fn mean_over_layers(
    study: &Study<'_>,
    metric: &str,
    (run, point): (&str, &str),
) -> BySeed {
    let mut collected: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for layer in &study.moe_layers() {
        for (seed, value) in study.layer(LayerKey { run, point, layer, metric }) {
            collected.entry(seed).or_default().push(value);
        }
    }
    collected.into_iter().map(|(seed, values)| (seed, num::mean(&values))).collect()
}

/// The difference of a pair in how much the routing probability varies between experts: the
/// standard deviation over the experts of a layer, mean over layers.
pub(super) fn probability_spread(study: &Study<'_>, pair: Pair<'_>) -> Finding {
    let layers = study.moe_layers();

    // Experts' numbers mean nothing across seeds, so the spread is taken within each seed.
    pair.finding(study, "spread of routing probability", 3, |run| {
        let of_run = study.of(run).filter_map(|inputs| {
            let spreads: Vec<f64> = layers
                .iter()
                .map(|layer| {
                    let own = inputs.analysis.iter().filter(|row| {
                        row.point == FINAL
                            && row.metric == "routing_probability"
                            && row.expert != WHOLE_LAYER
                            && row.layer == *layer
                    });
                    own.map(|row| row.value).collect::<Vec<f64>>()
                })
                .filter(|values| values.len() > 1)
                .map(|values| num::std_dev(&values))
                .collect();

            (!spreads.is_empty()).then(|| (inputs.seed, num::mean(&spreads)))
        });
        of_run.collect()
    })
}

/// Part of a training run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Where it begins, as a fraction of the steps.
    pub(super) from: f64,
    /// Where it ends.
    pub(super) to: f64,
}

/// The difference of a pair in the mean of a column of the log over a part of the training.
pub(super) fn logged(
    study: &Study<'_>,
    what: &str,
    part: Part,
    pair: Pair<'_>,
    column: fn(&LogRow) -> f64,
) -> Finding {
    pair.finding(study, what, 4, |run| means(study, run, part, column))
}

/// How much more the first run's loss is below the second's late in training than early.
pub(super) fn widening_loss(
    study: &Study<'_>,
    (early, late): (Part, Part),
    pair: Pair<'_>,
) -> Finding {
    // A gap is positive where the first run's loss is the lower one.
    let gap = |part| {
        let of = |run| means(study, run, part, |row: &LogRow| row.clip);
        less(&of(pair.theirs), &of(pair.ours))
    };
    Finding {
        what: pair.title(study, "growth of the loss gap"),
        difference: paired(&gap(late), &gap(early), COVERAGE),
        decimals: 4,
    }
}

/// How much the first run's lead in validation grows from half of the training to its end, for
/// every metric of validation: in percentage points, and of the loss in nats.
pub(super) fn widening_validation(study: &Study<'_>, pair: Pair<'_>) -> Vec<Finding> {
    let rows = study.of(pair.ours).flat_map(|inputs| &inputs.validation);
    let metrics: BTreeSet<&str> = rows.map(|row| row.metric.as_str()).collect();

    let finding = |metric: &str| {
        let at = |run: &str, last: bool| -> BySeed {
            let of_seed = study.of(run).filter_map(|inputs| {
                let own: Vec<_> =
                    inputs.validation.iter().filter(|row| row.metric == metric).collect();

                // The first validation may stand before the first step, where nothing differs.
                let half = own.last()?.step / 2;
                let mut rows = own.into_iter();
                let row = if last {
                    rows.next_back()
                } else {
                    rows.find(|row| row.step >= half && row.step > 0)
                };
                row.map(|row| (inputs.seed, row.value))
            });
            of_seed.collect()
        };

        // Who leads in a loss is below.
        let is_loss = metric == CONTRASTIVE;
        let (ahead, behind) =
            if is_loss { (pair.theirs, pair.ours) } else { (pair.ours, pair.theirs) };
        let lead = |last| less(&at(ahead, last), &at(behind, last));
        let grown = paired(&lead(true), &lead(false), COVERAGE);
        Finding {
            what: pair.title(study, &format!("growth of the lead in `{metric}`")),
            difference: if is_loss { grown } else { grown.map(in_points) },
            decimals: if is_loss { 4 } else { 1 },
        }
    };
    metrics.into_iter().map(finding).collect()
}

/// By which percentage the first run of a pair costs more than the second, beyond what the
/// paper says.
pub(super) fn beyond(
    study: &Study<'_>,
    what: &str,
    claimed: f64,
    pair: Pair<'_>,
    cost: fn(&super::inputs::Cost) -> Option<f64>,
) -> Finding {
    let of = |run: &str| -> BySeed {
        study.of(run).filter_map(|own| Some((own.seed, cost(&own.cost)?))).collect()
    };

    // Seeds ran at different times of day, so each is compared with its own partner.
    let (ours, theirs) = (of(pair.ours), of(pair.theirs));
    let shares = ours.iter().filter_map(|(seed, value)| {
        Some(100.0 * (value / theirs.get(seed)? - 1.0) - claimed)
    });
    Finding {
        what: pair.title(study, &format!("{what} beyond +{claimed} %")),
        difference: one_sample(shares, COVERAGE),
        decimals: 1,
    }
}

/// The mean of a column of the log over a part of the training, by seed.
fn means(
    study: &Study<'_>,
    run: &str,
    part: Part,
    column: impl Fn(&LogRow) -> f64,
) -> BySeed {
    let of_seed = study.of(run).filter_map(|inputs| {
        // Parts are fractions, so that runs of different budgets have the same ones.
        let steps = inputs.log.len() as f64;
        let [first, last] = [part.from, part.to]
            .map(|place| num::truncate_usize(place * steps).min(inputs.log.len()));
        let values: Vec<f64> = inputs.log.get(first..last)?.iter().map(&column).collect();
        (!values.is_empty()).then(|| (inputs.seed, num::mean(&values)))
    });
    of_seed.collect()
}

/// The differences of the seeds that both have.
fn less(a: &BySeed, b: &BySeed) -> BySeed {
    a.iter().filter_map(|(seed, x)| Some((*seed, x - b.get(seed)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(interval: Option<(f64, f64)>) -> Finding {
        let difference = Some(Difference { n: 3, mean: 1.0, interval, covers: None });
        Finding { what: "x".to_owned(), difference, decimals: 1 }
    }

    #[test]
    fn a_claim_is_confirmed_only_where_every_interval_lies_on_its_side() {
        let above = || finding(Some((0.5, 1.5)));
        let covered = || finding(Some((-0.5, 1.5)));
        let verdict = |findings, side| Decision::all(findings, side).verdict;
        assert_eq!(verdict(vec![above(), above()], Side::Above), Verdict::Confirmed);
        assert_eq!(verdict(vec![above(), covered()], Side::Above), Verdict::NotConfirmed);
        assert_eq!(verdict(vec![above()], Side::Below), Verdict::NotConfirmed);
    }

    #[test]
    fn what_is_comparable_lies_within_a_margin_and_not_only_around_zero() {
        let verdict = |low, high, side| {
            Decision::all(vec![finding(Some((low, high)))], side).verdict
        };
        assert_eq!(verdict(-0.5, 0.9, Side::Within(1.0)), Verdict::Confirmed);
        assert_eq!(verdict(0.1, 0.9, Side::Within(1.0)), Verdict::Confirmed);
        assert_eq!(verdict(-6.0, 6.0, Side::Within(1.0)), Verdict::NotConfirmed);
        assert_eq!(verdict(-6.0, 0.5, Side::AtMost(1.0)), Verdict::Confirmed);
        assert_eq!(verdict(-6.0, 1.5, Side::AtMost(1.0)), Verdict::NotConfirmed);
    }

    #[test]
    fn without_a_number_or_an_interval_a_claim_is_open() {
        let verdict = |findings| Decision::all(findings, Side::Above).verdict;
        assert_eq!(verdict(vec![]), Verdict::NotTested);
        assert_eq!(verdict(vec![finding(None)]), Verdict::NotTested);
        let none = Finding { difference: None, ..finding(None) };
        assert_eq!(
            verdict(vec![finding(Some((0.5, 1.5))), none.clone()]),
            Verdict::NotTested
        );
        assert_eq!(
            verdict(vec![finding(Some((-0.5, 1.5))), none]),
            Verdict::NotConfirmed
        );
    }

    #[test]
    fn a_cost_that_varies_by_more_than_the_claim_confirms_nothing() {
        let verdict = |low, high| {
            let decision = Decision::of_cost(finding(Some((low, high))), 5.0);
            assert!(decision.measured);
            decision.verdict
        };
        assert_eq!(verdict(-4.0, 4.0), Verdict::Confirmed);
        assert_eq!(verdict(-30.0, 90.0), Verdict::NotConfirmed);
        assert_eq!(verdict(10.0, 90.0), Verdict::NotConfirmed);
    }

    #[test]
    fn correlation_is_one_along_a_line_and_nothing_without_variation() {
        assert!((correlated(&[1.0, 2.0, 4.0], &[3.0, 5.0, 9.0]) - 1.0).abs() < 1e-12);
        assert!((correlated(&[1.0, 2.0, 4.0], &[-1.0, -2.0, -4.0]) + 1.0).abs() < 1e-12);
        assert!(correlated(&[1.0, 2.0], &[3.0, 3.0]).is_nan());
    }

    #[test]
    fn evidence_says_its_interval() {
        assert_eq!(finding(Some((0.5, 1.5))).words(), "x: +1.0 [+0.5, +1.5]");
        assert_eq!(finding(None).words(), "x: +1.0 (no interval)");
    }
}
