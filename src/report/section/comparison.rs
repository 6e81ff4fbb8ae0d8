//! All runs against all headline metrics, before and after training.

use crate::config::Bases;
use crate::eval::CONTRASTIVE_TASK;
use crate::report::document::{Block, Cell, Section, Table};
use crate::report::headline::Headline;
use crate::report::section::pixels;
use crate::report::stats::{COVERAGE, Sign, Summary};
use crate::report::study::{FINAL, INIT, MetricKey, Model, Study, over_seeds};
use crate::report::words;

/// The comparison of all runs.
pub(in crate::report) fn section(study: &Study<'_>, headlines: &[Headline]) -> Section {
    let definitions = headlines.iter().map(|h| format!("{}: {}.", h.label, h.definition));
    let mut blocks = vec![
        Block::Table(main_table(study, headlines)),
        Block::List { items: definitions.collect() },
    ];
    blocks.extend(pixels::block(study, headlines));
    if let Some(reference) = study.reference() {
        blocks.push(details(
            "Differences from the reference, paired",
            differences(study, headlines, reference),
        ));
    }
    blocks.push(details("Every metric of every run", everything(study)));

    let of_their_seed = match study.config().pretrain.bases {
        Bases::PerSeed => " of their seed",
        Bases::Shared => "",
    };
    Section {
        id: "comparison",
        title: "Comparison of all runs".to_owned(),
        lead: vec![format!(
            "All runs start from {}{of_their_seed} and share the order of the data and the training budget; only the initialization and the loss differ.",
            study.checkpoint()
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
        row.extend(headlines.iter().zip(&best).map(|(headline, best)| Cell {
            best: best.as_ref() == Some(run),
            ..value_cell(study, headline, run)
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
    let seeds = study.most_seeds();
    let spread =
        if seeds > 1 { ", mean \u{b1} standard deviation over seeds" } else { "" };
    format!(
        "Percent after training{spread} (n = {seeds}); below, the mean at initialization. The best value of a column is bold only where the 95 % interval of its paired difference from the second best excludes zero."
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
        .with_mark(Study::class(run))
        .with_title(format!("run `{run}`: method {method}{eesd}"))
}

/// A headline metric of a run after training, the one before it below.
fn value_cell(study: &Study<'_>, headline: &Headline, run: &str) -> Cell {
    let end = over_seeds(&headline.values(study, run, FINAL));
    let init = over_seeds(&headline.values(study, run, INIT));

    let title = |when: &str, summary: Option<Summary>| {
        summary
            .map(|s| format!("{when}: {} (n = {})", words::spread_percent(Some(s)), s.n))
    };
    // The tooltip has what the cell has no room for: spread and n of both points.
    let titles = [title("after training", end), title("init", init)];
    let titles: Vec<String> = titles.into_iter().flatten().collect();

    let mut cell = Cell::number(words::spread_percent(end));
    if init.is_some() {
        cell = cell.with_sub(format!("init {}", words::mean_percent(init)));
    }
    cell.with_title(titles.join(" \u{b7} "))
}

fn size_cell(study: &Study<'_>, run: &str) -> Cell {
    let facts = study.of(run).map(|r| r.facts).find(|f| f.parameters_total.is_some());
    let facts = facts.unwrap_or_default();
    let text = |count: Option<u64>| {
        count.map_or_else(|| words::NOTHING.to_owned(), words::parameters)
    };

    Cell::number(text(facts.parameters_total)).with_sub(text(facts.parameters_active))
}

/// The run with the highest mean, if its paired difference from the second is above zero.
fn best(study: &Study<'_>, headline: &Headline) -> Option<String> {
    let with_mean = |run| {
        let values = headline.values(study, run, FINAL);
        over_seeds(&values).map(|summary| (run, summary.mean))
    };
    let runs = study.runs.iter().map(String::as_str);
    let mut ranked: Vec<_> = runs.filter_map(with_mean).collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));

    // Bold is a claim, and a claim needs an interval that excludes zero.
    let [(first, _), (second, _), ..] = ranked.as_slice() else { return None };
    let difference = headline.difference(study, model(first), model(second), COVERAGE);
    let sign = difference?.sign();
    (sign == Sign::Above).then(|| (*first).to_owned())
}

/// A run after training.
fn model(run: &str) -> Model<'_> {
    Model { run, point: FINAL }
}

fn differences(study: &Study<'_>, headlines: &[Headline], reference: &str) -> Table {
    let mut head = vec![Cell::words("Run")];
    head.extend(headlines.iter().map(|h| Cell::number(&h.label)));

    let others = study.runs.iter().filter(|run| *run != reference);
    let rows = others.map(|run| {
        let mut row = vec![name_cell(study, run)];
        let (ours, theirs) = (model(run), model(reference));
        row.extend(headlines.iter().map(|headline| {
            Cell::difference(headline.difference(study, ours, theirs, COVERAGE))
        }));
        row
    });
    Table {
        title: format!("Differences from {}", study.name(reference)),
        note: format!("Percentage points after training, {}.", study.basis().below()),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

fn everything(study: &Study<'_>) -> Table {
    let keys = study.metrics().keys().filter(|key| key.point == FINAL);
    let mut rows: Vec<_> = keys.map(|key| (key.task, key.split, key.metric)).collect();
    rows.sort_unstable();
    rows.dedup();

    let mut head = ["Task", "Split", "Metric"].map(Cell::words).to_vec();
    head.extend(
        study
            .runs
            .iter()
            .map(|run| Cell::number(study.name(run)).with_mark(Study::class(run))),
    );

    let rows = rows.into_iter().map(|(task, split, metric)| {
        let mut row = [task, split, metric].map(Cell::words).to_vec();
        row.extend(study.runs.iter().map(|run| {
            let key = MetricKey { run, point: FINAL, task, split, metric };
            let found = over_seeds(&study.metric(key));

            // A loss is no fraction.
            if task == CONTRASTIVE_TASK {
                let mean = found.map(|summary| words::number(summary.mean, 4));
                return Cell::number(mean.unwrap_or_else(|| words::NOTHING.to_owned()));
            }
            Cell::number(words::mean_percent(found))
                .with_title(words::spread_percent(found))
        }));
        row
    });
    Table {
        title: "All metrics".to_owned(),
        note: "Percent after training, and nats of the contrastive loss, mean over seeds; `comparison.parquet` holds the same before and after training, with spreads and paired differences.".to_owned(),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}
