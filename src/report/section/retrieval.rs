//! The picture sheet: captions and the pictures they find.

use std::collections::BTreeMap;

use crate::report::document::{Block, Hit, Query, Section, Sheet};
use crate::report::picture;
use crate::report::study::Study;
use crate::report::words;
use crate::tables::RetrievalRow;

/// Pictures shown for each query.
const SHOWN: u32 = 5;

/// Example retrievals, if there are any.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let mut queries: BTreeMap<u32, Vec<&RetrievalRow>> = BTreeMap::new();
    for row in &study.inputs.retrievals {
        queries.entry(row.query).or_default().push(row);
    }

    let examples = study.config().report.examples;
    let queries = queries.into_values().take(examples);
    let queries: Vec<Query> = queries.filter_map(|rows| query(study, rows)).collect();
    if queries.is_empty() {
        return None;
    }

    let showcase = &study.config().report.showcase;
    let seed = study.seeds(showcase).first().map(|seed| format!(", seed {seed}"));
    let note = format!(
        "Captions of split `{}` and the {SHOWN} pictures of that split nearest to each by cosine, found by {}{}. The caption's own picture is framed; where it is not among the first {SHOWN}, it stands apart at the right. The captions were drawn before any model was seen.",
        study.inputs.dataset.retrieval,
        study.name(showcase),
        seed.unwrap_or_default(),
    );
    Some(Section {
        id: "retrieval",
        title: "What captions find".to_owned(),
        lead: Vec::new(),
        blocks: vec![Block::Sheet(Sheet { note, queries })],
    })
}

/// One caption with its pictures, best first; `None` without a row.
fn query(study: &Study<'_>, mut rows: Vec<&RetrievalRow>) -> Option<Query> {
    rows.sort_by_key(|row| row.rank);
    let first = *rows.first()?;
    let (sample, own_rank) = (first.sample, first.own_rank);

    let score = |row: &RetrievalRow| words::number(f64::from(row.score), 2);
    let hit = |row: &&RetrievalRow| Hit {
        sample: row.retrieved,
        picture: picture(study, row.retrieved),
        score: score(row),
        own: row.retrieved == sample,
    };
    let hits = rows.iter().filter(|row| row.rank < SHOWN).map(hit).collect();

    // The own picture stands apart where it came late. Its score is known only where its row
    // is there.
    let missed = (own_rank >= SHOWN).then(|| {
        let own = rows.iter().find(|row| row.retrieved == sample);
        Hit {
            sample,
            picture: picture(study, sample),
            score: own.map_or_else(String::new, |row| score(row)),
            own: true,
        }
    });

    let outcome = match own_rank {
        0 => "found first".to_owned(),
        rank => format!("own picture is number {}", rank + 1),
    };
    Some(Query { text: first.text.clone(), outcome, hits, missed })
}

fn picture(study: &Study<'_>, sample: u32) -> String {
    let file = study.inputs.pictures.get(&sample);
    file.and_then(|file| picture::whole(file)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use crate::report::sample::inputs;

    #[test]
    fn a_picture_that_came_late_stands_apart_with_its_number() {
        let mut inputs = inputs(&["seeds=[1]"]);
        inputs.retrievals.retain(|row| row.query == 3 && row.rank < 5);
        inputs.retrievals.iter_mut().for_each(|row| row.own_rank = 216);
        let page = crate::report::render(&inputs).unwrap().html;
        assert!(page.contains("own picture is number 217"));
        assert_eq!(page.matches("class=\"hit\"").count(), 5);
        assert_eq!(page.matches("class=\"hit own\"").count(), 1);

        let mut own = inputs.retrievals[0].clone();
        (own.rank, own.retrieved, own.score) = (216, own.sample, 0.125);
        inputs.retrievals.push(own);
        let page = crate::report::render(&inputs).unwrap().html;
        assert!(page.contains("<span>0.12</span>"), "the score of a late row is shown");
        assert_eq!(page.matches("class=\"hit own\"").count(), 1);
    }
}
