//! What a model costs: size, training, memory, and time for a picture.
//!
//! Times and memory come from the manifests of the results, so they depend on the machine that
//! made them; the page marks them as measured, and no sentence rests on them.

use crate::report::document::{Cell, Table};
use crate::report::inputs::Cost;
use crate::report::study::Study;
use crate::report::words;

/// Bytes of a parameter.
const BYTES: f64 = 4.0;

/// What the columns are.
const NOTE: &str = "Active parameters are those that a token passes. Times and memory are as measured on the machine that made the results, means over seeds; memory is the most that the training process held, which may have trained other runs before.";

/// The runs whose cost is compared: dense, reference and showcase.
fn runs(study: &Study<'_>) -> Vec<String> {
    let dense = study.runs.iter().find(|run| !study.is_moe(run)).cloned();
    let mut runs: Vec<String> = dense.into_iter().collect();
    runs.extend(study.pair());
    runs
}

/// The costs of the dense model, the reference and the showcase.
pub(super) fn table(study: &Study<'_>) -> Table {
    let head = [
        ("Parameters", "total / active"),
        ("Weights", "MB, f32"),
        ("Training", "after upcycling"),
        ("Memory", "of training"),
        ("Picture", "image tower"),
    ];
    let head = head.map(|(text, sub)| Cell::number(text).with_sub(sub));
    let rows = runs(study).into_iter().map(|run| {
        let facts = study.of(&run).map(|r| r.facts).next().unwrap_or_default();
        let size = |count: Option<u64>| {
            count.map_or_else(|| words::NOTHING.to_owned(), words::parameters)
        };

        // Sizes follow from the shape; the rest was measured, as far as there are manifests.
        let total = size(facts.parameters_total);
        let weights = facts.parameters_total.map(|n| n as f64 * BYTES / 1e6);
        vec![
            Cell::words(study.name(&run)).with_mark(Study::class(&run)),
            Cell::number(total).with_sub(size(facts.parameters_active)),
            Cell::number(weights.map_or_else(nothing, |mb| words::number(mb, 1))),
            measured(mean(study, &run, |c| c.training), duration),
            measured(most(study, &run), |bytes| format!("{:.0} MB", bytes / 1e6)),
            measured(mean(study, &run, |c| c.picture), |ms| format!("{ms:.2} ms"))
                .with_sub(threads(study, &run)),
        ]
    });

    Table {
        title: "What it costs".to_owned(),
        note: NOTE.to_owned(),
        rows: rows.collect(),
        head: std::iter::once(Cell::words("")).chain(head).collect(),
        foreign: false,
    }
}

/// The threads that a picture was timed with.
fn threads(study: &Study<'_>, run: &str) -> String {
    let found = study.of(run).find_map(|r| r.cost.threads);
    let count = |n| words::count(crate::num::truncate_usize(n), "thread");
    found.map_or_else(String::new, count)
}

/// How many times larger the showcase is than the dense model, as a part of a sentence.
pub(super) fn ratio(study: &Study<'_>) -> Option<String> {
    let dense = study.runs.iter().find(|run| !study.is_moe(run))?;
    let facts = |run: &str| study.of(run).map(|r| r.facts).next();
    let (small, large) = (facts(dense)?, facts(&study.config().report.showcase)?);
    let times = |a: Option<u64>, b: Option<u64>| Some(a? as f64 / b? as f64);
    let total = times(large.parameters_total, small.parameters_total)?;
    let active = times(large.parameters_active, small.parameters_active)?;
    Some(format!(
        " ({total:.1} times the parameters of the dense model, {active:.1} times those that a token passes)"
    ))
}

fn nothing() -> String {
    words::NOTHING.to_owned()
}

/// A cell whose number depends on the machine.
fn measured(value: Option<f64>, text: impl Fn(f64) -> String) -> Cell {
    Cell { measured: true, ..Cell::number(value.map_or_else(nothing, text)) }
}

fn mean(study: &Study<'_>, run: &str, of: fn(&Cost) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = study.of(run).filter_map(|r| of(&r.cost)).collect();
    (!values.is_empty()).then(|| crate::num::mean(&values))
}

fn most(study: &Study<'_>, run: &str) -> Option<f64> {
    let values = study.of(run).filter_map(|r| r.cost.memory).filter(|v| *v > 0.0);
    values.reduce(f64::max)
}

/// Seconds in the unit that suits them.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_that_suits_them() {
        assert_eq!(duration(4.04), "4.0 s");
        assert_eq!(duration(600.0), "10.0 min");
        assert_eq!(duration(9000.0), "2.5 h");
    }
}
