//! What became of the experts: similarity, entropy, load, probability, compactness.

use std::collections::BTreeMap;

use crate::report::chart::bars::BarChart;
use crate::report::chart::heat::{Cells, HeatSheet};
use crate::report::chart::layers::{Layer, LayerChart, LayerSeries};
use crate::report::document::{Block, Cell, Figure, Section, Table};
use crate::report::inputs::SimilarityRow;
use crate::report::stats::{Summary, summary};
use crate::report::study::{FINAL, INIT, Study, in_tower_order, over_seeds};
use crate::report::words;

const SIZE: (f64, f64) = (540.0, 270.0);

/// Metric, title, axis, caption.
const PER_LAYER: [(&str, &str, &str, &str); 4] = [
    (
        "similarity",
        "Expert similarity",
        "mean cosine",
        "Mean cosine of the flattened weights [W1; W2] over pairs of experts (paper, figure B.3); 1 means copies.",
    ),
    (
        "entropy_normalised",
        "Routing entropy",
        "entropy / ln E",
        "Entropy of the router's softmax over ln E, mean over tokens (paper, figure B.3).",
    ),
    (
        "compactness",
        "Relative compactness",
        "tr(S_W S_B\u{207a}) / E",
        "tr(S_W S_B\u{207a})/E of the experts' outputs, tokens grouped by their first expert (after the paper's figure 4a); lower is better separated.",
    ),
    (
        "similarity_of_differences",
        "Similarity of differences",
        "mean cosine",
        "Mean cosine between experts of what distinguishes them from the dense weights; absent where nothing does.",
    ),
];

/// Expert and routing analyses, if any run has them.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let layers = study.moe_layers();
    if layers.is_empty() {
        return None;
    }
    let figures: Vec<Figure> =
        PER_LAYER.iter().filter_map(|metric| per_layer(study, &layers, metric)).collect();
    let mut blocks: Vec<Block> = Block::figures(figures, 2).into_iter().collect();
    for (metric, title, label, caption, rule) in bars(study) {
        let figures = expert_bars(
            study,
            &layers,
            (metric, &title, &label, &caption),
            rule.as_ref(),
        );
        blocks.extend(Block::figures(figures, 2));
    }
    let sheets: Vec<Figure> =
        study.pair().iter().filter_map(|run| similarity(study, run)).collect();
    blocks.extend(Block::figures(sheets, 2));
    blocks.push(Block::Details {
        summary: "All runs: means over layers".to_owned(),
        blocks: vec![Block::Table(table(study, &layers))],
    });
    Some(Section {
        id: "experts",
        title: "Experts and routing".to_owned(),
        lead: vec!["Measured on validation samples; hollow marks and dashed lines are the models before training, filled marks and solid lines after it. Means over seeds.".to_owned()],
        blocks,
    })
}

fn per_layer(
    study: &Study<'_>,
    layers: &[Layer],
    &(metric, title, y_label, caption): &(&str, &str, &str, &str),
) -> Option<Figure> {
    let values = |run: &str, point: &str| -> Vec<f64> {
        let means =
            layers.iter().map(|l| over_seeds(&study.layer(run, point, l, metric)));
        means.map(|s| s.map_or(f64::NAN, |s| s.mean)).collect()
    };
    let focus = study.focus().into_iter().filter(|run| study.is_moe(run));
    let series = focus.map(|run| LayerSeries {
        label: study.name(&run),
        class: study.class(&run),
        init: values(&run, INIT),
        end: values(&run, FINAL),
    });
    let drawn = |s: &LayerSeries| s.init.iter().chain(&s.end).any(|v| v.is_finite());
    let chart = LayerChart {
        title: title.to_owned(),
        y_label: y_label.to_owned(),
        layers: layers.to_vec(),
        series: series.filter(drawn).collect(),
        size: SIZE,
    };
    Figure::new(title, caption, chart.draw())
}

