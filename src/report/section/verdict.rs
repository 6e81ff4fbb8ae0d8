//! The verdict: words made from paired differences, which never claim a win that the numbers
//! do not show.

use crate::config::Bases;
use crate::eval::{CONTRASTIVE_TASK, Interval};
use crate::report::chart::forest::{Forest, ForestRow};
use crate::report::document::{Cell, Figure, Table, Verdict};
use crate::report::headline::{Area, Headline};
use crate::report::outcomes;
use crate::report::section::{cost, pixels};
use crate::report::stats::{BySeed, COVERAGE, Difference, Sign, paired, t_quantile};
use crate::report::study::{
    Basis, FINAL, INIT, LayerKey, MetricKey, Model, Study, in_points, over_seeds,
};
use crate::report::words;

/// The two sides of a comparison.
#[derive(Clone, Copy)]
struct Pair<T> {
    ours: T,
    theirs: T,
}

/// One headline metric of two models.
struct Contest<'h> {
    headline: &'h Headline,
    difference: Difference,
    /// The sign that survives a Bonferroni correction.
    corrected: Sign,
}

/// Whether a sign says that there is a difference.
fn shown(sign: Sign) -> bool {
    matches!(sign, Sign::Above | Sign::Below)
}

/// What the upcycled model is held against.
struct Rival<'a> {
    model: Model<'a>,
    /// What sentences and tables call it.
    name: String,
}

/// What all contests with one rival come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Better somewhere, worse nowhere.
    Better,
    /// Worse somewhere, better nowhere.
    Worse,
    /// Better here and worse there.
    Mixed,
    /// All differences are within the noise.
    Level,
    /// There are no intervals.
    Unknown,
}

impl Outcome {
    fn of(contests: &[Contest<'_>]) -> Self {
        let any = |sign| contests.iter().any(|c| c.difference.sign() == sign);
        match (any(Sign::Above), any(Sign::Below), any(Sign::Covered)) {
            (true, true, _) => Self::Mixed,
            (true, false, _) => Self::Better,
            (false, true, _) => Self::Worse,
            (false, false, true) => Self::Level,
            (false, false, false) => Self::Unknown,
        }
    }
}

/// The verdict on the showcase run: against the dense model before and after as much training,
/// and against the reference run.
pub(in crate::report) fn verdict(study: &Study<'_>, headlines: &[Headline]) -> Verdict {
    let report = &study.config().report;
    let showcase = report.showcase.as_str();
    let reference = study.reference().filter(|r| *r != showcase);
    if reference.is_none() && !study.has(showcase) {
        return without("There is no reference run to compare with.");
    }
    if !study.has(showcase) {
        return without("The showcase run is missing, so there is nothing to decide.");
    }

    let ours = Model { run: showcase, point: FINAL };
    let rivals = rivals(study, reference);
    let contested = |rival: &Rival<'_>| {
        contests(study, headlines, Pair { ours, theirs: rival.model })
    };
    let all: Vec<Vec<Contest<'_>>> = rivals.iter().map(contested).collect();
    if all.iter().all(Vec::is_empty) {
        return without(
            "The showcase run shares no metric with another run over a common seed.",
        );
    }

    let name = study.name(showcase);
    let faced = || rivals.iter().zip(&all).filter(|(_, contests)| !contests.is_empty());
    let mut statements: Vec<String> =
        faced().map(|(rival, contests)| sentence(contests, &name, &rival.name)).collect();

    statements.extend(loss(study, showcase, &rivals));
    let against_reference = reference.map(|theirs| Pair { ours: showcase, theirs });
    statements.extend(against_reference.and_then(|pair| structure(study, pair)));
    let decisive: Vec<&Contest<'_>> = all.iter().flatten().collect();
    Verdict {
        headline: answer(study, &rivals, &all),
        advice: advice(study, &rivals, &all),
        statements,
        caveats: pixels::warning(study, headlines)
            .into_iter()
            .chain(caveats(study, &decisive))
            .collect(),
        figure: reference.and_then(|reference| figure(study, headlines, reference)),
        tables: vec![table(study, headlines, ours, &rivals), cost::table(study)],
    }
}

fn without(headline: &str) -> Verdict {
    Verdict { headline: headline.to_owned(), ..Verdict::default() }
}

