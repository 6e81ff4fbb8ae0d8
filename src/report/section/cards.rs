//! Cards of clusters: what lies nearest to each centroid, which expert it became, and what
//! remained of it after training.
//!
//! Before training, the router of a model with centroids sends a token first to the expert of
//! its nearest centroid. So the first experts at `init` are the clusters of the tokens.

use std::collections::{BTreeMap, BTreeSet};

use crate::num::widen;
use crate::report::chart::patches::expert_class;
use crate::report::document::{Block, Card, Crop};
use crate::report::gallery::GallerySample;
use crate::report::picture;
use crate::report::study::{FINAL, INIT, Study, distinct};
use crate::report::words;
use crate::tables::{Layer, RoutedTokenRow};
use crate::upcycle;

/// Patches and tokens shown of a cluster.
const CROPS: usize = 8;
const WORDS: usize = 10;

/// The tokens of one layer, by where they are.
type Places<'a> = BTreeMap<(u32, u32), &'a RoutedTokenRow>;

/// The cards of the showcase run, if its router starts from centroids.
pub(in crate::report) fn blocks(study: &Study<'_>) -> Vec<Block> {
    let config = study.config();
    let run = &config.report.showcase;
    let method = config.runs.get(run).and_then(|run| config.inits.get(&run.init));
    let centroids = method.is_some_and(|init| {
        upcycle::find(&init.method).is_ok_and(|method| method.needs().centroids)
    });
    let Some(rows) = study.inputs.gallery.tokens.get(run).filter(|_| centroids) else {
        return Vec::new();
    };

    let layers = distinct(rows.iter().map(|row| &row.layer));
    let last = |layer: &Layer| {
        !layers.iter().any(|l| l.tower == layer.tower && l.block > layer.block)
    };

    // The last block of each tower is shown, the others are folded away.
    let mut open = Vec::new();
    let mut folded = Vec::new();
    for layer in &layers {
        let cards = cards(study, rows, layer);
        let title = format!("Clusters of {} block {}", layer.tower, layer.block);
        let block = Block::Cards { title, cards };
        if last(layer) { open.push(block) } else { folded.push(block) }
    }
    if !folded.is_empty() {
        let summary = "Clusters of the other layers".to_owned();
        open.push(Block::Details { summary, blocks: folded });
    }
    open
}

/// The tokens of a layer at one point.
fn at<'a>(rows: &'a [RoutedTokenRow], point: &str, layer: &Layer) -> Places<'a> {
    let here = rows.iter().filter(|row| row.point == point && row.layer == *layer);
    here.map(|row| ((row.sample, row.position), row)).collect()
}

fn cards(study: &Study<'_>, rows: &[RoutedTokenRow], layer: &Layer) -> Vec<Card> {
    let (before, after) = (at(rows, INIT, layer), at(rows, FINAL, layer));
    let clusters: BTreeSet<u32> = before.values().map(|row| row.expert).collect();

    // The nearest tokens first; equal cosines in the order of the samples.
    clusters
        .into_iter()
        .map(|cluster| {
            let mut own: Vec<&RoutedTokenRow> =
                before.values().filter(|row| row.expert == cluster).copied().collect();
            own.sort_by(|a, b| {
                let place = |row: &RoutedTokenRow| (row.sample, row.position);
                b.cosine.total_cmp(&a.cosine).then(place(a).cmp(&place(b)))
            });
            Card {
                title: format!("cluster {cluster} \u{2192} expert {cluster}"),
                class: expert_class(cluster),
                facts: facts(study, &own, before.len(), &after),
                crops: crops(study, &own),
                words: nearest_words(&own),
            }
        })
        .collect()
}

/// Size, what remained after training, and the categories that stand out.
fn facts(
    study: &Study<'_>,
    own: &[&RoutedTokenRow],
    all: usize,
    after: &Places<'_>,
) -> Vec<String> {
    let share = |part: usize, of: usize| words::percent(part as f64 / of.max(1) as f64);

    // Training moves the experts apart from their clusters, and this says how far.
    let kept = own.iter().filter(|row| {
        let now = after.get(&(row.sample, row.position));
        now.is_some_and(|now| now.expert == row.expert)
    });

    let mut facts = vec![
        format!("{} % of the tokens", share(own.len(), all)),
        format!(
            "{} % of them still go to its expert first after training",
            share(kept.count(), own.len())
        ),
    ];
    facts.extend(outstanding(study, own));
    facts
}

/// The three categories of which the cluster holds most, beside their share of all samples.
fn outstanding(study: &Study<'_>, own: &[&RoutedTokenRow]) -> Option<String> {
    let gallery = &study.inputs.gallery;
    if gallery.categories.len() < 2 {
        return None;
    }
    let category: BTreeMap<u32, usize> =
        gallery.samples.iter().map(|s| (s.sample, s.category)).collect();

    let mut counts = vec![0_usize; gallery.categories.len()];
    for row in own {
        if let Some(&category) = category.get(&row.sample) {
            counts[category] += 1;
        }
    }

    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(counts[index]), index));

    let percent = |part: usize, of: usize| 100.0 * part as f64 / of.max(1) as f64;
    let part = |&index: &usize| {
        let all = gallery.samples.iter().filter(|s| s.category == index).count();
        let name = &gallery.categories[index];
        let here = percent(counts[index], own.len());
        let there = percent(all, gallery.samples.len());
        format!("{name} {here:.0} % (of all samples {there:.0} %)")
    };
    let parts: Vec<String> = order.iter().take(3).map(part).collect();
    Some(parts.join(", "))
}

/// The patches nearest to the centroid, of different pictures.
fn crops(study: &Study<'_>, own: &[&RoutedTokenRow]) -> Vec<Crop> {
    let gallery = &study.inputs.gallery;
    let samples: BTreeMap<u32, &GallerySample> =
        gallery.samples.iter().map(|sample| (sample.sample, sample)).collect();

    // One patch of a picture is enough: neighbors are alike.
    let mut seen = BTreeSet::new();
    let of_pictures = own.iter().filter(|row| row.layer.tower == "vision");
    of_pictures
        .filter(|row| seen.insert(row.sample))
        .filter_map(|row| {
            let sample = samples.get(&row.sample)?;
            let file = &sample.picture;

            // The class token stands for its whole picture.
            let (uri, what) = match widen(row.position).checked_sub(1) {
                None => (picture::shrunk(file, 72)?, "class token".to_owned()),
                Some(patch) => {
                    let place = (patch % gallery.patches, patch / gallery.patches);
                    let uri = picture::around(file, gallery.patches, place)?;
                    (uri, format!("patch {} of row {}", place.0, place.1))
                }
            };

            let cosine = words::number(f64::from(row.cosine), 2);
            let title = format!("{}: {what}, cosine {cosine}", sample.caption);
            Some(Crop { uri, title })
        })
        .take(CROPS)
        .collect()
}

/// The tokens nearest to the centroid, each once.
fn nearest_words(own: &[&RoutedTokenRow]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let words = own.iter().map(|row| row.text.trim()).filter(|text| !text.is_empty());
    words.filter(|text| seen.insert(*text)).take(WORDS).map(str::to_owned).collect()
}
