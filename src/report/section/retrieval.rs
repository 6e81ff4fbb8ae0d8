//! The picture sheet: captions and what they find.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::report::document::{Block, Hit, Query, Section, Sheet};
use crate::report::inputs::RetrievalRow;
use crate::report::study::Study;
use crate::report::words;

/// Pictures shown of each query.
const SHOWN: usize = 5;
/// What every PNG file begins with; other bytes are not put into the page.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Example retrievals, if there are any.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let mut queries: BTreeMap<u32, Vec<&RetrievalRow>> = BTreeMap::new();
    for row in &study.inputs.retrievals {
        queries.entry(row.query).or_default().push(row);
    }
    let examples = study.config().report.examples;
    let queries: Vec<Query> =
        queries.into_values().take(examples).map(|rows| query(study, rows)).collect();
    if queries.is_empty() {
        return None;
    }
    let showcase = &study.config().report.showcase;
    let seed =
        study.seeds(showcase).first().map_or_else(String::new, |s| format!(", seed {s}"));
    let note = format!(
        "Captions of split `{}` and the {SHOWN} pictures of that split nearest to each by cosine, found by {}{seed}. The caption's own picture is framed; where it is not among the first {SHOWN}, it stands apart at the right. Chosen by number, not by success.",
        study.inputs.dataset.retrieval,
        study.name(showcase),
    );
    Some(Section {
        id: "retrieval",
        title: "What captions find".to_owned(),
        lead: Vec::new(),
        blocks: vec![Block::Sheet(Sheet { note, queries })],
    })
}

fn query(study: &Study<'_>, mut rows: Vec<&RetrievalRow>) -> Query {
    rows.sort_by_key(|row| row.rank);
    let place = rows.iter().position(|row| row.retrieved == row.sample);
    let (text, sample) =
        rows.first().map_or_else(Default::default, |r| (r.text.clone(), r.sample));
    let hit = |row: &&RetrievalRow| Hit {
        sample: row.retrieved,
        picture: picture(study, row.retrieved),
        score: words::number(f64::from(row.score), 2),
        own: row.retrieved == row.sample,
    };
    let missed = place.is_none_or(|place| place >= SHOWN).then(|| Hit {
        sample,
        picture: picture(study, sample),
        score: place
            .map_or_else(String::new, |p| words::number(f64::from(rows[p].score), 2)),
        own: true,
    });
    let outcome = match place {
        Some(0) => "found first".to_owned(),
        Some(place) => format!("own picture is number {}", place + 1),
        None => format!("own picture is not among the first {}", rows.len()),
    };
    Query { text, outcome, hits: rows.iter().take(SHOWN).map(hit).collect(), missed }
}

fn picture(study: &Study<'_>, sample: u32) -> String {
    match study.inputs.pictures.get(&sample) {
        Some(bytes) if bytes.starts_with(PNG) => {
            format!("data:image/png;base64,{}", STANDARD.encode(bytes))
        }
        _ => String::new(),
    }
}