/// The dense model untouched, the dense model trained on, and the reference run.
fn rivals<'a>(study: &'a Study<'_>, reference: Option<&'a str>) -> Vec<Rival<'a>> {
    let mut rivals = Vec::new();
    let dense = study.runs.iter().find(|run| !study.is_moe(run)).map(String::as_str);

    // The dense run shows the model before and after as much training as the others had.
    if let Some(run) = dense {
        rivals.push(Rival {
            model: Model { run, point: INIT },
            name: study.checkpoint().to_owned(),
        });
        rivals.push(Rival {
            model: Model { run, point: FINAL },
            name: "dense training on for as long".to_owned(),
        });
    }
    rivals.extend(
        reference.filter(|run| Some(*run) != dense).map(|run| Rival {
            model: Model { run, point: FINAL },
            name: study.name(run),
        }),
    );
    rivals
}

/// Whether it was worth it: decided by the dense model that trained on for as long, for an
/// upcycled model must beat what the same budget gives without it.
fn answer(study: &Study<'_>, rivals: &[Rival<'_>], all: &[Vec<Contest<'_>>]) -> String {
    let name = study.name(&study.config().report.showcase);
    let Some((rival, contests)) = decisive(study, rivals, all) else {
        return "There is nothing to compare with.".to_owned();
    };
    let labels = |sign| words::list(&labels(contests, sign));
    let (better, worse) = (labels(Sign::Above), labels(Sign::Below));
    let theirs = &rival.name;

    // A claim is made only where an interval excludes zero.
    match Outcome::of(contests) {
        Outcome::Better => format!(
            "Worth it on {better}: {name} is better than {theirs}, and shown to be worse on nothing."
        ),
        Outcome::Worse => format!(
            "Not worth it: {name} is worse than {theirs} on {worse}, and shown to be better on nothing."
        ),
        Outcome::Mixed => format!(
            "It depends: {name} is better than {theirs} on {better}, and worse on {worse}."
        ),
        // A loss that is lower says that something was learned, and not that it pays yet.
        Outcome::Level if lower_loss(study, rival) => format!(
            "Not shown to be worth it yet: the loss of {name} on held-out pairs is below that of {theirs}, but no difference in accuracy or recall is shown to be more than noise."
        ),
        Outcome::Level => format!(
            "Not shown to be worth it: no difference between {name} and {theirs} is shown to be more than noise."
        ),
        Outcome::Unknown => format!(
            "One seed does not tell the spread: nothing can be claimed about {name} against {theirs}."
        ),
    }
}

/// The rival that decides: the dense model trained on, else the last one, the reference.
fn decisive<'r, 'h>(
    study: &Study<'_>,
    rivals: &'r [Rival<'r>],
    all: &'r [Vec<Contest<'h>>],
) -> Option<(&'r Rival<'r>, &'r [Contest<'h>])> {
    let faced = || rivals.iter().zip(all).filter(|(_, contests)| !contests.is_empty());
    let dense = faced()
        .find(|(rival, _)| rival.model.point == FINAL && !study.is_moe(rival.model.run));
    let found = dense.or_else(|| faced().next_back());
    found.map(|(rival, contests)| (rival, contests.as_slice()))
}

/// What to do, in a sentence, with what it costs.
fn advice(study: &Study<'_>, rivals: &[Rival<'_>], all: &[Vec<Contest<'_>>]) -> String {
    let name = study.name(&study.config().report.showcase);
    let reference = rivals.last().filter(|rival| study.is_moe(rival.model.run));
    let Some((rival, contests)) = decisive(study, rivals, all) else {
        return String::new();
    };
    if study.is_moe(rival.model.run) {
        return "Add a run with `method: dense` to see whether the experts pay: without it nothing says what the same training gives without them.".to_owned();
    }

    let cost = cost::ratio(study).unwrap_or_default();
    let against_reference = reference.and(all.last()).map(|c| Outcome::of(c));
    match (Outcome::of(contests), against_reference, reference) {
        (Outcome::Better, Some(Outcome::Level | Outcome::Worse), Some(plain)) => format!(
            "Upcycle{cost}, but {} does at least as well here and needs no clusters.",
            plain.name
        ),
        (Outcome::Better, _, _) => format!("Use {name}{cost}."),
        (Outcome::Mixed, _, _) => {
            format!("Use {name} only if the metrics it wins are the ones you need{cost}.")
        }
        (Outcome::Worse, _, _) => {
            "Keep the dense model and train it on: it is smaller and better.".to_owned()
        }
        (Outcome::Level, _, _) => format!(
            "Keep the dense model and train it on, unless a longer training or more seeds show a difference: {name} costs more{cost}."
        ),
        (Outcome::Unknown, _, _) => {
            "Train at least two seeds (`seeds: [1, 2, 3]`) before deciding.".to_owned()
        }
    }
}

