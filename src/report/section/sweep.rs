//! Choices of hyperparameters: each value of each factor on the validation split.

use crate::eval::CONTRASTIVE;
use crate::report::document::{Block, Cell, Section, Table};
use crate::report::study::Study;
use crate::report::sweep::{TRAINING_LOSS, rows};
use crate::report::words;
use crate::tables::SweepRow;

/// A column of the tables: a metric, in nats or as a fraction.
struct Column {
    metric: &'static str,
    label: &'static str,
    /// What values are multiplied with, and their decimals.
    factor: f64,
    decimals: usize,
}

const COLUMNS: [Column; 5] = [
    Column { metric: CONTRASTIVE, label: "Validation loss", factor: 1.0, decimals: 4 },
    Column {
        metric: "retrieval/image_retrieval_recall@1",
        label: "Text\u{2192}image R@1",
        factor: 100.0,
        decimals: 1,
    },
    Column {
        metric: "retrieval/text_retrieval_recall@1",
        label: "Image\u{2192}text R@1",
        factor: 100.0,
        decimals: 1,
    },
    Column { metric: "concept/acc1", label: "Accuracy", factor: 100.0, decimals: 1 },
    Column { metric: TRAINING_LOSS, label: "Training loss", factor: 1.0, decimals: 4 },
];

/// The section, if anything was swept.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let rows = rows(study.inputs);
    let mut factors: Vec<&str> = rows.iter().map(|row| row.factor.as_str()).collect();
    factors.dedup();
    if factors.is_empty() {
        return None;
    }

    let of_factor = |factor: &str| -> Vec<&SweepRow> {
        rows.iter().filter(|row| row.factor == factor).collect()
    };
    let tables = factors.iter().map(|factor| table(study, factor, &of_factor(factor)));
    let blocks: Vec<Block> = tables.map(Block::Table).collect();

    let seeds = words::count(study.config().sweep.seeds.len(), "seed");
    let mut lead = vec![format!(
        "One factor at a time around the default, on the validation split alone: no test picture was seen. {} of their own, all on one dense model; differences are from the default of the same seed, which sees the same batches. The training loss is the contrastive loss over the last tenth of the steps.",
        words::capital(&seeds)
    )];

    // The sentence that a reader in a hurry needs.
    let factors: Vec<Vec<&SweepRow>> = factors.into_iter().map(of_factor).collect();
    lead.extend(what_matters(&factors));
    Some(Section {
        id: "sweep",
        title: "How the hyperparameters were chosen".to_owned(),
        lead,
        blocks,
    })
}

/// The values of a factor, the default marked.
fn table(study: &Study<'_>, factor: &str, rows: &[&SweepRow]) -> Table {
    let mut values: Vec<&SweepRow> = Vec::new();
    for &row in rows {
        if !values.iter().any(|known| known.value == row.value) {
            values.push(row);
        }
    }

    let mut head = vec![Cell::words("Value")];
    head.extend(COLUMNS.iter().map(|column| Cell::number(column.label)));
    let line = |value: &&SweepRow| {
        let name = Cell::words(format!("`{}`", value.value));
        let mark = if value.is_default { "default" } else { "" };
        let mut line = vec![name.with_sub(mark)];
        line.extend(COLUMNS.iter().map(|column| {
            let is_it = |row: &&&SweepRow| {
                row.value == value.value && row.metric == column.metric
            };
            rows.iter().find(is_it).map_or_else(Cell::nothing, |row| cell(row, column))
        }));
        line
    };

    // All values of a factor train one run.
    let run = rows.first().map_or("", |row| row.run.as_str());
    Table {
        title: format!("{}: {factor}", study.name(run)),
        note: best(rows),
        head,
        rows: values.iter().map(line).collect(),
        foreign: false,
    }
}

/// A mean, and below it the difference from the default; bold where its interval excludes zero.
fn cell(row: &SweepRow, column: &Column) -> Cell {
    let Column { factor, decimals, .. } = *column;
    let cell = Cell::number(words::number(factor * row.mean, decimals));
    if !row.difference.is_finite() {
        return cell;
    }
    let shown = row.difference_low > 0.0 || row.difference_high < 0.0;
    let difference = words::signed(factor * row.difference, decimals);
    Cell { best: shown, ..cell.with_sub(difference) }.with_title(interval(row, column))
}

/// The interval of a difference in words.
fn interval(row: &SweepRow, column: &Column) -> String {
    let Column { factor, decimals, .. } = *column;
    if !row.difference_low.is_finite() {
        return "one seed gives no interval".to_owned();
    }
    let end = |value: f64| words::signed(factor * value, decimals);
    format!(
        "95 % t interval over n = {} seeds: {} \u{2026} {}",
        row.n,
        end(row.difference_low),
        end(row.difference_high)
    )
}

/// The rows of the metric that decides.
fn deciding<'r>(rows: &[&'r SweepRow]) -> Vec<&'r SweepRow> {
    let wanted = |row: &&&SweepRow| row.metric == CONTRASTIVE && row.mean.is_finite();
    rows.iter().filter(wanted).copied().collect()
}

/// Which value has the lowest validation loss, and whether that is shown.
fn best(rows: &[&SweepRow]) -> String {
    let deciding = deciding(rows);
    let Some(best) = deciding.iter().min_by(|a, b| a.mean.total_cmp(&b.mean)) else {
        return "There is no validation loss to choose by.".to_owned();
    };
    if best.is_default {
        return "The default has the lowest validation loss.".to_owned();
    }

    let (value, column) = (&best.value, &COLUMNS[0]);
    let less = words::number(-best.difference, column.decimals);
    format!(
        "`{value}` has the lowest validation loss, {less} below the default ({}).",
        interval(best, column)
    )
}

/// The factors in the order of how far their values lie apart, in a sentence.
fn what_matters(factors: &[Vec<&SweepRow>]) -> Option<String> {
    let span = |rows: &Vec<&SweepRow>| {
        let means = deciding(rows).into_iter().map(|row| row.mean);
        let low = means.clone().fold(f64::INFINITY, f64::min);
        let high = means.fold(f64::NEG_INFINITY, f64::max);
        let factor = rows.first()?.factor.clone();
        (high >= low).then_some((factor, high - low))
    };
    let mut spans: Vec<(String, f64)> = factors.iter().filter_map(span).collect();
    spans.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));

    let texts: Vec<String> = spans
        .iter()
        .map(|(factor, span)| format!("{factor} ({})", words::number(*span, 4)))
        .collect();
    (!texts.is_empty()).then(|| {
        format!(
            "What matters, by the validation loss between the best and the worst value: {}.",
            words::list(&texts)
        )
    })
}
