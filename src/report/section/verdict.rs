//! The verdict: honest words made from paired differences, never a win the numbers do not
//! show.

use crate::report::chart::forest::{Forest, ForestRow};
use crate::report::document::{Figure, Verdict};
use crate::report::headline::{Area, Headline};
use crate::report::stats::{BySeed, COVERAGE, Difference, Sign, paired, summary};
use crate::report::study::{FINAL, Study, difference_points, over_seeds};
use crate::report::words;

/// One metric of the contest between two runs.
struct Bout<'h> {
    headline: &'h Headline,
    difference: Difference,
    /// Means of the two runs, in percent.
    means: (String, String),
    /// The sign that survives a Bonferroni correction.
    corrected: Sign,
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
    let bouts = bouts(study, headlines, (showcase, reference));
    if bouts.is_empty() {
        return without("The two runs share no metric over a common seed.");
    }
    let names = (study.name(showcase), study.name(reference));
    let mut statements = statements(&bouts);
    statements.extend(structure(study, (showcase, reference)));
    Verdict {
        headline: headline(&bouts, &names),
        statements,
        caveats: caveats(study, &bouts),
        figure: figure(study, headlines, reference),
    }
}

fn without(headline: &str) -> Verdict {
    Verdict { headline: headline.to_owned(), ..Verdict::default() }
}

