//! The verdict: words made from paired differences, which never claim a win that the numbers
//! do not show.

use crate::config::Bases;
use crate::report::chart::forest::{Forest, ForestRow};
use crate::report::document::{Figure, Verdict};
use crate::report::headline::{Area, Headline};
use crate::report::stats::{
    BySeed, COVERAGE, Difference, Sign, paired, summary, t_quantile,
};
use crate::report::study::{FINAL, LayerKey, Study, difference_points, over_seeds};
use crate::report::words;

/// The two runs of a comparison, by key or by readable name.
#[derive(Clone, Copy)]
struct Pair<'a> {
    ours: &'a str,
    theirs: &'a str,
}

/// One headline metric of the two runs.
struct Contest<'h> {
    headline: &'h Headline,
    difference: Difference,
    /// Mean of our run, in percent.
    ours: String,
    /// Mean of the other run, in percent.
    theirs: String,
    /// The sign that survives a Bonferroni correction.
    corrected: Sign,
}

/// Whether a sign says that there is a difference.
fn shown(sign: Sign) -> bool {
    matches!(sign, Sign::Above | Sign::Below)
}

/// The verdict on the showcase run against the reference run.
pub(in crate::report) fn verdict(study: &Study<'_>, headlines: &[Headline]) -> Verdict {
    let showcase = study.config().report.showcase.as_str();
    let Some(reference) = study.reference().filter(|r| *r != showcase) else {
        return without("There is no reference run to compare with.");
    };
    if !study.has(showcase) {
        return without("The showcase run is missing, so there is nothing to decide.");
    }

    let runs = Pair { ours: showcase, theirs: reference };
    let contests = contests(study, headlines, runs);
    if contests.is_empty() {
        return without("The two runs share no metric over a common seed.");
    }

    let (ours, theirs) = (study.name(showcase), study.name(reference));
    let mut statements = statements(&contests);
    statements.extend(structure(study, runs));
    Verdict {
        headline: headline(&contests, Pair { ours: &ours, theirs: &theirs }),
        statements,
        caveats: caveats(study, &contests),
        figure: figure(study, headlines, reference),
    }
}

fn without(headline: &str) -> Verdict {
    Verdict { headline: headline.to_owned(), ..Verdict::default() }
}

fn contests<'h>(
    study: &Study<'_>,
    headlines: &'h [Headline],
    runs: Pair<'_>,
) -> Vec<Contest<'h>> {
    let contested = || headlines.iter().filter(|h| h.area != Area::Other);

    // With several metrics, each must pass a stricter test for all to hold at once.
    let strict = 1.0 - (1.0 - COVERAGE) / contested().count().max(1) as f64;
    contested()
        .filter_map(|headline| {
            let a = headline.values(study, runs.ours, FINAL);
            let b = headline.values(study, runs.theirs, FINAL);
            let (ours, theirs) = shared_means(&a, &b);

            Some(Contest {
                headline,
                difference: difference_points(&a, &b)?,
                ours,
                theirs,
                corrected: paired(&a, &b, strict)?.sign(),
            })
        })
        .collect()
}

/// Means over the shared seeds, so that they differ by exactly the paired difference.
fn shared_means(a: &BySeed, b: &BySeed) -> (String, String) {
    let usable = |seed: &u64| {
        let finite = |values: &BySeed| values.get(seed).is_some_and(|v| v.is_finite());
        finite(a) && finite(b)
    };
    let mean = |values: &BySeed| {
        let shared = values.iter().filter(|(seed, _)| usable(seed));
        words::mean_percent(summary(shared.map(|(_, v)| *v)))
    };
    (mean(a), mean(b))
}