/// The metrics whose difference has this sign.
fn labels(contests: &[Contest<'_>], sign: Sign) -> Vec<String> {
    let chosen = contests.iter().filter(|c| c.difference.sign() == sign);
    chosen.map(|c| words::lower(&c.headline.label)).collect()
}

/// The upcycled model in the first row, and how far it is ahead of each rival below.
fn table(
    study: &Study<'_>,
    headlines: &[Headline],
    ours: Model<'_>,
    rivals: &[Rival<'_>],
) -> Table {
    let shown: Vec<&Headline> = contested(headlines);
    let mut head = vec![Cell::words("")];
    head.extend(shown.iter().map(|h| Cell::number(&h.label).with_title(&h.definition)));

    let mut first =
        vec![Cell::words(study.name(ours.run)).with_mark(Study::class(ours.run))];
    first.extend(shown.iter().map(|headline| {
        let values = headline.values(study, ours.run, ours.point);
        Cell::number(words::spread_percent(over_seeds(&values)))
    }));

    let mut rows = vec![first];
    rows.extend(rivals.iter().map(|rival| {
        let class = Study::class(rival.model.run);
        let name = format!("ahead of {}", rival.name);
        let mut row = vec![Cell::words(name).with_mark(class)];
        row.extend(shown.iter().map(|headline| {
            Cell::difference(headline.difference(study, ours, rival.model, COVERAGE))
        }));
        row
    }));
    Table {
        title: "The answer in numbers".to_owned(),
        note: format!("Percent, and percentage points ahead {}.", study.basis().below()),
        head,
        rows,
        foreign: false,
    }
}

/// The metrics that decide. Accuracy among all concepts stands in where there is no shift.
fn contested(headlines: &[Headline]) -> Vec<&Headline> {
    let shift = headlines.iter().any(|h| h.area == Area::Shift);
    let wanted = |h: &&Headline| h.area != Area::Other || (h.task == "concept" && !shift);
    headlines.iter().filter(wanted).collect()
}

fn contests<'h>(
    study: &Study<'_>,
    headlines: &'h [Headline],
    Pair { ours, theirs }: Pair<Model<'_>>,
) -> Vec<Contest<'h>> {
    let contested = contested(headlines);

    // With several metrics, each must pass a stricter test for all to hold at once.
    let strict = 1.0 - (1.0 - COVERAGE) / contested.len().max(1) as f64;
    contested
        .into_iter()
        .filter_map(|headline| {
            let estimate = headline.estimate(study, ours, theirs)?;
            let corrected = estimate.at(strict)?.sign();
            let difference = in_points(estimate.at(COVERAGE)?);
            Some(Contest { headline, difference, corrected })
        })
        .collect()
}

/// One rival in one sentence: what is better, what is worse, and what is within the noise.
fn sentence(contests: &[Contest<'_>], ours: &str, theirs: &str) -> String {
    let labels = |sign| labels(contests, sign);
    let (won, lost) = (labels(Sign::Above), labels(Sign::Below));
    let (covered, unknown) = (labels(Sign::Covered), labels(Sign::Unknown));

    // The clear cases get a sentence of their own.
    if unknown.len() == contests.len() {
        return format!(
            "Against {theirs}: the spread is unknown, so nothing is claimed."
        );
    }
    if won.len() == contests.len() {
        return format!("{ours} beats {theirs} on {}.", words::list(&won));
    }
    if won.is_empty() && lost.is_empty() && unknown.is_empty() {
        return format!(
            "On all metrics that count pictures, the differences between {ours} and {theirs} are within the noise."
        );
    }

    let mut parts = Vec::new();
    if !won.is_empty() {
        parts.push(format!("{ours} beats {theirs} on {}", words::list(&won)));
    }
    if !lost.is_empty() {
        let subject = if won.is_empty() {
            format!("{ours} is worse than {theirs}")
        } else {
            "it is worse".to_owned()
        };
        parts.push(format!("{subject} on {}", words::list(&lost)));
    }
    if !covered.is_empty() {
        let metrics = words::list(&covered);
        parts.push(format!("on {metrics} the difference is within the noise"));
    }
    if !unknown.is_empty() {
        parts.push(format!("on {} the spread is unknown", words::list(&unknown)));
    }

    // Who is compared stands in the first part only where somebody won or lost.
    let neither = won.is_empty() && lost.is_empty();
    let against = if neither { format!("Against {theirs}: ") } else { String::new() };
    format!("{against}{}.", parts.join("; "))
}

/// The contrastive loss on held-out pairs of a model after training.
fn held_out_loss<'a>(study: &'a Study<'_>, run: &'a str) -> MetricKey<'a> {
    let split = study.inputs.dataset.retrieval.as_str();
    MetricKey { run, point: FINAL, task: CONTRASTIVE_TASK, split, metric: "loss" }
}

