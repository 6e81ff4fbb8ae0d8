//! What the experts do with single pictures and captions: their patches and tokens in colors,
//! what they take of each category, and where everything lies in the space of embeddings.

use std::collections::BTreeMap;

use crate::num::widen;
use crate::report::chart::grid::Grid;
use crate::report::chart::patches::{PatchSheet, Patched, expert_class};
use crate::report::chart::scatter::{Dot, Scatter};
use crate::report::chart::svg::defined;
use crate::report::document::{
    Block, CaptionSide, CaptionToken, Captions, Figure, Mark, Section,
};
use crate::report::gallery::{Gallery, GallerySample};
use crate::report::picture;
use crate::report::study::{FINAL, INIT, Study, distinct};
use crate::report::words;
use crate::tables::{Layer, RoutedTokenRow};

/// Pictures whose patches are shown, and captions whose tokens are.
const PICTURES: usize = 16;
const CAPTIONS: usize = 10;
/// Longest side of a shown picture, in pixels.
const SIDE: usize = 128;
/// Samples on a map: more would hide each other.
const MAPPED: usize = 160;

/// What the experts do, if any run has experts and samples to show them on.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let gallery = &study.inputs.gallery;
    let runs = shown(study);
    let samples = chosen(gallery);
    if runs.is_empty() || samples.is_empty() {
        return None;
    }

    let mut blocks = vec![legend(study)];
    for layer in layers(study, &runs, "vision") {
        let sheets = runs.iter().filter_map(|run| sheet(study, run, &layer, &samples));
        blocks.extend(Block::figures(sheets.collect(), 2));
    }
    for layer in layers(study, &runs, "text") {
        blocks.push(captions(study, &runs, &layer, &samples));
    }
    let grids = runs.iter().filter_map(|run| grid(study, run));
    blocks.extend(Block::figures(grids.collect(), 2));
    blocks.extend(maps(study));

    let seed = study.config().seeds.first().copied().unwrap_or_default();
    Some(Section {
        id: "pictures",
        title: "What the experts do".to_owned(),
        lead: vec![format!(
            "Validation samples, evenly spread over the split and chosen before any model was seen, after training with seed {seed}. A token has the color of its first expert, the one with the largest weight. The numbers of experts mean nothing across runs: the same color in two runs is a coincidence, except where both start from the same clusters."
        )],
        blocks,
    })
}

/// The pictures that the sheets use, as one hidden drawing.
pub(in crate::report) fn pictures(study: &Study<'_>) -> String {
    if shown(study).is_empty() {
        return String::new();
    }
    let samples = chosen(&study.inputs.gallery);
    let uri = |s: &&GallerySample| Some((name(s), picture::shrunk(&s.picture, SIDE)?));
    let uris: Vec<(String, String)> = samples.iter().filter_map(uri).collect();
    defined(&uris)
}

/// What a picture is called in the page.
fn name(sample: &GallerySample) -> String {
    format!("p{}", sample.sample)
}

/// Reference and showcase, where they have tokens.
fn shown(study: &Study<'_>) -> Vec<String> {
    let tokens = &study.inputs.gallery.tokens;
    let mut runs = study.pair();
    runs.retain(|run| tokens.get(run).is_some_and(|rows| !rows.is_empty()));
    runs
}

/// Samples evenly spread over the split.
fn chosen(gallery: &Gallery) -> Vec<&GallerySample> {
    let count = gallery.samples.len().min(PICTURES);
    (0..count).map(|i| &gallery.samples[i * gallery.samples.len() / count]).collect()
}

/// The MoE layers of a tower.
fn layers(study: &Study<'_>, runs: &[String], tower: &str) -> Vec<Layer> {
    let tokens = &study.inputs.gallery.tokens;
    let rows = runs.iter().filter_map(|run| tokens.get(run)).flatten();
    distinct(rows.map(|row| &row.layer).filter(|layer| layer.tower == tower))
}

/// The colors of the experts.
fn legend(study: &Study<'_>) -> Block {
    let experts = 0..crate::num::index_u32(study.config().moe.experts);
    let mark = |e: u32| Mark { class: expert_class(e), name: format!("expert {e}") };
    Block::Legend { marks: experts.map(mark).collect() }
}

/// The rows of one layer at one point, by sample.
fn by_sample<'a>(
    study: &Study<'a>,
    run: &str,
    layer: &Layer,
) -> BTreeMap<u32, Vec<&'a RoutedTokenRow>> {
    let mut found: BTreeMap<u32, Vec<&RoutedTokenRow>> = BTreeMap::new();
    let rows = study.inputs.gallery.tokens.get(run);
    let here = |row: &&RoutedTokenRow| row.point == FINAL && row.layer == *layer;
    for row in rows.into_iter().flatten().filter(here) {
        found.entry(row.sample).or_default().push(row);
    }
    found
}

fn sheet(
    study: &Study<'_>,
    run: &str,
    layer: &Layer,
    samples: &[&GallerySample],
) -> Option<Figure> {
    let patches = study.inputs.gallery.patches;
    let rows = by_sample(study, run, layer);

    let picture = |sample: &&GallerySample| {
        let own = rows.get(&sample.sample);
        let cells = own.into_iter().flatten().filter_map(|row| {
            // The class token comes first and is no part of the picture.
            let patch = widen(row.position).checked_sub(1)?;
            Some(((patch % patches.max(1), patch / patches.max(1)), row.expert))
        });
        Patched { picture: name(sample), experts: cells.collect() }
    };

    // Two rows of eight pictures are as wide as a phone and readable beside another sheet.
    let (title, name) = (format!("Image tower, block {}", layer.block), study.name(run));
    let chart = PatchSheet {
        title: format!("{title}: patches by expert, {name}"),
        pictures: samples.iter().map(picture).collect(),
        patches,
        columns: 8,
    };
    let caption =
        "Each patch has the color of its first expert; the class token is not shown.";
    Figure::new(&format!("{title}: {name}"), caption, chart.draw())
}