/// The answer in one sentence: what is better, what is worse, and what is within
/// the noise.
fn headline(contests: &[Contest<'_>], names: Pair<'_>) -> String {
    let Pair { ours, theirs } = names;
    let labels = |sign: Sign| -> Vec<String> {
        let chosen = contests.iter().filter(|c| c.difference.sign() == sign);
        chosen.map(|c| words::lower(&c.headline.label)).collect()
    };

    let seeds = contests.iter().map(|c| c.difference.n).max().unwrap_or(0);
    let (won, lost) = (labels(Sign::Above), labels(Sign::Below));
    let (covered, unknown) = (labels(Sign::Covered), labels(Sign::Unknown));

    // The clear cases get a sentence of their own.
    if unknown.len() == contests.len() && seeds < 2 {
        return format!(
            "One seed gives no interval: nothing can be claimed about {ours} against {theirs}."
        );
    }
    if won.len() == contests.len() {
        return format!("{ours} beats {theirs} on {}.", words::list(&won));
    }
    if won.is_empty() && lost.is_empty() {
        let n = words::count(seeds, "seed");
        return format!(
            "No difference between {ours} and {theirs} is shown: over {n}, all are within the noise."
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
        parts.push(format!("on {} there is no interval", words::list(&unknown)));
    }
    format!("{}.", parts.join("; "))
}

fn statements(contests: &[Contest<'_>]) -> Vec<String> {
    let areas = [
        (Area::Shift, "Shift"),
        (Area::Retrieval, "Retrieval"),
        (Area::Probes, "Probes"),
    ];

    let mut out = Vec::new();
    for (area, title) in areas {
        let own = contests.iter().filter(|c| c.headline.area == area);
        let parts: Vec<_> = own.map(|contest| sentence(contest, title)).collect();
        if !parts.is_empty() {
            out.push(format!("{title}: {}.", parts.join("; ")));
        }
    }
    out
}

fn sentence(contest: &Contest<'_>, title: &str) -> String {
    let Contest { headline, difference, ours, theirs, .. } = contest;
    let end = match difference.sign() {
        Sign::Above => "better",
        Sign::Below => "worse",
        Sign::Covered => "within the noise",
        Sign::Unknown => "without an interval, nothing is claimed",
    };

    // The only metric of an area need not be named after its title.
    let label = if headline.label == title {
        String::new()
    } else {
        format!("{} ", words::lower(&headline.label))
    };
    let points = words::points(difference);
    format!("{label}{ours} against {theirs}, {points} points: {end}")
}

/// Expert similarity and routing entropy, each as a mean over layers.
fn structure(study: &Study<'_>, runs: Pair<'_>) -> Option<String> {
    let metrics = [
        ("similarity", "expert similarity"),
        ("entropy_normalised", "routing entropy (1 is uniform)"),
    ];

    let part = |&(metric, name): &(&str, &str)| {
        let a = layer_mean(study, runs.ours, metric);
        let b = layer_mean(study, runs.theirs, metric);
        let (ours, theirs) = (over_seeds(&a)?, over_seeds(&b)?);

        let end = match paired(&a, &b, COVERAGE)?.sign() {
            Sign::Above => "higher",
            Sign::Below => "lower",
            Sign::Covered => "the difference is within the noise",
            Sign::Unknown => "no interval",
        };

        let (ours, theirs) = (words::number(ours.mean, 2), words::number(theirs.mean, 2));
        Some(format!("{name} {ours} against {theirs}: {end}"))
    };

    let parts: Vec<String> = metrics.iter().filter_map(part).collect();
    (!parts.is_empty())
        .then(|| format!("Structure after training: {}.", parts.join("; ")))
}

/// The mean over layers of a metric, for every seed that has all layers.
fn layer_mean(study: &Study<'_>, run: &str, metric: &str) -> BySeed {
    let layers = study.moe_layers();
    let of_layer = |layer| study.layer(LayerKey { run, point: FINAL, layer, metric });
    let all: Vec<BySeed> = layers.iter().map(of_layer).collect();

    // A mean over fewer layers would be another metric.
    let of_seed = |seed: u64| {
        let values = all.iter().map(|layer| layer.get(&seed).copied());
        let values: Vec<f64> = values.collect::<Option<_>>()?;
        (!values.is_empty()).then(|| (seed, crate::num::mean(&values)))
    };
    study.seeds(run).into_iter().filter_map(of_seed).collect()
}

fn caveats(study: &Study<'_>, contests: &[Contest<'_>]) -> Vec<String> {
    let n = contests.iter().map(|c| c.difference.n).min().unwrap_or(0);
    let mut out = Vec::new();

    if n > 1 {
        let quantile = t_quantile(0.5 + COVERAGE / 2.0, n - 1);
        out.push(format!(
            "Differences are paired by seed; brackets are 95 % t intervals over n = {n} seeds (factor {quantile:.2} on the standard error). A difference counts only where its interval excludes zero."
        ));
        out.extend(correction(contests));
    } else {
        out.push("With one shared seed no spread can be estimated; differences are printed without a claim.".to_owned());
    }

    // The dense base is then a constant of the study and adds no spread.
    if study.config().pretrain.bases == Bases::Shared {
        out.push(
            "All seeds share one dense model: the intervals do not cover how lucky its training was."
                .to_owned(),
        );
    }
    out
}

/// How many differences remain when the number of comparisons is taken into account.
fn correction(contests: &[Contest<'_>]) -> Option<String> {
    let found = contests.iter().filter(|c| shown(c.difference.sign())).count();
    let kept = contests.iter().filter(|c| shown(c.corrected)).count();
    let metrics = contests.len();
    (found > 0).then(|| {
        format!(
            "{metrics} metrics are compared at once: with Bonferroni's correction {kept} of the {found} shown differences remain."
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
        let contests = contests(study, headlines, Pair { ours: run, theirs: reference });
        let rows = contests.into_iter().map(|contest| ForestRow {
            label: contest.headline.label.clone(),
            class: study.class(run),
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
        "Paired differences over seeds",
        "Mean difference after training with its 95 % t interval; the mark is filled where the interval excludes zero, and hollow where the difference is within the noise.",
        forest.draw(),
    )
}