/// Whether the showcase run's loss on held-out pairs is shown to be below a rival's.
fn lower_loss(study: &Study<'_>, rival: &Rival<'_>) -> bool {
    let key = held_out_loss(study, &study.config().report.showcase);
    let pictures = outcomes::difference(study, key, rival.model.run);
    rival.model.point == FINAL
        && pictures.is_some_and(|found| found.interval(COVERAGE).high < 0.0)
}

/// The contrastive loss on held-out pairs against each rival that trained on: it moves with
/// every pair, and so shows differences that accuracies are too coarse for.
fn loss(study: &Study<'_>, run: &str, rivals: &[Rival<'_>]) -> Option<String> {
    let key = held_out_loss(study, run);
    let split = key.split;
    let part = |rival: &Rival<'_>| {
        let pictures = outcomes::difference(study, key, rival.model.run)?;
        let Interval { low, high } = pictures.interval(COVERAGE);
        let by = words::number(pictures.value.abs(), 3);
        let side = if pictures.value < 0.0 { "below" } else { "above" };
        let interval = format!("[{}, {}]", words::signed(low, 3), words::signed(high, 3));
        Some(format!("{by} {side} {} {interval}", rival.name))
    };
    let trained = rivals.iter().filter(|rival| rival.model.point == FINAL);
    let parts: Vec<String> = trained.filter_map(part).collect();
    let own = over_seeds(&study.metric(key))?;
    (!parts.is_empty()).then(|| {
        format!(
            "Contrastive loss on `{split}` in nats, the most sensitive measure: {} {}, {}.",
            study.name(run),
            words::number(own.mean, 3),
            words::list(&parts)
        )
    })
}

/// Expert similarity and routing entropy, each as a mean over layers.
fn structure(study: &Study<'_>, runs: Pair<&str>) -> Option<String> {
    let metrics = [
        ("similarity", "expert similarity"),
        ("entropy_normalised", "routing entropy (1 is uniform)"),
    ];

    let part = |&(metric, name): &(&str, &str)| {
        let a = layer_mean(study, (runs.ours, FINAL), metric);
        let b = layer_mean(study, (runs.theirs, FINAL), metric);

        let end = match paired(&a, &b, COVERAGE)?.sign() {
            Sign::Above => "higher",
            Sign::Below => "lower",
            Sign::Covered => "the difference is within the noise",
            Sign::Unknown => "the spread is unknown",
        };

        // Much of a difference at the end is that of the start.
        let both = |run, after: &BySeed| {
            let start = over_seeds(&layer_mean(study, (run, INIT), metric));
            let start =
                start.map(|s| format!(" ({} at the start)", words::number(s.mean, 2)));
            let after = words::number(over_seeds(after)?.mean, 2);
            Some(format!("{after}{}", start.unwrap_or_default()))
        };
        let (ours, theirs) = (both(runs.ours, &a)?, both(runs.theirs, &b)?);
        Some(format!("{name} {ours} against {theirs}: {end}"))
    };

    let parts: Vec<String> = metrics.iter().filter_map(part).collect();
    (!parts.is_empty())
        .then(|| format!("Structure after training: {}.", parts.join("; ")))
}

/// The mean over layers of a metric, for every seed that has all layers.
fn layer_mean(study: &Study<'_>, (run, point): (&str, &str), metric: &str) -> BySeed {
    let layers = study.moe_layers();
    let of_layer = |layer| study.layer(LayerKey { run, point, layer, metric });
    let all: Vec<BySeed> = layers.iter().map(of_layer).collect();

    // A mean over fewer layers would be another metric.
    let of_seed = |seed: u64| {
        let values = all.iter().map(|layer| layer.get(&seed).copied());
        let values: Vec<f64> = values.collect::<Option<_>>()?;
        (!values.is_empty()).then(|| (seed, crate::num::mean(&values)))
    };
    study.seeds(run).into_iter().filter_map(of_seed).collect()
}

