//! The 2×2 ablation, cluster initialization × EESD, beside the paper's.

use crate::report::document::{Block, Cell, Section, Table};
use crate::report::headline::{Area, Headline};
use crate::report::section::paper;
use crate::report::stats::{BySeed, COVERAGE, Difference, Estimate, one_sample};
use crate::report::study::{FINAL, Model, Study, in_points, over_seeds};
use crate::report::words;

/// The ablation, if all four of its runs have data.
pub(in crate::report) fn section(
    study: &Study<'_>,
    headlines: &[Headline],
) -> Option<Section> {
    let runs = &study.config().report.ablation;

    // Effects are contrasts of all four runs, so three of them show nothing.
    let [none, init, eesd, both] = runs.as_slice() else { return None };
    if !runs.iter().all(|run| study.has(run)) {
        return None;
    }

    let runs = [none, init, eesd, both];
    let chosen = chosen(headlines);
    Some(Section {
        id: "ablation",
        title: "Ablation: cluster initialization and EESD".to_owned(),
        lead: vec!["The four combinations of the two parts of the method. The effect of a part is the mean with it minus the mean without it, over both settings of the other part; the interaction says how much more EESD helps on top of the cluster initialization.".to_owned()],
        blocks: vec![
            Block::Beside {
                blocks: vec![
                    Block::Table(ours(study, &chosen, runs)),
                    Block::Table(paper::ablation()),
                ],
            },
            Block::Table(effects(study, &chosen, runs)),
        ],
    })
}

/// The metrics of the ablation: as the paper's, with one probe, that of most pictures.
fn chosen(headlines: &[Headline]) -> Vec<&Headline> {
    let probes = headlines.iter().filter(|h| h.area == Area::Probes);
    let last_probe = probes.map(|h| &h.metric).next_back();

    let wanted = |headline: &&Headline| match headline.area {
        Area::Shift | Area::Retrieval => true,
        Area::Probes => Some(&headline.metric) == last_probe,
        Area::Other => headline.task == "concept",
    };
    headlines.iter().filter(wanted).collect()
}

fn tick(on: bool) -> Cell {
    Cell::words(if on { "\u{2713}" } else { words::NOTHING })
}

fn ours(study: &Study<'_>, headlines: &[&Headline], runs: [&String; 4]) -> Table {
    let mut head = vec![Cell::words("Cluster init"), Cell::words("EESD")];
    head.extend(headlines.iter().map(|h| Cell::number(&h.label)));

    let rows = runs.into_iter().enumerate().map(|(index, run)| {
        // The order of the runs is that of the configuration: neither, init, EESD, both.
        let init =
            tick(index % 2 == 1).with_mark(Study::class(run)).with_title(study.name(run));
        let mut row = vec![init, tick(index >= 2)];
        row.extend(headlines.iter().map(|h| {
            Cell::number(words::spread_percent(over_seeds(&h.values(study, run, FINAL))))
        }));
        row
    });
    Table {
        title: "This run".to_owned(),
        note: "Percent after training, mean \u{b1} standard deviation over seeds."
            .to_owned(),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

fn effects(study: &Study<'_>, headlines: &[&Headline], runs: [&String; 4]) -> Table {
    // Contrasts over (none, init only, EESD only, both).
    let contrasts = [
        ("Cluster init", [-0.5, 0.5, -0.5, 0.5]),
        ("EESD", [-0.5, -0.5, 0.5, 0.5]),
        ("Interaction", [1.0, -1.0, -1.0, 1.0]),
    ];

    let mut head = vec![Cell::words("Effect of")];
    head.extend(headlines.iter().map(|h| Cell::number(&h.label)));

    let rows = contrasts.into_iter().map(|(name, weights)| {
        let mut row = vec![Cell::words(name)];
        row.extend(headlines.iter().map(|headline| {
            Cell::difference(effect(study, headline, runs, weights).map(in_points))
        }));
        row
    });
    Table {
        title: "Effects".to_owned(),
        note: format!("Percentage points, paired, {}.", study.basis().below()),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

/// One effect on one metric: over pictures too where they are known one by one.
fn effect(
    study: &Study<'_>,
    headline: &Headline,
    runs: [&String; 4],
    weights: [f64; 4],
) -> Option<Difference> {
    let models = runs.map(|run| Model { run, point: FINAL });
    let terms: Vec<_> = models.into_iter().zip(weights).collect();
    if let Some(mixed) = headline.contrast(study, &terms) {
        return Estimate::Pictures(mixed).at(COVERAGE);
    }
    let values = runs.map(|run| headline.values(study, run, FINAL));
    one_sample(contrast(&values, weights), COVERAGE)
}

/// The weighted sum of one metric of the four runs, for every seed that all four have.
fn contrast(values: &[BySeed; 4], weights: [f64; 4]) -> Vec<f64> {
    let of_seed = |seed: &u64| -> Option<f64> {
        let found: Option<Vec<f64>> =
            values.iter().map(|of_run| of_run.get(seed).copied()).collect();
        found.map(|found| found.iter().zip(weights).map(|(v, w)| v * w).sum())
    };
    values[0].keys().filter_map(of_seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additive_parts_have_no_interaction() {
        let values =
            [10.0, 12.0, 11.0, 13.0].map(|v| BySeed::from([(1, v), (2, v + 5.0)]));
        for (weights, expected) in [
            ([-0.5, 0.5, -0.5, 0.5], 2.0),
            ([-0.5, -0.5, 0.5, 0.5], 1.0),
            ([1.0, -1.0, -1.0, 1.0], 0.0),
        ] {
            for effect in contrast(&values, weights) {
                assert!((effect - expected).abs() < 1e-12);
            }
        }
    }
}
