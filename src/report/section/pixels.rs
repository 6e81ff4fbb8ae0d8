//! The dense model beside classifiers that see pixels only.
//!
//! Where the dense model does not clearly beat both, experts have nothing to build on, and the
//! comparison of runs says little about the method.

use crate::report::document::{Block, Cell, Table};
use crate::report::headline::Headline;
use crate::report::study::{INIT, Study};
use crate::report::words;
use crate::tables::Measurement;

/// The two classifiers by their names in `pixels.parquet`, and how they are called.
const CLASSIFIERS: [(&str, &str); 2] = [
    ("nearest", "1-nearest neighbor on pixels"),
    ("linear", "Linear classifier on pixels"),
];

/// The table, if the classifiers were measured.
pub(in crate::report) fn block(
    study: &Study<'_>,
    headlines: &[Headline],
) -> Option<Block> {
    let shared = shared(study, headlines);
    let first = study.inputs.pixels.first()?;
    let mut head = vec![Cell::words("Model")];
    head.extend(shared.iter().map(|h| Cell::number(&h.label).with_title(&h.definition)));

    let line = |name: &str, of: &dyn Fn(&Headline) -> Option<Measurement>| {
        let values = shared.iter().map(|headline| {
            of(headline).map_or_else(Cell::nothing, |found| cell(&found))
        });
        std::iter::once(Cell::words(name)).chain(values).collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<Cell>> = CLASSIFIERS
        .iter()
        .map(|(name, label)| line(label, &|headline| pixel(study, name, headline)))
        .collect();
    let name = words::capital(study.checkpoint());
    rows.push(line(&name, &|headline| dense(study, headline)));

    let pictures = words::grouped(f64::from(first.pictures));
    let seed = study.config().seeds.first().copied().unwrap_or_default();
    Some(Block::Table(Table {
        title: "The dense model beside classifiers on pixels".to_owned(),
        note: format!(
            "Percent, with the 95 % bootstrap interval over test pictures below; the dense model of seed {seed}. Both classifiers were fitted on {pictures} training pictures and know no captions; the linear one is a ridge regression whose weight the validation split chose."
        ),
        head,
        rows,
        foreign: false,
    }))
}

/// A warning where the dense model does not clearly beat both: where its interval does not lie
/// above theirs.
pub(in crate::report) fn warning(
    study: &Study<'_>,
    headlines: &[Headline],
) -> Option<String> {
    let mut failures = Vec::new();
    for headline in shared(study, headlines) {
        let Some(dense) = dense(study, headline) else { continue };
        for (name, label) in CLASSIFIERS {
            let Some(pixels) = pixel(study, name, headline) else { continue };
            if dense.low <= pixels.high {
                failures.push(format!(
                    "{} % against {} % of the {} on {}",
                    words::percent(dense.value),
                    words::percent(pixels.value),
                    words::lower(label),
                    words::lower(&headline.label)
                ));
            }
        }
    }
    (!failures.is_empty()).then(|| {
        format!(
            "The dense model does not clearly beat classifiers that see pixels only ({}). What experts add to such a model says little about the method: train the dense model for longer, or on more pictures.",
            words::list(&failures)
        )
    })
}

/// The headline metrics that the classifiers were measured by.
fn shared<'h>(study: &Study<'_>, headlines: &'h [Headline]) -> Vec<&'h Headline> {
    let measured = |headline: &&Headline| {
        CLASSIFIERS.iter().any(|(name, _)| pixel(study, name, headline).is_some())
    };
    headlines.iter().filter(measured).collect()
}

/// A classifier on a headline metric of one split.
fn pixel(
    study: &Study<'_>,
    classifier: &str,
    headline: &Headline,
) -> Option<Measurement> {
    let rows = study.inputs.pixels.iter().filter(|row| row.classifier == classifier);
    let mut measured = rows.map(|row| &row.measured);
    measured.find(|own| is_of(own, headline)).cloned()
}

/// The dense model before any further training, at the first seed.
fn dense(study: &Study<'_>, headline: &Headline) -> Option<Measurement> {
    let run = study.runs.iter().find(|run| !study.is_moe(run))?;
    let rows = study.of(run).next()?.metrics.iter().filter(|row| row.point == INIT);
    let mut measured = rows.map(|row| &row.measured);
    measured.find(|own| is_of(own, headline)).cloned()
}

/// Whether a measurement is that of a headline metric, which has one split then.
fn is_of(measured: &Measurement, headline: &Headline) -> bool {
    measured.task == headline.task
        && measured.metric == headline.metric
        && headline.splits == [measured.split.as_str()]
}

fn cell(found: &Measurement) -> Cell {
    let (low, high) = (words::percent(found.low), words::percent(found.high));
    Cell::number(words::percent(found.value)).with_sub(format!("{low} \u{2026} {high}"))
}
