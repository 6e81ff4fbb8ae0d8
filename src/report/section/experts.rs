//! What became of the experts: similarity, entropy, load, probability and compactness.

use std::collections::BTreeMap;

use crate::report::chart::bars::BarChart;
use crate::report::chart::heat::{Cells, HeatSheet};
use crate::report::chart::layers::{LayerChart, LayerSeries};
use crate::report::document::{Block, Cell, Figure, Section, Table};
use crate::report::stats::{Summary, summary};
use crate::report::study::{FINAL, INIT, LayerKey, Study, distinct, over_seeds};
use crate::report::words;
use crate::tables::{Layer, SimilarityRow};

/// Width and height of a chart of which two stand side by side.
const SIZE: (f64, f64) = (540.0, 270.0);

/// How a metric of layers or experts is drawn.
struct Drawn {
    metric: &'static str,
    title: &'static str,
    y_label: &'static str,
    caption: String,
}

/// The metrics of whole layers.
fn of_layers() -> [Drawn; 4] {
    [
        Drawn {
            metric: "similarity",
            title: "Expert similarity",
            y_label: "mean cosine",
            caption: "Mean cosine of the flattened weights [W1; W2] over pairs of experts (paper, figure B.3); 1 means that the experts are copies of each other.".to_owned(),
        },
        Drawn {
            metric: "entropy_normalised",
            title: "Routing entropy",
            y_label: "entropy / ln E",
            caption: "Entropy of the router's softmax over ln E, mean over tokens (paper, figure B.3); 1 means that the router has no preference.".to_owned(),
        },
        Drawn {
            metric: "compactness",
            title: "Relative compactness",
            y_label: "tr(S_W S_B\u{207a}) / E",
            caption: "tr(S_W S_B\u{207a})/E of the experts' outputs, tokens grouped by their first expert (after the paper's figure 4a); lower values mean that the experts are better separated.".to_owned(),
        },
        Drawn {
            metric: "similarity_of_differences",
            title: "Similarity of differences",
            y_label: "mean cosine",
            caption: "Mean cosine between experts of their differences from the dense weights; absent where an expert does not differ.".to_owned(),
        },
    ]
}

/// The metrics of single experts, with the line of even load where there is one.
fn of_experts(study: &Study<'_>) -> [(Drawn, Option<(f64, String)>); 2] {
    let (experts, k) = (study.config().moe.experts, study.config().moe.top_k);
    let ranked = "Experts are in descending order within each seed and then averaged, as their numbers mean nothing across seeds.";

    let utilization = Drawn {
        metric: "utilisation",
        title: "Utilization",
        y_label: "fraction of assignments",
        caption: format!(
            "Fraction of the assignments (K = {k} per token) that go to each expert, after training (paper, figure B.1). {ranked}"
        ),
    };

    let probability = Drawn {
        metric: "routing_probability",
        title: "Routing probability",
        y_label: "mean probability",
        caption: format!(
            "Mean router probability of an expert over the tokens assigned to it, after training (paper, figure B.4). {ranked}"
        ),
    };

    // Only assignments sum to 1 over experts, so only they have an even fraction.
    let even = (1.0 / experts.max(1) as f64, format!("1/{experts}"));
    [(utilization, Some(even)), (probability, None)]
}

/// Expert and routing analyses, if any run has them.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let layers = study.moe_layers();
    if layers.is_empty() {
        return None;
    }

    let figures: Vec<Figure> =
        of_layers().iter().filter_map(|drawn| per_layer(study, &layers, drawn)).collect();
    let mut blocks: Vec<Block> = Block::figures(figures, 2).into_iter().collect();
    for (drawn, rule) in of_experts(study) {
        blocks
            .extend(Block::figures(per_expert(study, &layers, &drawn, rule.as_ref()), 2));
    }

    // Matrices are large: only the two runs of the verdict get a sheet.
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
        lead: std::iter::once("Measured on validation samples. Hollow marks and dashed lines are the models before training, filled marks and solid lines after it. All are means over seeds.".to_owned()).chain(pooled(study, &layers)).collect(),
        blocks,
    })
}

/// What becomes of the pooled tokens in the last MoE layer of each tower: in a last block only
/// they reach the loss, and over all tokens they hardly show.
fn pooled(study: &Study<'_>, layers: &[Layer]) -> Option<String> {
    let pair = study.pair();
    let run = pair.last()?;
    let mean = |layer, metric| {
        let key = LayerKey { run, point: FINAL, layer, metric };
        over_seeds(&study.layer(key)).map(|summary| summary.mean)
    };

    let of_tower = |tower: &str| -> Option<String> {
        let layer = layers.iter().rfind(|layer| layer.tower == tower)?;
        let (all, own) =
            (mean(layer, "dead_experts")?, mean(layer, "pooled_dead_experts")?);
        let load = study.ranked_experts(LayerKey {
            run,
            point: FINAL,
            layer,
            metric: "pooled_utilisation",
        });
        Some(format!(
            "{tower} block {}: {} dead experts over pooled tokens against {} over all, and the busiest two of {} take {} % of the pooled assignments",
            layer.block,
            words::number(own, 1),
            words::number(all, 1),
            load.len(),
            words::percent(load.iter().take(2).sum()),
        ))
    };
    let towers: Vec<String> =
        ["vision", "text"].into_iter().filter_map(of_tower).collect();
    (!towers.is_empty()).then(|| {
        format!(
            "Pooled tokens, one per sample, are all that a last block tells the loss. {}: {}.",
            study.name(run),
            towers.join("; ")
        )
    })
}

