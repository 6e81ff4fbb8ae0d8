//! A small picture set drawn here: colored shapes in eight styles, for tests and trials
//! without a network.
//!
//! It has the structure of the emoji data: concepts with group and subgroup, styles that are
//! never trained on, concepts held out (each shape and each color of which is known from
//! others), pairs and validation by the same rules. Shape and color are learnt by a tiny
//! model within some 150 steps.

use std::collections::{BTreeMap, BTreeSet};

use super::collection::{Collection, Concept, Layout, Reading, Sample};
use super::splits::{self, Rules};
use super::spool::Spool;
use crate::config::DatasetConfig;
use crate::error::{Error, Result};
use crate::image;
use crate::par;
use crate::rng::{self, RngExt, Stream};

/// Name, tag, group and outline within the unit circle, SVG path or polygon.
const SHAPES: [(&str, &str, usize, &str); 8] = [
    ("circle", "disc", 0, "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0Z"),
    (
        "ring",
        "hoop",
        0,
        "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0ZM-.5 0A.5 .5 0 1 0 .5 0A.5 .5 0 1 0 -.5 0Z",
    ),
    ("bowl", "half disc", 0, "M-1 -.4A1 1 0 0 0 1 -.4Z"),
    ("square", "box", 1, "M-.85 -.85H.85V.85H-.85Z"),
    ("triangle", "wedge", 1, "M0 -1L.95 .8H-.95Z"),
    ("bar", "stripe", 1, "M-1 -.3H1V.3H-1Z"),
    ("cross", "plus", 2, "M-.3 -1H.3V-.3H1V.3H.3V1H-.3V.3H-1V-.3H-.3Z"),
    ("star", "spark", 2, "M0 -1L.27 -.27L1 0L.27 .27L0 1L-.27 .27L-1 0L-.27 -.27Z"),
];

const GROUPS: [&str; 3] = ["round", "straight", "pointed"];

/// Name, tag, and the color.
const COLORS: [(&str, &str, [u8; 3]); 8] = [
    ("red", "crimson", [215, 35, 35]),
    ("green", "grass", [40, 150, 50]),
    ("blue", "navy", [40, 70, 205]),
    ("yellow", "lemon", [240, 205, 30]),
    ("purple", "violet", [140, 50, 170]),
    ("orange", "amber", [240, 130, 20]),
    ("cyan", "aqua", [40, 190, 200]),
    ("black", "dark", [25, 25, 25]),
];

/// Style and the split of those never trained on.
const STYLES: [(&str, Option<&str>); 8] = [
    ("flat", None),
    ("outlined", None),
    ("tinted", None),
    ("tilted", None),
    ("framed", Some("v2")),
    ("shaded", Some("3d")),
    ("drawn", Some("sketch")),
    ("soft", Some("blob")),
];

const TEMPLATES: [&str; 3] = ["{}", "a picture of {}", "a drawing of {}"];

/// Draws `config.shapes` pictures: first one of every concept and style, then more of the
/// training styles.
pub(super) fn collect(
    config: &DatasetConfig,
    seed: u64,
    (spool, progress): (&mut Spool, &mut dyn FnMut(usize, usize)),
) -> Result<Collection> {
    let n_concepts = SHAPES.len() * COLORS.len();
    let least = n_concepts * STYLES.len();
    if config.shapes < least {
        return Err(Error::usage(format!(
            "dataset.shapes: expected at least {least} (each concept in each style), found {}",
            config.shapes
        )));
    }

    let n_training = STYLES.iter().filter(|(_, split)| split.is_none()).count();
    let concepts: Vec<Concept> = (0..n_concepts).map(concept).collect();

    // Every concept in every style comes first; what is left over goes to the training
    // styles.
    let cells: Vec<(usize, usize)> = (0..config.shapes)
        .map(|i| match (i % n_concepts, i / n_concepts) {
            (concept, round) if round < STYLES.len() => (concept, round),
            (concept, round) => (concept, round % n_training),
        })
        .collect();

    let items: Vec<(&str, &str)> = cells
        .iter()
        .map(|&(concept, style)| (concepts[concept].key.as_str(), STYLES[style].0))
        .collect();

    let rules = Rules {
        unseen: STYLES
            .iter()
            .filter_map(|&(s, split)| Some((s, split?)))
            .collect::<BTreeMap<_, _>>(),
        held_out: concepts
            .iter()
            .filter(|c| c.held_out)
            .map(|c| c.key.as_str())
            .collect::<BTreeSet<_>>(),
        retrieval: splits::PAIR,
        one_in: 3,
    };
    let assigned = splits::assign(&items, &rules);

    // Each drawing has a stream of its own, so the threads cannot change what is drawn.
    let drawn = par::try_map(cells.len(), |i| {
        let (concept, style) = cells[i];
        let mut stream = rng::stream(seed, &format!("dataset/shapes/{i}"));
        let svg = svg(concept, STYLES[style].0, &mut stream);
        let png = image::encode_png(&image::render(&svg, config.image_size)?)?;
        Ok::<_, Error>((png, captions(&concepts[concept], &mut stream)))
    })?;
    progress(drawn.len(), drawn.len());

    let mut reading = Reading { read: drawn.len(), ..Reading::default() };
    let mut samples = Vec::new();
    for ((&(concept, style), (png, captions)), split) in
        cells.iter().zip(drawn).zip(assigned)
    {
        let Some(split) = split else {
            *reading.skipped.entry(splits::GIVEN_UP.to_owned()).or_insert(0) += 1;
            continue;
        };

        let of = &concepts[concept];
        samples.push(Sample {
            split: split.to_owned(),
            png: spool.store(&png)?,
            captions,
            names: vec![
                of.label.clone(),
                format!("{}, {}", of.label, of.tags.join(", ")),
            ],
            concept,
            style: STYLES[style].0.to_owned(),
        });
    }

    Ok(Collection {
        samples,
        concepts,
        groups: GROUPS.map(str::to_owned).to_vec(),
        subgroups: SHAPES.map(|shape| shape.0.to_owned()).to_vec(),
        splits: ["train", "val", "pair", "heldout", "v2", "3d", "sketch", "blob"]
            .map(str::to_owned)
            .to_vec(),
        reading,
        layout: layout(),
    })
}

