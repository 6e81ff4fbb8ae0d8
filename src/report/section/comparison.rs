//! All runs against all headline metrics, at init and after training.

use crate::config::Bases;
use crate::report::document::{Block, Cell, Section, Table};
use crate::report::headline::Headline;
use crate::report::stats::{COVERAGE, Sign, Summary, paired};
use crate::report::study::{FINAL, INIT, Study, difference_points, over_seeds};
use crate::report::words;

/// The comparison of all runs.
pub(in crate::report) fn section(study: &Study<'_>, headlines: &[Headline]) -> Section {
    let mut blocks = vec![Block::Table(main_table(study, headlines))];
    let definitions = headlines.iter().map(|h| format!("{}: {}.", h.label, h.definition));
    blocks.push(Block::List { items: definitions.collect() });
    if study.reference().is_some() {
        blocks.push(details(
            "Differences from the reference, paired over seeds",
            differences(study, headlines),
        ));
    }
    blocks.push(details("Every metric of every run", everything(study)));
    Section {
        id: "comparison",
        title: "Comparison of all runs".to_owned(),
        lead: vec![format!(
            "All runs start from the same dense model{} and share data order and budget; only the initialisation and the loss differ.",
            match study.config().pretrain.bases {
                Bases::PerSeed => " of their seed",
                Bases::Shared => "",
            }
        )],
        blocks,
    }
}

fn details(summary: &str, table: Table) -> Block {
    Block::Details { summary: summary.to_owned(), blocks: vec![Block::Table(table)] }
}

fn main_table(study: &Study<'_>, headlines: &[Headline]) -> Table {
    let best: Vec<Option<String>> = headlines.iter().map(|h| best(study, h)).collect();
    let sizes = study.inputs.runs.iter().any(|r| r.facts.parameters_total.is_some());
    let mut head = vec![Cell::words("Run")];
    head.extend(
        headlines.iter().map(|h| Cell::number(&h.label).with_title(&h.definition)),
    );
    if sizes {
        head.push(Cell::number("Parameters").with_sub("total / active"));
    }
    let rows = study.runs.iter().map(|run| {
        let mut row = vec![name_cell(study, run)];
        row.extend(headlines.iter().zip(&best).map(|(headline, best)| {
            let end = over_seeds(&headline.values(study, run, FINAL));
            let init = over_seeds(&headline.values(study, run, INIT));
            let mut cell = Cell::number(words::spread_percent(end));
            if init.is_some() {
                cell = cell.with_sub(format!("init {}", words::mean_percent(init)));
            }
            let title = |when: &str, s: Option<Summary>| {
                s.map_or_else(String::new, |s| {
                    format!("{when}: {} (n = {})", words::spread_percent(Some(s)), s.n)
                })
            };
            let titles = [title("after training", end), title("init", init)];
            let titles = titles.into_iter().filter(|t| !t.is_empty());
            cell.title = titles.collect::<Vec<_>>().join(" \u{b7} ");
            cell.best = best.as_ref() == Some(run);
            cell
        }));
        if sizes {
            row.push(size_cell(study, run));
        }
        row
    });
    Table {
        title: "Runs and headline metrics".to_owned(),
        note: note(study),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

fn note(study: &Study<'_>) -> String {
    let seeds = study.runs.iter().map(|run| study.seeds(run).len()).max().unwrap_or(0);
    let spread =
        if seeds > 1 { ", mean \u{b1} standard deviation over seeds" } else { "" };
    format!(
        "Percent after training{spread} (n = {seeds}); below, the mean at initialisation. The best of a column is bold only where the 95 % interval of its paired difference from the second excludes zero."
    )
}

fn name_cell(study: &Study<'_>, run: &str) -> Cell {
    let config = &study.config().runs[run];
    let method = study.config().inits.get(&config.init).map_or("", |i| i.method.as_str());
    let eesd = if config.eesd > 0.0 {
        format!(", EESD weight {}", config.eesd)
    } else {
        String::new()
    };
    Cell::words(study.name(run))
        .with_mark(study.class(run))
        .with_title(format!("run `{run}`: method {method}{eesd}"))
}

fn size_cell(study: &Study<'_>, run: &str) -> Cell {
    let facts = study.of(run).map(|r| r.facts).find(|f| f.parameters_total.is_some());
    let text = |count: Option<u64>| {
        count.map_or_else(|| words::NOTHING.to_owned(), words::parameters)
    };
    let facts = facts.unwrap_or_default();
    Cell::number(text(facts.parameters_total)).with_sub(text(facts.parameters_active))
}

/// The run with the highest mean, if its paired difference from the second is above zero.
fn best(study: &Study<'_>, headline: &Headline) -> Option<String> {
    let mut ranked: Vec<_> = study
        .runs
        .iter()
        .filter_map(|run| {
            let values = headline.values(study, run, FINAL);
            over_seeds(&values).map(|s| (run, s.mean, values))
        })
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let [first, second, ..] = ranked.as_slice() else { return None };
    let sign = paired(&first.2, &second.2, COVERAGE)?.sign();
    (sign == Sign::Above).then(|| first.0.clone())
}

fn differences(study: &Study<'_>, headlines: &[Headline]) -> Table {
    let reference = study.reference().unwrap_or_default();
    let mut head = vec![Cell::words("Run")];
    head.extend(headlines.iter().map(|h| Cell::number(&h.label)));
    let others = study.runs.iter().filter(|run| *run != reference);
    let rows = others.map(|run| {
        let mut row = vec![name_cell(study, run)];
        row.extend(headlines.iter().map(|headline| {
            let ours = headline.values(study, run, FINAL);
            let theirs = headline.values(study, reference, FINAL);
            let Some(difference) = difference_points(&ours, &theirs) else {
                return Cell::number(words::NOTHING);
            };
            let mut cell = Cell::number(words::signed(difference.mean, 1));
            cell.sub = difference.interval.map_or_else(
                || "no interval".to_owned(),
                |(low, high)| {
                    format!(
                        "{} \u{2026} {}",
                        words::signed(low, 1),
                        words::signed(high, 1)
                    )
                },
            );
            cell.best = matches!(difference.sign(), Sign::Above | Sign::Below);
            cell
        }));
        row
    });
    Table {
        title: format!("Differences from {}", study.name(reference)),
        note: "Points of percent after training, with the 95 % t interval of the paired difference below; bold where it excludes zero, in either direction.".to_owned(),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

fn everything(study: &Study<'_>) -> Table {
    let mut keys: Vec<_> = study.metrics().keys().filter(|k| k.1 == FINAL).collect();
    keys.sort_by_key(|k| (k.2, k.3, k.4));
    let mut rows: Vec<_> = keys.iter().map(|k| (k.2, k.3, k.4)).collect();
    rows.dedup();
    let mut head = vec![Cell::words("Task"), Cell::words("Split"), Cell::words("Metric")];
    head.extend(
        study
            .runs
            .iter()
            .map(|run| Cell::number(study.name(run)).with_mark(study.class(run))),
    );
    let rows = rows.into_iter().map(|(task, split, metric)| {
        let mut row = vec![Cell::words(task), Cell::words(split), Cell::words(metric)];
        row.extend(study.runs.iter().map(|run| {
            let found = over_seeds(&study.metric(run, FINAL, (task, split, metric)));
            Cell::number(words::mean_percent(found))
                .with_title(words::spread_percent(found))
        }));
        row
    });
    Table {
        title: "All metrics".to_owned(),
        note: "Percent after training, mean over seeds; `comparison.parquet` holds the same at both points with spreads and paired differences.".to_owned(),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}
