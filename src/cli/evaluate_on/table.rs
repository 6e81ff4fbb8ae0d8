//! Several checkpoints side by side: a line for each metric of each set.

use std::collections::BTreeMap;

use super::outcome::Outcome;

/// A checkpoint's name and its results by set.
type Column = (String, BTreeMap<String, Outcome>);

/// The table, its columns aligned; a dash where a checkpoint has no such result.
pub(super) fn lines(columns: &[Column]) -> Vec<String> {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for (_, outcomes) in columns {
        for (set, outcome) in outcomes {
            keys.extend(
                outcome.metrics.keys().map(|metric| (set.as_str(), metric.as_str())),
            );
        }
    }
    keys.sort_unstable();
    keys.dedup();

    let mut rows = vec![vec!["set".to_owned(), "metric".to_owned()]];
    rows[0].extend(columns.iter().map(|(name, _)| name.clone()));
    for (set, metric) in keys {
        let value = |(_, outcomes): &Column| {
            let value =
                outcomes.get(set).and_then(|outcome| *outcome.metrics.get(metric)?);
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
        };
        let mut row = vec![set.to_owned(), metric.to_owned()];
        row.extend(columns.iter().map(value));
        rows.push(row);
    }
    aligned(&rows)
}

/// Words to the left, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(index, (cell, &width))| {
            if index < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::evaluate_on::outcome::Details;

    fn outcome(metrics: &[(&str, Option<f64>)]) -> Outcome {
        Outcome {
            dataset: String::new(),
            model: String::new(),
            pretrained: String::new(),
            task: String::new(),
            metrics: metrics.iter().map(|(name, v)| ((*name).to_owned(), *v)).collect(),
            language: "en".to_owned(),
            upcycle: Details {
                key: String::new(),
                split: String::new(),
                pictures: 0,
                skipped: Vec::new(),
            },
        }
    }

    #[test]
    fn every_metric_has_a_line_and_what_is_missing_a_dash() {
        let columns = [
            (
                "dense".to_owned(),
                [("cifar".to_owned(), outcome(&[("acc1", Some(0.5))]))].into(),
            ),
            (
                "a-long-name".to_owned(),
                [("cifar".to_owned(), outcome(&[("acc1", Some(0.25)), ("acc5", None)]))]
                    .into(),
            ),
        ];
        let expected = [
            "set    metric   dense  a-long-name",
            "cifar  acc1    0.5000       0.2500",
            "cifar  acc5         -            -",
        ];
        assert_eq!(lines(&columns), expected);
    }
}