fn layout() -> Layout {
    Layout {
        source: "shapes".to_owned(),
        tests: ["pair", "v2", "3d", "sketch", "blob"].map(str::to_owned).to_vec(),
        shifts: ["v2", "3d", "sketch", "blob"].map(str::to_owned).to_vec(),
        retrieval: splits::PAIR.to_owned(),
        held_out: Some(splits::HELD_OUT.to_owned()),
        classes: None,
        templates: TEMPLATES.map(str::to_owned).to_vec(),
        attribution: vec!["drawn by upcycle".to_owned()],
    }
}

/// Concept `index` is shape `index / 8` in color `index % 8`; one in sixteen is held out,
/// no shape and no color twice.
fn concept(index: usize) -> Concept {
    let (shape, color) = (index / COLORS.len(), index % COLORS.len());
    let (name, tag, group, _) = SHAPES[shape];
    let (hue, hue_tag, _) = COLORS[color];
    Concept {
        key: format!("{name}-{hue}"),
        label: format!("{hue} {name}"),
        tags: vec![tag.to_owned(), hue_tag.to_owned(), GROUPS[group].to_owned()],
        group,
        subgroup: shape,
        held_out: shape % 2 == 1 && color == (shape + 2) % COLORS.len(),
    }
}

fn captions(concept: &Concept, stream: &mut Stream) -> Vec<String> {
    let label = &concept.label;
    let tag = &concept.tags[stream.random_range(0..concept.tags.len())];

    let template = TEMPLATES[stream.random_range(1..TEMPLATES.len())];
    let words = label.split_once(' ').map(|(hue, shape)| format!("{shape} in {hue}"));

    let mut captions =
        vec![label.clone(), format!("{label}, {tag}"), template.replace("{}", label)];
    captions.extend(words);
    captions
}

/// One drawing: shape and color are the concept's, the rest is the style's or luck.
fn svg(concept: usize, style: &str, stream: &mut Stream) -> String {
    let (_, _, _, path) = SHAPES[concept / COLORS.len()];
    let (_, _, [r, g, b]) = COLORS[concept % COLORS.len()];

    let scale = stream.random_range(0.62..0.85);
    let (x, y) = (stream.random_range(-0.12..0.12), stream.random_range(-0.12..0.12));
    let tint: [u8; 3] = [0; 3].map(|_: u8| stream.random_range(215..=255));
    let [tr, tg, tb] = tint;
    let tilt = if style == "tilted" { stream.random_range(-25.0..25.0) } else { 0.0 };

    let color = format!("rgb({r},{g},{b})");
    let (paper, fill, stroke) = match style {
        "outlined" => ("white".to_owned(), color, "stroke=\"#222\" stroke-width=\".12\""),

        "tinted" => (format!("rgb({tr},{tg},{tb})"), color, ""),
        "framed" => ("white".to_owned(), color, "stroke=\"#bbb\" stroke-width=\".25\""),
        "shaded" => ("white".to_owned(), "url(#s)".to_owned(), ""),
        "drawn" => (
            "white".to_owned(),
            format!("rgb({r},{g},{b})"),
            "fill-opacity=\".35\" stroke=\"#444\" stroke-width=\".1\"",
        ),
        "soft" => ("rgb(240,240,245)".to_owned(), color, "fill-opacity=\".7\""),
        _ => ("white".to_owned(), color, ""),
    };
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-1.2 -1.2 2.4 2.4\"><defs>\
         <linearGradient id=\"s\"><stop stop-color=\"white\"/>\
         <stop offset=\".5\" stop-color=\"rgb({r},{g},{b})\"/></linearGradient></defs>\
         <rect x=\"-2\" y=\"-2\" width=\"4\" height=\"4\" fill=\"{paper}\"/>\
         <g transform=\"translate({x} {y}) rotate({tilt}) scale({scale})\">\
         <path d=\"{path}\" fill=\"{fill}\" {stroke}/></g></svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_concepts_leave_every_shape_and_color_in_training() {
        let held: Vec<usize> = (0..64).filter(|&i| concept(i).held_out).collect();
        assert_eq!(held.len(), 4);
        let shapes: BTreeSet<_> = held.iter().map(|i| i / 8).collect();
        let colors: BTreeSet<_> = held.iter().map(|i| i % 8).collect();
        assert_eq!((shapes.len(), colors.len()), (4, 4));
    }

    #[test]
    fn every_concept_and_style_can_be_drawn_and_shows_something() {
        for index in 0..64 {
            for (style, _) in STYLES {
                let mut stream = rng::stream(1, "t");
                let picture = image::render(&svg(index, style, &mut stream), 16).unwrap();
                assert!(picture.deviation() > 3.0, "{index} {style}");
            }
        }
    }
}