fn captions(
    study: &Study<'_>,
    runs: &[String],
    layer: &Layer,
    samples: &[&GallerySample],
) -> Block {
    let side = |run: &String| {
        let rows = by_sample(study, run, layer);
        let line = |sample: &&GallerySample| {
            let own = rows.get(&sample.sample).into_iter().flatten();
            let token = |row: &&RoutedTokenRow| CaptionToken {
                text: spoken(&row.text),
                expert: row.expert,
                class: expert_class(row.expert),
            };
            own.map(token).collect()
        };

        // Every picture with its patches has a caption here, up to a readable number.
        let lines = samples.iter().take(CAPTIONS).map(line);
        CaptionSide { name: study.name(run), lines: lines.collect() }
    };
    Block::Captions(Captions {
        title: format!("Text tower, block {}", layer.block),
        note: "The tokens of captions as the tokenizer cuts them, underlined in the color of their first expert; the last one is the end of text, whose place in the last block becomes the embedding.".to_owned(),
        sides: runs.iter().map(side).collect(),
    })
}

/// A token's text; the mark at the end of a caption is long and says little.
fn spoken(text: &str) -> String {
    let is_mark = text.starts_with('<') && text.contains("end") && text.ends_with('>');
    if is_mark { " end ".to_owned() } else { text.to_owned() }
}

/// What each expert takes of each category.
fn grid(study: &Study<'_>, run: &str) -> Option<Figure> {
    let gallery = &study.inputs.gallery;
    if gallery.categories.len() < 2 {
        return None;
    }
    let category: BTreeMap<u32, usize> =
        gallery.samples.iter().map(|s| (s.sample, s.category)).collect();
    let rows = gallery.tokens.get(run)?.iter().filter(|row| row.point == FINAL);
    let layers = distinct(rows.clone().map(|row| &row.layer));
    let (n, experts) = (gallery.categories.len(), study.config().moe.experts);

    // First tokens are counted by layer, category and expert; then every row becomes
    // fractions of its own sum, because categories differ in size.
    let mut counts = vec![vec![vec![0.0; experts]; n]; layers.len()];
    for row in rows {
        let place = layers.binary_search(&row.layer).ok().zip(category.get(&row.sample));
        let Some((layer, &category)) = place else { continue };
        if let Some(count) = counts[layer][category].get_mut(widen(row.expert)) {
            *count += 1.0;
        }
    }

    let fractions = |row: Vec<f64>| -> Vec<f64> {
        let total: f64 = row.iter().sum();
        row.into_iter().map(|count| count / total).collect()
    };
    let values = counts.into_iter().map(|l| l.into_iter().map(fractions).collect());

    let chart = Grid {
        title: format!("Experts by category, {}", study.name(run)),
        rows: gallery.categories.clone(),
        layers,
        values: values.collect(),
    };
    let caption = "Percent of a category's tokens whose first expert is this one, over all analyzed validation samples; a row of a layer adds up to 100. Categories are the coarsest labels of the data set that tell the samples apart.";
    Figure::new(
        &format!("Experts by category: {}", study.name(run)),
        caption,
        chart.draw(),
    )
}

/// Embeddings in two dimensions, model by model, with the colors of their categories.
fn maps(study: &Study<'_>) -> Vec<Block> {
    let gallery = &study.inputs.gallery;
    let dense = study.runs.iter().find(|run| !study.is_moe(run)).cloned();
    let mut models: Vec<(String, &str, String)> = Vec::new();
    if let Some(run) = &dense {
        let before = words::capital(study.checkpoint());
        models.push((run.clone(), INIT, before));
    }
    models.extend(dense.into_iter().chain(study.pair()).map(|run| {
        let name = study.name(&run);
        (run, FINAL, name)
    }));

    // Small and side by side: what is compared are the shapes.
    let figures = models.iter().filter_map(|(run, point, name)| {
        let title = format!("Embeddings: {name}");
        let chart = Scatter {
            title: title.clone(),
            dots: dots(gallery, run, point),
            size: (280.0, 240.0),
        };
        let caption = "Filled: pictures; hollow: their captions. The first two principal components of both together, each side centered on its own mean, because the gap between pictures and captions would take the first one. Axes of different maps are not comparable.";
        Figure::new(&title, caption, chart.draw())
    });
    let Some(figures) = Block::figures(figures.collect(), 4) else { return Vec::new() };

    let mark = |(index, name): (usize, &String)| Mark {
        class: format!("g{index}"),
        name: name.clone(),
    };
    let marks: Vec<Mark> = gallery.categories.iter().enumerate().map(mark).collect();
    let legend = (marks.len() > 1).then_some(Block::Legend { marks });
    std::iter::once(figures).chain(legend).collect()
}

fn dots(gallery: &Gallery, run: &str, point: &str) -> Vec<Dot> {
    let shown = gallery.samples.iter().take(MAPPED);
    let samples: BTreeMap<u32, &GallerySample> =
        shown.map(|sample| (sample.sample, sample)).collect();
    let rows = gallery.embeddings.get(run).into_iter().flatten();
    let here = rows.filter(|row| row.point == point);
    here.filter_map(|row| {
        let sample = samples.get(&row.sample)?;
        let of_picture = row.tower == "vision";
        let style = if of_picture { "dot" } else { "ring" };
        // The caption of a picture is told once.
        let title = if of_picture { sample.caption.clone() } else { String::new() };
        let class = format!("{style} g{}", sample.category);
        Some(Dot { x: f64::from(row.x), y: f64::from(row.y), class, title })
    })
    .collect()
}
