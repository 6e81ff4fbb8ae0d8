//! The 2×2 ablation, cluster initialisation × EESD, beside the paper's.

use crate::report::document::{Block, Cell, Section, Table};
use crate::report::headline::{Area, Headline};
use crate::report::section::paper;
use crate::report::stats::{BySeed, COVERAGE, Sign, one_sample};
use crate::report::study::{FINAL, Study, in_points, over_seeds};
use crate::report::words;

/// The ablation, if all four of its runs have data.
pub(in crate::report) fn section(
    study: &Study<'_>,
    headlines: &[Headline],
) -> Option<Section> {
    let runs = &study.config().report.ablation;
    let [none, init, eesd, both] = runs.as_slice() else { return None };
    if !runs.iter().all(|run| study.has(run)) {
        return None;
    }
    let mut probes = headlines.iter().filter(|h| h.area == Area::Probes);
    let last_probe = probes.next_back().map(|h| h.metric.clone());
    let chosen: Vec<&Headline> = headlines
        .iter()
        .filter(|h| h.area != Area::Other || h.task == "concept")
        .filter(|h| h.area != Area::Probes || Some(&h.metric) == last_probe.as_ref())
        .collect();
    Some(Section {
        id: "ablation",
        title: "Ablation: cluster initialisation and EESD".to_owned(),
        lead: vec!["The four combinations of the two parts of the method. An effect is a difference of means over the other factor; the interaction says how much more EESD helps on top of the cluster initialisation.".to_owned()],
        blocks: vec![
            Block::Beside {
                blocks: vec![
                    Block::Table(ours(study, &chosen, [none, init, eesd, both])),
                    Block::Table(paper::ablation()),
                ],
            },
            Block::Table(effects(study, &chosen, [none, init, eesd, both])),
        ],
    })
}

fn tick(on: bool) -> Cell {
    Cell::words(if on { "\u{2713}" } else { words::NOTHING })
}

fn ours(study: &Study<'_>, headlines: &[&Headline], runs: [&String; 4]) -> Table {
    let mut head = vec![Cell::words("Cluster init"), Cell::words("EESD")];
    head.extend(headlines.iter().map(|h| Cell::number(&h.label)));
    let rows = runs.into_iter().enumerate().map(|(index, run)| {
        let init =
            tick(index % 2 == 1).with_mark(study.class(run)).with_title(study.name(run));
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
            let values = runs.map(|run| headline.values(study, run, FINAL));
            let effect = one_sample(contrast(&values, weights), COVERAGE).map(in_points);
            let Some(effect) = effect else { return Cell::number(words::NOTHING) };
            let mut cell = Cell::number(words::signed(effect.mean, 1));
            cell.sub = effect.interval.map_or_else(
                || "no interval".to_owned(),
                |(low, high)| {
                    format!(
                        "{} \u{2026} {}",
                        words::signed(low, 1),
                        words::signed(high, 1)
                    )
                },
            );
            cell.best = matches!(effect.sign(), Sign::Above | Sign::Below);
            cell
        }));
        row
    });
    Table {
        title: "Effects".to_owned(),
        note: "Points of percent, paired over seeds, with the 95 % t interval below; bold where it excludes zero, in either direction.".to_owned(),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

/// The weighted sum of four figures for every seed that has all four.
fn contrast(values: &[BySeed; 4], weights: [f64; 4]) -> Vec<f64> {
    values[0]
        .keys()
        .filter_map(|seed| {
            let found: Option<Vec<f64>> =
                values.iter().map(|v| v.get(seed).copied()).collect();
            found.map(|found| found.iter().zip(weights).map(|(v, w)| v * w).sum())
        })
        .collect()
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
