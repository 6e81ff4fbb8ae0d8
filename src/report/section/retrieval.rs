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
        "Captions of split `{}` and the {SHOWN} pictures of that split nearest to each by cosine, found by {}{seed}. The caption's own picture is framed; where it is not among the first {SHOWN}, it stands apart at the right. The captions were drawn before any model was seen.",
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
    let first = rows.first().map_or(0, |row| row.rank);
    // Ranks may begin at 0 or 1, and a far one may follow: the own picture's.
    let place = |row: &RetrievalRow| crate::num::widen(row.rank - first);
    let own = rows.iter().find(|row| row.retrieved == row.sample);
    let (text, sample) =
        rows.first().map_or_else(Default::default, |r| (r.text.clone(), r.sample));
    let score = |row: &RetrievalRow| words::number(f64::from(row.score), 2);
    let hit = |row: &&RetrievalRow| Hit {
        sample: row.retrieved,
        picture: picture(study, row.retrieved),
        score: score(row),
        own: row.retrieved == row.sample,
    };
    let missed = own.is_none_or(|row| place(row) >= SHOWN).then(|| Hit {
        sample,
        picture: picture(study, sample),
        score: own.map_or_else(String::new, |row| score(row)),
        own: true,
    });
    let known = rows.iter().find_map(|row| row.own_rank).map(crate::num::widen);
    let outcome = match known.or_else(|| own.map(|row| place(row))) {
        Some(0) => "found first".to_owned(),
        Some(place) => format!("own picture is number {}", place + 1),
        None => format!("own picture is not among the first {}", rows.len()),
    };
    let hits = rows.iter().filter(|row| place(row) < SHOWN).map(hit).collect();
    Query { text, outcome, hits, missed }
}

fn picture(study: &Study<'_>, sample: u32) -> String {
    match study.inputs.pictures.get(&sample) {
        Some(bytes) if bytes.starts_with(PNG) => {
            format!("data:image/png;base64,{}", STANDARD.encode(bytes))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::report::sample::inputs;

    #[test]
    fn a_far_rank_is_told_truly_and_ranks_may_begin_at_one() {
        let mut inputs = inputs(&["seeds=[1]"]);
        inputs.retrievals.retain(|r| r.query == 3 && r.rank < 5);
        inputs.retrievals.iter_mut().for_each(|r| r.rank += 1);
        let mut own = inputs.retrievals[0].clone();
        (own.rank, own.retrieved) = (38, own.sample);
        inputs.retrievals.push(own);
        inputs.retrievals.iter_mut().for_each(|r| r.own_rank = None);
        let page = crate::report::render(&inputs).unwrap().html;
        assert!(page.contains("own picture is number 38"));
        assert_eq!(page.matches("class=\"hit\"").count(), 5);
        assert_eq!(page.matches("class=\"hit own\"").count(), 1);
        inputs.retrievals.pop();
        inputs.retrievals.iter_mut().for_each(|r| r.own_rank = Some(216));
        let page = crate::report::render(&inputs).unwrap().html;
        assert!(page.contains("own picture is number 217"));
    }
}