fn caveats(study: &Study<'_>, contests: &[&Contest<'_>]) -> Vec<String> {
    let n = contests.iter().map(|c| c.difference.n).min().unwrap_or(0);
    let mut out = Vec::new();
    match study.basis() {
        Basis::Pictures if n > 1 => {
            out.push(format!(
                "Differences are paired by seed and by picture; brackets are 95 % intervals that cover the luck of training and which test pictures were drawn (docs/method.md, section 6). What each covers: {}.",
                covered(contests)
            ));
            out.extend(correction(contests));
        }
        Basis::Seeds if n > 1 => {
            let quantile = t_quantile(0.5 + COVERAGE / 2.0, n - 1);
            out.push(format!(
                "Differences are paired by seed; brackets are 95 % t intervals over n = {n} seeds (factor {quantile:.2} on the standard error). They cover the luck of training after upcycling, and not which test examples were drawn."
            ));
            out.extend(correction(contests));
        }
        Basis::Examples => {
            let resamples = words::grouped(study.config().evaluate.bootstrap as f64);
            out.push(format!(
                "One seed: brackets are 95 % intervals of a paired bootstrap over the test examples ({resamples} resamples). They cover which examples were drawn, and not the luck of training: another seed may move every number by more."
            ));
            out.extend(correction(contests));
        }
        _ => out.push("With one shared seed no spread can be estimated; differences are printed without a claim.".to_owned()),
    }

    // Several seeds that share their start are less different than they look.
    let shares = study.config().pretrain.bases == Bases::Shared;
    if shares && study.most_seeds() > 1 && !study.imported() {
        out.push(
            "All seeds share one dense model: the intervals do not cover how lucky its training was."
                .to_owned(),
        );
    }
    out
}

/// What the interval of each metric covers, metrics that cover the same together.
fn covered(contests: &[&Contest<'_>]) -> String {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for contest in contests {
        let covers = match contest.difference.covers {
            Some(covers) => covers.to_string(),
            None => format!(
                "the training luck of {} seeds, not the test pictures",
                contest.difference.n
            ),
        };
        let label = words::lower(&contest.headline.label);
        match all.iter_mut().find(|(known, _)| *known == covers) {
            Some((_, labels)) if labels.contains(&label) => {}
            Some((_, labels)) => labels.push(label),
            None => all.push((covers, vec![label])),
        }
    }
    let part = |(covers, labels): &(String, Vec<String>)| {
        format!("{}: {covers}", words::list(labels))
    };
    all.iter().map(part).collect::<Vec<_>>().join("; ")
}

/// How many differences remain when the number of comparisons is taken into account.
fn correction(contests: &[&Contest<'_>]) -> Option<String> {
    let found = contests.iter().filter(|c| shown(c.difference.sign())).count();
    let kept = contests.iter().filter(|c| shown(c.corrected)).count();
    let metrics = contests.len();
    (found > 0).then(|| {
        format!(
            "{metrics} differences are judged together: with Bonferroni's correction {kept} of the {found} shown differences remain."
        )
    })
}

/// The differences from the reference of the showcase and of the run that has only the
/// cluster initialization.
fn figure(study: &Study<'_>, headlines: &[Headline], reference: &str) -> Option<Figure> {
    let report = &study.config().report;
    let mut runs = vec![report.showcase.as_str()];
    let init_only = report.ablation.get(1).map(String::as_str);
    runs.extend(init_only.filter(|r| study.has(r) && *r != report.showcase));
    runs.retain(|run| *run != reference);

    let theirs = study.name(reference);
    let groups = runs.into_iter().map(|run| {
        let model = |run| Model { run, point: FINAL };
        let pair = Pair { ours: model(run), theirs: model(reference) };
        let contests = contests(study, headlines, pair);
        let rows = contests.into_iter().map(|contest| ForestRow {
            label: contest.headline.label.clone(),
            class: Study::class(run),
            difference: contest.difference,
        });
        (format!("{} \u{2212} {theirs}", study.name(run)), rows.collect())
    });

    let forest = Forest {
        title: format!("Paired differences from {theirs}"),
        x_label: format!("percentage points; right of zero is better than {theirs}"),
        groups: groups.collect(),
        width: 540.0,
    };
    Figure::new(
        "Paired differences",
        "Difference after training with its 95 % interval; the mark is filled where the interval excludes zero, and hollow where the difference is within the noise.",
        forest.draw(),
    )
}
