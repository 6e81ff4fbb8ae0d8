//! Evaluation sets of others: every run and the untouched dense model on each.

use crate::report::document::{Block, Cell, Section, Table};
use crate::report::sets::{UNTOUCHED, comparison};
use crate::report::study::Study;
use crate::report::words;
use crate::tables::SetComparisonRow;

/// The section, if there are sets.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let rows = comparison(study.inputs);
    let mut sets: Vec<&str> = rows.iter().map(|row| row.set.as_str()).collect();
    sets.dedup();
    if sets.is_empty() {
        return None;
    }

    let table = |set: &&str| {
        let of_set: Vec<&SetComparisonRow> =
            rows.iter().filter(|r| r.set == *set).collect();
        Block::Table(table(study, set, &of_set))
    };
    Some(Section {
        id: "sets",
        title: "Evaluation sets".to_owned(),
        lead: vec![
            "Sets named by `evaluate.sets`, measured as CLIP_benchmark does. The intervals are paired bootstraps over the examples of a set: they say whether other examples would change the answer, and do not cover the luck of training.".to_owned(),
        ],
        blocks: sets.iter().map(table).collect(),
    })
}

/// One set: a line for each model, and for each metric its value and its difference from the
/// untouched model.
fn table(study: &Study<'_>, set: &str, rows: &[&SetComparisonRow]) -> Table {
    let mut metrics: Vec<&str> = Vec::new();
    let mut models: Vec<&str> = Vec::new();
    for row in rows {
        if !metrics.contains(&row.metric.as_str()) {
            metrics.push(&row.metric);
        }
        if !models.contains(&row.run.as_str()) {
            models.push(&row.run);
        }
    }

    let mut head = vec![Cell::words("Model")];
    for metric in &metrics {
        head.push(Cell::number(*metric));
        head.push(Cell::number("against untouched"));
    }
    let line = |model: &&str| {
        let mut line = vec![name(study, model)];
        for metric in &metrics {
            let is_it = |row: &&&SetComparisonRow| {
                row.run == **model && row.metric == **metric && row.against == UNTOUCHED
            };
            line.extend(match rows.iter().find(is_it) {
                Some(row) => [value(row), difference(row)],
                None => [Cell::nothing(), Cell::nothing()],
            });
        }
        line
    };
    let examples = rows.first().map_or(0, |row| row.n);
    Table {
        title: format!("`{set}`"),
        note: format!(
            "Percent, mean over seeds, with the 95 % interval over {examples} examples below. Differences are percentage points; bold where the paired interval excludes zero."
        ),
        head,
        rows: models.iter().map(line).collect(),
        foreign: false,
    }
}

fn name(study: &Study<'_>, model: &str) -> Cell {
    if model == UNTOUCHED {
        return Cell::words("The dense model, untouched");
    }
    Cell::words(study.name(model)).with_mark(Study::class(model))
}

fn value(row: &SetComparisonRow) -> Cell {
    let (low, high) = (words::percent(row.low), words::percent(row.high));
    Cell::number(words::percent(row.value)).with_sub(format!("{low} \u{2026} {high}"))
}

fn difference(row: &SetComparisonRow) -> Cell {
    if row.difference.is_nan() {
        return Cell::nothing();
    }
    let points = |fraction: f64| words::signed(100.0 * fraction, 1);
    let (low, high) = (row.difference_low, row.difference_high);
    Cell {
        sub: format!("{} \u{2026} {}", points(low), points(high)),
        best: low > 0.0 || high < 0.0,
        ..Cell::number(points(row.difference))
    }
}

#[cfg(test)]
mod tests {
    use crate::report::render;
    use crate::report::sample::inputs;
    use crate::report::sets::tests::with_set;

    #[test]
    fn sets_are_shown_with_the_untouched_model_and_only_where_there_are_any() {
        let page = render(&with_set(0.02)).unwrap();
        assert!(page.html.contains("id=\"sets\""));
        assert!(page.markdown.contains("The dense model, untouched"));
        assert!(page.markdown.contains("+2.0"), "{}", page.markdown);
        assert!(!render(&inputs(&[])).unwrap().html.contains("id=\"sets\""));
    }
}
