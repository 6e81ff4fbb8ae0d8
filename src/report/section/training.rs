//! Curves over training steps: loss, validation, routing entropy, expert similarity and load.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::chart::lines::{LineChart, Point, Series};
use crate::report::document::{Block, Figure, Section};
use crate::report::inputs::RunInputs;
use crate::report::stats::summary;
use crate::report::study::Study;
use crate::report::words;
use crate::tables::{LogRow, RoutingRow};

/// Bins of the loss curve: enough to see its shape, few enough to see the mean.
const BINS: usize = 60;
/// Width and height of a chart of which two stand side by side.
const SIZE: (f64, f64) = (540.0, 300.0);

/// A curve of one run at one seed: pairs of x and value.
type Curve = Vec<(f64, f64)>;

/// The training curves.
pub(in crate::report) fn section(study: &Study<'_>) -> Section {
    let focus = study.focus();
    let mut figures: Vec<Figure> = Vec::new();

    figures.extend(loss(study, &focus));
    figures.extend(validation(study, &focus));
    figures.extend(loss_gap(study));
    figures.extend(metric_gap(study));
    figures.extend(routing(study, &focus, Routed::Entropy));
    figures.extend(similarity(study, &focus));
    figures.extend(routing(study, &focus, Routed::Load));

    let mut blocks: Vec<Block> = Block::figures(figures, 2).into_iter().collect();

    // The runs that the main figures leave out get a small chart each, folded away.
    let others: Vec<&String> = study.runs.iter().filter(|r| !focus.contains(r)).collect();
    let small: Vec<Figure> =
        others.iter().filter_map(|run| against(study, run)).collect();
    if let Some(small) = Block::figures(small, 3) {
        let summary = format!(
            "Loss of the {} against the reference",
            words::count(others.len(), "other run")
        );
        blocks.push(Block::Details { summary, blocks: vec![small] });
    }

    Section {
        id: "training",
        title: "Training".to_owned(),
        lead: vec!["Lines are means over seeds; bands reach from the lowest to the highest seed.".to_owned()],
        blocks,
    }
}

fn loss(study: &Study<'_>, runs: &[String]) -> Option<Figure> {
    let series: Vec<Series> = runs.iter().map(|run| loss_series(study, run)).collect();
    let chart = LineChart {
        title: "Contrastive loss over steps".to_owned(),
        x_label: "step".to_owned(),
        y_label: "contrastive loss".to_owned(),
        y_domain: settled(&series),
        series,
        size: SIZE,
        ..LineChart::default()
    };
    let caption = format!(
        "Contrastive loss (nats, without the auxiliary losses), mean within at most {BINS} equal bins of steps; the axis leaves out the first bin where it is far above the rest."
    );
    Figure::new("Loss", &caption, chart.draw())
}

fn loss_series(study: &Study<'_>, run: &str) -> Series {
    let curves: Vec<Curve> = study.of(run).map(|r| binned(&r.log)).collect();
    series(study, run, &curves)
}

/// The runs whose gaps to the reference are drawn.
fn rivals(study: &Study<'_>) -> Vec<String> {
    let focus = study.focus().into_iter();
    focus.filter(|run| Some(run.as_str()) != study.reference()).collect()
}

/// The contrastive loss less that of the reference on the same batches.
fn loss_gap(study: &Study<'_>) -> Option<Figure> {
    let reference = study.reference()?;
    let of_run = |run: &String| {
        let curves: Vec<Curve> = pairs(study, run, reference)
            .map(|(ours, theirs)| gap(&by_samples(&ours.log), &by_samples(&theirs.log)))
            .collect();
        series(study, run, &curves)
    };
    let all: Vec<Series> = rivals(study).iter().map(of_run).collect();
    let theirs = study.name(reference);
    let chart = LineChart {
        title: format!("Contrastive loss less that of {theirs}"),
        x_label: "samples seen".to_owned(),
        y_label: "loss gap (nats)".to_owned(),
        y_domain: settled(&all),
        series: all,
        rule: Some((0.0, theirs.clone())),
        size: SIZE,
        ..LineChart::default()
    };
    let caption = format!(
        "Contrastive loss less that of {theirs} at the same seed, which sees the same batches, mean within at most {BINS} equal bins: below zero is better. Nothing else measured is as sensitive."
    );
    Figure::new("Loss gap", &caption, chart.draw())
}