type Bars = (&'static str, String, String, String, Option<(f64, String)>);

fn bars(study: &Study<'_>) -> [Bars; 2] {
    let moe = &study.config().moe;
    let (experts, k) = (moe.experts, moe.top_k);
    let ranked = "Experts in descending order within each seed, then averaged, as their numbers mean nothing across seeds.";
    [
        (
            "utilisation",
            "Utilisation".to_owned(),
            "share of assignments".to_owned(),
            format!(
                "Share of the K = {k} assignments a token that goes to each expert, after training (paper, figure B.1). {ranked}"
            ),
            Some((1.0 / experts.max(1) as f64, format!("1/{experts}"))),
        ),
        (
            "routing_probability",
            "Routing probability".to_owned(),
            "mean probability".to_owned(),
            format!(
                "Mean router probability of an expert over the tokens assigned to it, after training (paper, figure B.4). {ranked}"
            ),
            None,
        ),
    ]
}

fn expert_bars(
    study: &Study<'_>,
    layers: &[Layer],
    (metric, title, y_label, caption): (&str, &str, &str, &str),
    rule: Option<&(f64, String)>,
) -> Vec<Figure> {
    let pair = study.pair();
    let groups = |run: &String| -> Vec<Vec<f64>> {
        layers.iter().map(|l| study.ranked_experts(run, FINAL, l, metric)).collect()
    };
    let all: Vec<_> = pair.iter().map(groups).collect();
    let largest = all.iter().flatten().flatten().copied().fold(0.0, f64::max);
    pair.iter()
        .zip(all)
        .filter_map(|(run, groups)| {
            let chart = BarChart {
                title: format!("{title}, {}", study.name(run)),
                y_label: y_label.to_owned(),
                class: study.class(run),
                layers: layers.to_vec(),
                groups,
                top: largest * 1.06,
                rule: rule.cloned(),
                size: (540.0, 230.0),
            };
            Figure::new(&format!("{title}: {}", study.name(run)), caption, chart.draw())
        })
        .collect()
}

/// Similarity matrices of one run at its first seed.
fn similarity(study: &Study<'_>, run: &str) -> Option<Figure> {
    let first = study.of(run).find(|r| !r.similarity.is_empty())?;
    let rows = &first.similarity;
    let layers = in_tower_order(rows.iter().map(|r| (r.tower.clone(), r.layer)));
    let points = [(INIT, "init"), (FINAL, "end")];
    let sheet = |point: &str| -> Vec<Cells> {
        layers.iter().map(|layer| matrix(rows, point, layer)).collect()
    };
    let chart = HeatSheet {
        title: format!("Similarity of experts, {}", study.name(run)),
        class: study.class(run),
        rows: points.map(|(point, name)| (name.to_owned(), sheet(point))).into(),
        layers,
        floor: floor(study),
    };
    let (seed, floor) = (first.seed, words::number(chart.floor, 1));
    let caption = format!(
        "Cosine of the weights of each pair of experts, seed {seed}; shading runs from {floor} to 1 in both sheets."
    );
    Figure::new(
        &format!("Similarity matrices: {}", study.name(run)),
        &caption,
        chart.draw(),
    )
}

/// The lowest cosine of the shown runs, rounded down to a tenth.
fn floor(study: &Study<'_>) -> f64 {
    let pair = study.pair();
    let rows = pair.iter().flat_map(|run| study.of(run)).flat_map(|r| &r.similarity);
    let lowest = rows.map(|r| r.cosine).filter(|c| c.is_finite()).fold(1.0, f64::min);
    ((lowest * 10.0).floor() / 10.0).min(0.9)
}

fn matrix(rows: &[SimilarityRow], point: &str, layer: &Layer) -> Cells {
    let here =
        |r: &&SimilarityRow| r.point == point && r.tower == layer.0 && r.layer == layer.1;
    let cells: BTreeMap<(u32, u32), f64> =
        rows.iter().filter(here).map(|r| ((r.expert, r.other), r.cosine)).collect();
    let size = cells.keys().map(|(a, b)| a.max(b) + 1).max().unwrap_or(0);
    let cell = |i, j| cells.get(&(i, j)).or_else(|| cells.get(&(j, i))).copied();
    (0..size)
        .map(|i| (0..size).map(|j| cell(i, j).unwrap_or(f64::NAN)).collect())
        .collect()
}

fn table(study: &Study<'_>, layers: &[Layer]) -> Table {
    let columns = [
        ("similarity", "Similarity", 3),
        ("similarity_of_differences", "Sim. of differences", 3),
        ("entropy_normalised", "Entropy / ln E", 3),
        ("utilisation_cv", "Load variation", 2),
        ("dead_experts", "Dead experts", 1),
        ("compactness", "Compactness", 2),
        ("compactness_trace_ratio", "tr S_W / tr S_B", 2),
        ("compactness_within_share", "Within share", 3),
    ];
    let mut head = vec![Cell::words("Run")];
    head.extend(columns.iter().map(|(_, label, _)| Cell::number(*label)));
    let runs = study.runs.iter().filter(|run| study.is_moe(run));
    let rows = runs.map(|run| {
        let mut row = vec![Cell::words(study.name(run)).with_mark(study.class(run))];
        row.extend(columns.iter().map(|(metric, _, decimals)| {
            let mean = |point| mean_over_layers(study, layers, (run, point, metric));
            let (init, end) = (mean(INIT), mean(FINAL));
            let init = init.map_or_else(String::new, |s| {
                format!("init {}", words::number(s.mean, *decimals))
            });
            Cell::number(words::spread(end, 1.0, *decimals)).with_sub(init)
        }));
        row
    });
    Table {
        title: "Experts and routing, all runs".to_owned(),
        note: "Mean over layers of both towers, \u{b1} standard deviation over seeds, after training; below, the mean at initialisation. Load variation is the coefficient of variation of utilisation; an expert is dead below a tenth of its fair share; within share is tr S_W / tr(S_W + S_B).".to_owned(),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

fn mean_over_layers(
    study: &Study<'_>,
    layers: &[Layer],
    (run, point, metric): (&str, &str, &str),
) -> Option<Summary> {
    let mut seeds: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for layer in layers {
        for (seed, value) in study.layer(run, point, layer, metric) {
            seeds.entry(seed).or_default().push(value);
        }
    }
    let means = seeds.values().filter_map(|values| summary(values.iter().copied()));
    summary(means.map(|s| s.mean))
}