fn bouts<'h>(
    study: &Study<'_>,
    headlines: &'h [Headline],
    (ours, theirs): (&str, &str),
) -> Vec<Bout<'h>> {
    let contested = || headlines.iter().filter(|h| h.area != Area::Other);
    let strict = 1.0 - (1.0 - COVERAGE) / contested().count().max(1) as f64;
    contested()
        .filter_map(|headline| {
            let a = headline.values(study, ours, FINAL);
            let b = headline.values(study, theirs, FINAL);
            let corrected = paired(&a, &b, strict)?.sign();
            let means = shared_means(&a, &b);
            let difference = difference_points(&a, &b)?;
            Some(Bout { headline, difference, means, corrected })
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

fn headline(bouts: &[Bout<'_>], (ours, theirs): &(String, String)) -> String {
    let labels = |sign: Sign| -> Vec<String> {
        let chosen = bouts.iter().filter(|b| b.difference.sign() == sign);
        chosen.map(|b| words::lower(&b.headline.label)).collect()
    };
    let seeds = bouts.iter().map(|b| b.difference.n).max().unwrap_or(0);
    let (won, lost) = (labels(Sign::Above), labels(Sign::Below));
    let (covered, unknown) = (labels(Sign::Covered), labels(Sign::Unknown));
    if unknown.len() == bouts.len() && seeds < 2 {
        return format!(
            "One seed gives no interval: nothing can be claimed about {ours} against {theirs}."
        );
    }
    if won.len() == bouts.len() {
        return format!("{ours} beats {theirs} on {}.", words::list(&won));
    }
    if won.is_empty() && lost.is_empty() {
        let n = words::count(seeds, "seed");
        return format!(
            "Not shown: over {n} the noise covers every difference below between {ours} and {theirs}."
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
        parts.push(format!(
            "on {} the noise covers the difference",
            words::list(&covered)
        ));
    }
    if !unknown.is_empty() {
        parts.push(format!("on {} there is no interval", words::list(&unknown)));
    }
    format!("{}.", parts.join("; "))
}

fn statements(bouts: &[Bout<'_>]) -> Vec<String> {
    let areas = [
        (Area::Shift, "Shift"),
        (Area::Retrieval, "Retrieval"),
        (Area::Probes, "Probes"),
    ];
    let mut out = Vec::new();
    for (area, title) in areas {
        let own = || bouts.iter().filter(|b| b.headline.area == area);
        let parts: Vec<_> = own().map(|bout| sentence(bout, title)).collect();
        if !parts.is_empty() {
            out.push(format!("{title}: {}.", parts.join("; ")));
        }
    }
    out
}

fn sentence(bout: &Bout<'_>, title: &str) -> String {
    let (ours, theirs) = &bout.means;
    let end = match bout.difference.sign() {
        Sign::Above => "better",
        Sign::Below => "worse",
        Sign::Covered => "the noise covers the difference",
        Sign::Unknown => "no interval, no claim",
    };
    let points = words::points(&bout.difference);
    let label = &bout.headline.label;
    let label =
        if label == title { String::new() } else { format!("{} ", words::lower(label)) };
    format!("{label}{ours} against {theirs}, {points} points: {end}")
}

/// Expert similarity and routing entropy, each as a mean over layers.
fn structure(study: &Study<'_>, runs: (&str, &str)) -> Option<String> {
    let metrics = [
        ("similarity", "expert similarity"),
        ("entropy_normalised", "routing entropy (1 is uniform)"),
    ];
    let parts: Vec<String> = metrics
        .iter()
        .filter_map(|(metric, name)| {
            let (a, b) =
                (layer_mean(study, runs.0, metric), layer_mean(study, runs.1, metric));
            let (ours, theirs) = (over_seeds(&a)?, over_seeds(&b)?);
            let end = match paired(&a, &b, COVERAGE)?.sign() {
                Sign::Above => "higher",
                Sign::Below => "lower",
                Sign::Covered => "the noise covers the difference",
                Sign::Unknown => "no interval",
            };
            let (ours, theirs) =
                (words::number(ours.mean, 2), words::number(theirs.mean, 2));
            Some(format!("{name} {ours} against {theirs}: {end}"))
        })
        .collect();
    (!parts.is_empty())
        .then(|| format!("Structure after training: {}.", parts.join("; ")))
}

fn layer_mean(study: &Study<'_>, run: &str, metric: &str) -> BySeed {
    let layers = study.moe_layers();
    let all: Vec<BySeed> =
        layers.iter().map(|l| study.layer(run, FINAL, l, metric)).collect();
    let seeds = study.seeds(run).into_iter();
    seeds
        .filter_map(|seed| {
            let values: Option<Vec<f64>> =
                all.iter().map(|v| v.get(&seed).copied()).collect();
            values.filter(|v| !v.is_empty()).map(|v| (seed, crate::num::mean(&v)))
        })
        .collect()
}

fn caveats(study: &Study<'_>, bouts: &[Bout<'_>]) -> Vec<String> {
    let n = bouts.iter().map(|b| b.difference.n).min().unwrap_or(0);
    let mut out = Vec::new();
    if n > 1 {
        let quantile = crate::report::stats::t_quantile(0.5 + COVERAGE / 2.0, n - 1);
        out.push(format!(
            "Differences are paired by seed; brackets are 95 % t intervals over n = {n} seeds (factor {quantile:.2} on the standard error). A difference counts only where its interval excludes zero."
        ));
        let shown = bouts
            .iter()
            .filter(|b| matches!(b.difference.sign(), Sign::Above | Sign::Below));
        let kept =
            bouts.iter().filter(|b| matches!(b.corrected, Sign::Above | Sign::Below));
        let (shown, kept) = (shown.count(), kept.count());
        if shown > 0 {
            let metrics = bouts.len();
            out.push(format!(
                "{metrics} metrics are compared at once: with Bonferroni's correction {kept} of the {shown} shown differences remain."
            ));
        }
    } else {
        out.push("With one shared seed no spread can be estimated; differences are printed without a claim.".to_owned());
    }
    if study.config().pretrain.bases == crate::config::Bases::Shared {
        out.push(
            "All seeds share one dense model: the intervals do not cover its luck."
                .to_owned(),
        );
    }
    out
}

fn figure(study: &Study<'_>, headlines: &[Headline], reference: &str) -> Option<Figure> {
    let report = &study.config().report;
    let mut contestants = vec![report.showcase.as_str()];
    let init_only = report.ablation.get(1).map(String::as_str);
    contestants.extend(init_only.filter(|r| study.has(r) && *r != report.showcase));
    contestants.retain(|run| *run != reference);
    let theirs = study.name(reference);
    let groups = contestants.into_iter().map(|run| {
        let rows =
            bouts(study, headlines, (run, reference)).into_iter().map(|bout| ForestRow {
                label: bout.headline.label.clone(),
                class: study.class(run),
                difference: bout.difference,
            });
        (format!("{} \u{2212} {theirs}", study.name(run)), rows.collect())
    });
    let forest = Forest {
        title: format!("Paired differences from {theirs}"),
        x_label: format!("points of percent; right of zero is better than {theirs}"),
        groups: groups.collect(),
        width: 540.0,
    };
    Figure::new(
        "Paired differences over seeds",
        "Mean difference after training with its 95 % t interval; filled where the interval excludes zero, hollow where the noise covers the difference.",
        forest.draw(),
    )
}