fn per_layer(study: &Study<'_>, layers: &[Layer], drawn: &Drawn) -> Option<Figure> {
    let values = |run: &str, point: &str| -> Vec<f64> {
        let of_layer = |layer| {
            let key = LayerKey { run, point, layer, metric: drawn.metric };
            over_seeds(&study.layer(key)).map_or(f64::NAN, |summary| summary.mean)
        };
        layers.iter().map(of_layer).collect()
    };

    let focus = study.focus().into_iter().filter(|run| study.is_moe(run));
    let series = focus.map(|run| LayerSeries {
        label: study.name(&run),
        class: Study::class(&run),
        init: values(&run, INIT),
        end: values(&run, FINAL),
    });

    // A run that was never analyzed would take a place in the legend.
    let has_values = |s: &LayerSeries| s.init.iter().chain(&s.end).any(|v| v.is_finite());

    let chart = LayerChart {
        title: drawn.title.to_owned(),
        y_label: drawn.y_label.to_owned(),
        layers: layers.to_vec(),
        series: series.filter(has_values).collect(),
        size: SIZE,
    };
    Figure::new(drawn.title, &drawn.caption, chart.draw())
}

fn per_expert(
    study: &Study<'_>,
    layers: &[Layer],
    drawn: &Drawn,
    rule: Option<&(f64, String)>,
) -> Vec<Figure> {
    let pair = study.pair();
    let groups = |run: &String| -> Vec<Vec<f64>> {
        let of_layer = |layer| {
            let metric = drawn.metric;
            study.ranked_experts(LayerKey { run, point: FINAL, layer, metric })
        };
        layers.iter().map(of_layer).collect()
    };

    // Charts that stand side by side share their scale.
    let all: Vec<_> = pair.iter().map(groups).collect();
    let largest = all.iter().flatten().flatten().copied().fold(0.0, f64::max);
    let figure = |(run, groups): (&String, Vec<Vec<f64>>)| {
        let (title, name) = (drawn.title, study.name(run));
        let chart = BarChart {
            title: format!("{title}, {name}"),
            y_label: drawn.y_label.to_owned(),
            class: Study::class(run),
            layers: layers.to_vec(),
            groups,
            top: largest * 1.06,
            rule: rule.cloned(),
            size: (540.0, 230.0),
        };
        Figure::new(&format!("{title}: {name}"), &drawn.caption, chart.draw())
    };
    pair.iter().zip(all).filter_map(figure).collect()
}

/// Similarity matrices of one run at its first seed.
fn similarity(study: &Study<'_>, run: &str) -> Option<Figure> {
    let first = study.of(run).find(|r| !r.similarity.is_empty())?;
    let rows = &first.similarity;

    let layers = distinct(rows.iter().map(|row| &row.layer));
    let points = [(INIT, "init"), (FINAL, "end")];

    let sheet = |point: &str| -> Vec<Cells> {
        layers.iter().map(|layer| matrix(rows, point, layer)).collect()
    };

    // Both runs share one floor, so that equal shades mean equal cosines.
    let chart = HeatSheet {
        title: format!("Similarity of experts, {}", study.name(run)),
        class: Study::class(run),
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
    let here = rows.iter().filter(|row| row.point == point && row.layer == *layer);
    let cells: BTreeMap<(u32, u32), f64> =
        here.map(|row| ((row.expert, row.other), row.cosine)).collect();

    // The matrix is symmetric: one of the two cells of a pair is enough.
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
        ("pooled_entropy_normalised", "Pooled: entropy / ln E", 3),
        ("pooled_utilisation_cv", "Pooled: load variation", 2),
        ("pooled_dead_experts", "Pooled: dead experts", 1),
        ("compactness", "Compactness", 2),
        ("compactness_trace_ratio", "tr S_W / tr S_B", 2),
        ("compactness_within_share", "Within fraction", 3),
    ];
    let mut head = vec![Cell::words("Run")];
    head.extend(columns.iter().map(|(_, label, _)| Cell::number(*label)));

    let runs = study.runs.iter().filter(|run| study.is_moe(run));
    let rows = runs.map(|run| {
        let mut row = vec![Cell::words(study.name(run)).with_mark(Study::class(run))];
        row.extend(columns.iter().map(|&(metric, _, decimals)| {
            let mean = |point| {
                mean_over_layers(study, layers, |layer| LayerKey {
                    run,
                    point,
                    layer,
                    metric,
                })
            };

            let init = mean(INIT).map_or_else(String::new, |s| {
                format!("init {}", words::number(s.mean, decimals))
            });

            Cell::number(words::spread(mean(FINAL), 1.0, decimals)).with_sub(init)
        }));
        row
    });
    Table {
        title: "Experts and routing, all runs".to_owned(),
        note: "Mean over layers of both towers, \u{b1} standard deviation over seeds, after training; below, the mean at initialization. Load variation is the coefficient of variation of utilization. An expert is dead if it gets at most a tenth of the even fraction 1/E of the assignments. Pooled columns count only the tokens that become embeddings, one per sample. The within fraction is tr S_W / tr(S_W + S_B).".to_owned(),
        rows: rows.collect(),
        head,
        foreign: false,
    }
}

/// The mean over layers of each seed, summed up over seeds.
fn mean_over_layers<'k>(
    study: &Study<'_>,
    layers: &'k [Layer],
    key: impl Fn(&'k Layer) -> LayerKey<'k>,
) -> Option<Summary> {
    let mut seeds: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for layer in layers {
        for (seed, value) in study.layer(key(layer)) {
            seeds.entry(seed).or_default().push(value);
        }
    }

    // Layers of one model are not independent samples, so the spread is that over seeds
    // alone.
    let means = seeds.values().filter_map(|values| summary(values.iter().copied()));
    summary(means.map(|s| s.mean))
}