/// The retrieval on validation pictures less that of the reference.
fn metric_gap(study: &Study<'_>) -> Option<Figure> {
    let reference = study.reference()?;
    let batch = study.config().train.optim.batch as f64;
    let curve = |run: &RunInputs| -> Curve {
        let mut steps: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for row in run.validation.iter().filter(|row| row.metric.contains("recall")) {
            steps.entry(row.step).or_default().push(100.0 * row.value);
        }
        let mean = |(step, values): (u32, Vec<f64>)| {
            (batch * f64::from(step), crate::num::mean(&values))
        };
        steps.into_iter().map(mean).collect()
    };
    let of_run = |run: &String| {
        let both = pairs(study, run, reference);
        let curves: Vec<Curve> =
            both.map(|(ours, theirs)| gap(&curve(ours), &curve(theirs))).collect();
        series(study, run, &curves)
    };

    let theirs = study.name(reference);
    let chart = LineChart {
        title: format!("Validation R@1 less that of {theirs}"),
        x_label: "samples seen".to_owned(),
        y_label: "R@1 gap (points)".to_owned(),
        series: rivals(study).iter().map(of_run).collect(),
        rule: Some((0.0, theirs.clone())),
        size: SIZE,
        ..LineChart::default()
    };
    let caption = format!(
        "Recall at 1 on the validation split, mean of both ways, less that of {theirs} at the same seed: above zero is better."
    );
    Figure::new("Metric gap", &caption, chart.draw())
}

/// A run and another one at each seed that both have.
fn pairs<'a>(
    study: &'a Study<'_>,
    run: &'a str,
    other: &'a str,
) -> impl Iterator<Item = (&'a RunInputs, &'a RunInputs)> {
    study.of(run).filter_map(move |ours| {
        let theirs = study.of(other).find(|theirs| theirs.seed == ours.seed)?;
        Some((ours, theirs))
    })
}

/// [`binned`], over samples seen instead of steps.
fn by_samples(log: &[LogRow]) -> Curve {
    let batch = log.first().map_or(0.0, |row| f64::from(row.samples));
    binned(log).into_iter().map(|(step, loss)| (batch * (step + 1.0), loss)).collect()
}

/// One curve less another, where they have points at the same place.
fn gap(ours: &Curve, theirs: &Curve) -> Curve {
    let same = |(x, value): &(f64, f64)| {
        let other = theirs.iter().find(|(other, _)| other.to_bits() == x.to_bits())?;
        Some((*x, value - other.1))
    };
    ours.iter().filter_map(same).collect()
}

fn series(study: &Study<'_>, run: &str, curves: &[Curve]) -> Series {
    Series {
        label: study.name(run),
        class: Study::class(run),
        points: banded(curves),
        ..Series::default()
    }
}

/// Mean contrastive loss in equal bins of steps.
fn binned(log: &[LogRow]) -> Curve {
    let width = log.len().div_ceil(BINS).max(1);

    log.chunks(width)
        .filter_map(|chunk| {
            // One step's loss says little about the curve: batches differ.
            let mean = summary(chunk.iter().map(|row| row.clip))?.mean;
            let steps: Vec<f64> = chunk.iter().map(|row| f64::from(row.step)).collect();
            Some((crate::num::mean(&steps), mean))
        })
        .collect()
}

/// Joins the seeds' curves: mean, lowest and highest at each x.
fn banded(curves: &[Curve]) -> Vec<Point> {
    let mut at: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for &(x, value) in curves.iter().flatten().filter(|(x, v)| *x >= 0.0 && v.is_finite())
    {
        // Non-negative floats sort like their bits.
        at.entry(x.to_bits()).or_default().push(value);
    }
    at.into_iter()
        .map(|(bits, values)| Point {
            x: f64::from_bits(bits),
            mean: crate::num::mean(&values),
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
        .collect()
}

/// Limits of y that leave out the first bin, which warm-up dominates.
fn settled(series: &[Series]) -> Option<(f64, f64)> {
    let later = series.iter().flat_map(|s| s.points.iter().skip(1));
    crate::report::chart::scale::extent(later.flat_map(|p| [p.low, p.high]), 0.05)
}

/// The run's loss over the reference's.
fn against(study: &Study<'_>, run: &str) -> Option<Figure> {
    let mut all = vec![loss_series(study, run)];
    all.extend(study.reference().map(|reference| loss_series(study, reference)));
    let y_domain = settled(&all);

    // So small a chart has no room for labels: names become tooltips.
    for one in &mut all {
        one.title = std::mem::take(&mut one.label);
    }

    let chart = LineChart {
        title: format!("Loss of {}", study.name(run)),
        x_label: "step".to_owned(),
        y_label: "contrastive loss".to_owned(),
        series: all,
        y_domain,
        size: (340.0, 210.0),
        ..LineChart::default()
    };

    let reference = study
        .reference()
        .map_or_else(String::new, |r| format!("; the other line is {}", study.name(r)));
    Figure::new(&study.name(run), &format!("Contrastive loss{reference}."), chart.draw())
}

fn validation(study: &Study<'_>, runs: &[String]) -> Option<Figure> {
    let rows = study.inputs.runs.iter().flat_map(|r| &r.validation);
    let metrics: BTreeSet<&str> = rows.map(|row| row.metric.as_str()).collect();

    // One metric is enough. Accuracy comes first; a loss is drawn only where there is
    // nothing else.
    let rate = |metric: &&str| match *metric {
        m if m.contains("acc1") => 0,
        m if m.contains("recall") => 1,
        m if m.contains("acc") => 2,
        _ => 3,
    };
    let metric = metrics.into_iter().min_by_key(rate)?;
    validation_of(study, runs, metric)
}

fn validation_of(study: &Study<'_>, runs: &[String], metric: &str) -> Option<Figure> {
    let rows = |r: &RunInputs| -> Curve {
        let own = r.validation.iter().filter(|row| row.metric == metric);
        own.map(|row| (f64::from(row.step), row.value)).collect()
    };

    // Fractions are drawn in percent, a loss as it is.
    let mut values = study.inputs.runs.iter().flat_map(rows).map(|(_, value)| value);
    let fractions = values.all(|v| v.is_nan() || (0.0..=1.0).contains(&v));
    let (factor, unit) = if fractions { (100.0, " (%)") } else { (1.0, "") };

    let scaled = |r: &RunInputs| -> Curve {
        rows(r).into_iter().map(|(x, v)| (x, factor * v)).collect()
    };

    let all = runs.iter().map(|run| {
        let curves: Vec<Curve> = study.of(run).map(scaled).collect();
        series(study, run, &curves)
    });

    let chart = LineChart {
        title: format!("Validation: {metric}"),
        x_label: "step".to_owned(),
        y_label: format!("{metric}{unit}"),
        series: all.collect(),
        size: SIZE,
        ..LineChart::default()
    };
    let caption =
        format!("`{metric}` on the validation split, which is kept for choices.");
    Figure::new("Validation", &caption, chart.draw())
}

/// What is drawn of `routing.parquet`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Routed {
    Entropy,
    Load,
}

fn routing(study: &Study<'_>, runs: &[String], what: Routed) -> Option<Figure> {
    let line = |run: &String, statistic: fn(&RoutingRow) -> f64| {
        let curves = study.of(run).map(|r| over_layers(&r.routing, statistic));
        series(study, run, &curves.collect::<Vec<_>>())
    };

    let mut all = Vec::new();
    for run in runs.iter().filter(|run| study.is_moe(run)) {
        match what {
            Routed::Entropy => all.push(line(run, entropy)),
            Routed::Load => {
                // The two lines of a run share one label, that of the upper line.
                all.push(line(run, busiest));
                let mut low = line(run, least_busy);
                low.title = std::mem::take(&mut low.label);
                all.push(low);
            }
        }
    }

    let experts = study.config().moe.experts;
    let (name, y_label, caption) = match what {
        Routed::Entropy => (
            "Routing entropy",
            "entropy / ln E",
            "Entropy of the router's softmax over ln E, mean over tokens, layers and towers: 1 means a uniform router, 0 a certain one.",
        ),
        Routed::Load => (
            "Load of the busiest and the least busy expert",
            "load \u{d7} E",
            "Fraction of assignments times E, mean over layers: the upper line of a run is its busiest expert, the lower line its least busy one; 1 is perfect balance.",
        ),
    };

    let chart = LineChart {
        title: name.to_owned(),
        x_label: "step".to_owned(),
        y_label: y_label.to_owned(),
        series: all,
        rule: (what == Routed::Load && experts > 0).then(|| (1.0, "balanced".to_owned())),
        size: SIZE,
        ..LineChart::default()
    };
    Figure::new(name, caption, chart.draw())
}

/// How alike experts are, measured at every validation.
fn similarity(study: &Study<'_>, runs: &[String]) -> Option<Figure> {
    let line = |run: &String| {
        let curves = study.of(run).map(|own| {
            let rows = own.trained_similarity.iter();
            means_by_step(rows.map(|row| (row.step, row.similarity)))
        });
        series(study, run, &curves.collect::<Vec<_>>())
    };
    let chart = LineChart {
        title: "Expert similarity over steps".to_owned(),
        x_label: "step".to_owned(),
        y_label: "mean cosine".to_owned(),
        series: runs.iter().filter(|run| study.is_moe(run)).map(line).collect(),
        size: SIZE,
        ..LineChart::default()
    };
    let caption = "Mean cosine of the flattened weights [W1; W2] over pairs of experts, mean over layers and towers (paper, figure 4b): 1 means that the experts are copies of each other.";
    Figure::new("Expert similarity over training", caption, chart.draw())
}

/// The mean of the values of each step.
fn means_by_step(values: impl Iterator<Item = (u32, f64)>) -> Curve {
    let mut steps: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for (step, value) in values {
        steps.entry(step).or_default().push(value);
    }
    let mean = |(step, values)| Some((f64::from(step), summary(values)?.mean));
    steps.into_iter().filter_map(mean).collect()
}

/// Mean of a statistic over the layers of each step, thinned to at most [`BINS`] steps.
fn over_layers(rows: &[RoutingRow], statistic: impl Fn(&RoutingRow) -> f64) -> Curve {
    let means = means_by_step(rows.iter().map(|row| (row.step, statistic(row))));
    let width = means.len().div_ceil(BINS).max(1);
    means
        .chunks(width)
        .map(|chunk| {
            let mean = |pick: fn(&(f64, f64)) -> f64| {
                crate::num::mean(&chunk.iter().map(pick).collect::<Vec<_>>())
            };
            (mean(|p| p.0), mean(|p| p.1))
        })
        .collect()
}

fn entropy(row: &RoutingRow) -> f64 {
    // ln 1 is 0: a layer with one expert is divided by ln 2 and shows entropy 0.
    row.entropy / (row.utilisation.len().max(2) as f64).ln()
}

fn busiest(row: &RoutingRow) -> f64 {
    // NaN gives way to the first load, and stays where a layer has none.
    let top = row.utilisation.iter().copied().fold(f32::NAN, f32::max);
    f64::from(top) * row.utilisation.len() as f64
}

fn least_busy(row: &RoutingRow) -> f64 {
    let bottom = row.utilisation.iter().copied().fold(f32::NAN, f32::min);
    f64::from(bottom) * row.utilisation.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_reach_from_the_lowest_to_the_highest_seed() {
        let points =
            banded(&[vec![(0.0, 1.0), (1.0, 2.0)], vec![(0.0, 3.0), (1.0, f64::NAN)]]);
        assert_eq!(points[0], Point { x: 0.0, mean: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(points[1], Point::bare(1.0, 2.0));
    }

    #[test]
    fn binning_keeps_the_mean() {
        let row = |step| LogRow { step, clip: f64::from(step), ..LogRow::default() };
        let log: Vec<_> = (0..600).map(row).collect();
        let bins = binned(&log);
        assert_eq!(bins.len(), BINS);
        assert_eq!(bins[0], (4.5, 4.5));
    }

    #[test]
    fn a_gap_is_taken_at_the_same_samples() {
        let row = |step: u32, clip| LogRow {
            step,
            samples: 32 * (step + 1),
            clip,
            ..LogRow::default()
        };
        let ours: Vec<_> = (0..6).map(|step| row(step, 1.0)).collect();
        let theirs: Vec<_> = (0..4).map(|step| row(step, 1.5)).collect();
        let found = gap(&by_samples(&ours), &by_samples(&theirs));
        let expected: Curve = (1..5).map(|n| (32.0 * f64::from(n), -0.5)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn load_is_one_when_balanced() {
        let row = RoutingRow {
            entropy: 4_f64.ln(),
            utilisation: vec![0.25; 4],
            ..RoutingRow::default()
        };
        assert_eq!((busiest(&row), least_busy(&row), entropy(&row)), (1.0, 1.0, 1.0));
    }
}
