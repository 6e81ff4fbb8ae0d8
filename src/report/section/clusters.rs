//! Where the experts come from: clusters by k-means and their subspaces.

use std::collections::BTreeMap;

use crate::report::chart::bars::BarChart;
use crate::report::chart::lines::{LineChart, Point, Series};
use crate::report::chart::patches::expert_class;
use crate::report::document::{Block, Cell, Figure, Section, Table};
use crate::report::inputs::{Clustering, Subspaces};
use crate::report::section::cards;
use crate::report::stats::summary;
use crate::report::study::{Study, distinct, ranked};
use crate::report::words;
use crate::tables::{IterationRow, Layer, SpectrumRow, SubspaceRow};

/// Width and height of a chart of which three stand side by side.
const SMALL: (f64, f64) = (340.0, 210.0);

/// Clusters and subspaces, if there are any.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let mut blocks = Vec::new();

    // Curves of one base are enough to see that k-means converged; sizes are over all
    // bases.
    if let Some(first) = study.inputs.clusterings.first() {
        blocks.extend(Block::figures(objectives(first), 3));
        blocks.extend(Block::figures(sizes(study).into_iter().collect(), 2));
    }

    blocks.extend(cards::blocks(study));
    if let Some(subspaces) = shown(study) {
        blocks.extend(Block::figures(spectra(study, subspaces), 3));
    }
    if !study.inputs.subspaces.is_empty() {
        blocks.push(Block::Table(variants(study, Detail::Whole)));
        blocks.push(Block::Details {
            summary: "Subspaces by layer".to_owned(),
            blocks: vec![Block::Table(variants(study, Detail::ByLayer))],
        });
    }
    if let Some(subspaces) = shown(study) {
        let summary = format!(
            "Every expert of variant {}, seed {}",
            subspaces.variant, subspaces.seed
        );
        blocks.push(Block::Details {
            summary,
            blocks: vec![Block::Table(experts(subspaces))],
        });
    }

    (!blocks.is_empty()).then(|| Section {
        id: "clusters",
        title: "Clusters and subspaces".to_owned(),
        lead: vec!["Spherical k-means on the inputs of each FFN gives the router's centroids; the outputs of the dense FFN on each cluster span the subspace that its expert keeps.".to_owned()],
        blocks,
    })
}

/// The subspaces of the showcase run at the first seed, else the first there are.
fn shown<'a>(study: &Study<'a>) -> Option<&'a Subspaces> {
    let config = study.config();
    let run = config.runs.get(&config.report.showcase);
    let variant =
        run.and_then(|r| config.inits.get(&r.init)).and_then(|i| i.subspaces.as_ref());

    let all = &study.inputs.subspaces;
    all.iter().find(|s| Some(&s.variant) == variant).or_else(|| all.first())
}

fn objectives(clustering: &Clustering) -> Vec<Figure> {
    let rows = &clustering.iterations;
    let layers = distinct(rows.iter().map(|row| &row.layer));
    layers.iter().filter_map(|layer| objective(rows, layer, clustering.seed)).collect()
}

fn objective(rows: &[IterationRow], layer: &Layer, seed: u64) -> Option<Figure> {
    let mut restarts: BTreeMap<(bool, u32), Vec<Point>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.layer == *layer) {
        // The chosen restart sorts first and is drawn on top.
        let points = restarts.entry((!row.chosen, row.restart)).or_default();
        points.push(Point::bare(f64::from(row.iteration), row.objective));
    }
    let series = restarts.into_iter().map(|((lost, restart), points)| Series {
        title: format!("restart {restart}{}", if lost { "" } else { ", chosen" }),
        class: if lost { "quiet" } else { "clusters" }.to_owned(),
        marked: (!lost).then(|| points.len() - 1),
        points,
        ..Series::default()
    });

    let name = format!("{} block {}", layer.tower, layer.block);
    let chart = LineChart {
        title: format!("k-means objective, {name}"),
        x_label: "iteration".to_owned(),
        y_label: "mean cosine".to_owned(),
        series: series.collect(),
        size: SMALL,
        ..LineChart::default()
    };
    let caption = format!(
        "Mean cosine of tokens to their centroid, one line per restart, the chosen one in color; seed {seed}."
    );
    Figure::new(&format!("k-means: {name}"), &caption, chart.draw())
}

fn sizes(study: &Study<'_>) -> Option<Figure> {
    let all = &study.inputs.clusterings;
    let rows = || all.iter().flat_map(|c| &c.clusters);
    let layers = distinct(rows().map(|row| &row.layer));

    // Numbers of clusters mean nothing across seeds, so sizes are compared by rank.
    let groups: Vec<Vec<f64>> = layers
        .iter()
        .map(|layer| {
            let seeds = all.iter().map(|c| (c.seed, fractions(c, layer)));
            ranked(&seeds.collect())
        })
        .collect();

    let top = groups.iter().flatten().copied().fold(0.0, f64::max) * 1.06;
    let experts = study.config().moe.experts.max(1);
    let chart = BarChart {
        title: "Sizes of clusters".to_owned(),
        y_label: "fraction of tokens".to_owned(),
        class: "clusters".to_owned(),
        layers,
        groups,
        top,
        rule: Some((1.0 / experts as f64, format!("1/{experts}"))),
        size: (540.0, 220.0),
    };
    Figure::new(
        "Cluster sizes",
        "Fraction of a layer's tokens in each cluster, in descending order within a seed, mean over seeds.",
        chart.draw(),
    )
}

/// The fraction of the layer's tokens in each cluster.
fn fractions(clustering: &Clustering, layer: &Layer) -> Vec<f64> {
    let here = clustering.clusters.iter().filter(|row| row.layer == *layer);
    let sizes: Vec<f64> = here.map(|row| f64::from(row.size)).collect();
    let total: f64 = sizes.iter().sum();
    sizes.into_iter().map(|size| size / total.max(1.0)).collect()
}

fn spectra(study: &Study<'_>, subspaces: &Subspaces) -> Vec<Figure> {
    let layers = distinct(subspaces.spectra.iter().map(|row| &row.layer));
    let tau = study.config().subspaces.get(&subspaces.variant).map(|s| s.tau);
    let mut figures = Vec::new();

    // Both matrices have a row of charts of their own, with the layers as columns.
    for matrix in ["fc1", "fc2"] {
        for layer in &layers {
            figures.extend(spectrum(subspaces, layer, matrix, tau));
        }
    }
    figures
}

fn spectrum(
    subspaces: &Subspaces,
    layer: &Layer,
    matrix: &str,
    tau: Option<f64>,
) -> Option<Figure> {
    let mut experts: BTreeMap<u32, Vec<&SpectrumRow>> = BTreeMap::new();
    let here = |row: &&SpectrumRow| row.layer == *layer && row.matrix == matrix;
    for row in subspaces.spectra.iter().filter(here) {
        experts.entry(row.expert).or_default().push(row);
    }

    let kept_rank = |expert: u32| {
        let own = |row: &&SubspaceRow| {
            row.layer == *layer && row.matrix == matrix && row.expert == expert
        };
        subspaces.experts.iter().find(own).map(|row| crate::num::widen(row.figures.rank))
    };

    let series = experts.into_iter().map(|(expert, mut rows)| {
        rows.sort_by_key(|row| row.index);
        let points = residuals(&rows);
        let rank = kept_rank(expert);

        let title = rank.map_or_else(String::new, |rank| format!(", rank {rank}"));
        Series {
            title: format!("expert {expert}{title}"),
            class: format!("{} soft", expert_class(expert)),
            marked: rank.filter(|rank| *rank < points.len()),
            points,
            ..Series::default()
        }
    });

    let name = format!("{} block {}, {matrix}", layer.tower, layer.block);
    let chart = LineChart {
        title: format!("Energy left out, {name}"),
        x_label: "rank r".to_owned(),
        y_label: "energy left out".to_owned(),
        series: series.collect(),
        y_domain: Some((1e-4, 1.0)),
        y_log: true,
        rule: tau
            .filter(|t| *t < 1.0)
            .map(|t| (1.0 - t, "1 \u{2212} \u{3c4}".to_owned())),
        size: SMALL,
    };
    let caption = "Fraction of the output energy outside the first r directions, one line per expert; dots mark the kept ranks.";
    Figure::new(&name, caption, chart.draw())
}

/// 1 minus the energy of the first r directions, for r = 0, 1, …
fn residuals(rows: &[&SpectrumRow]) -> Vec<Point> {
    // Summed from the small end: the difference from 1 would lose what a log axis shows.
    let mut left: Vec<f64> = rows
        .iter()
        .rev()
        .scan(0.0, |sum, row| {
            *sum += row.energy.max(0.0);
            Some(*sum)
        })
        .collect();
    left.reverse();
    left.push(0.0);
    left.iter().enumerate().map(|(r, v)| Point::bare(r as f64, v.max(1e-12))).collect()
}

/// How finely the table of subspaces is divided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Whole,
    ByLayer,
}

/// What a row of the table of subspaces sums up.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    variant: &'a str,
    matrix: &'a str,
    /// `None` for all layers together.
    layer: Option<&'a Layer>,
}

fn variants(study: &Study<'_>, detail: Detail) -> Table {
    let mut groups: BTreeMap<Group<'_>, Vec<&SubspaceRow>> = BTreeMap::new();
    for one in &study.inputs.subspaces {
        for row in &one.experts {
            let layer = (detail == Detail::ByLayer).then_some(&row.layer);
            let group = Group { variant: &one.variant, matrix: &row.matrix, layer };
            groups.entry(group).or_default().push(row);
        }
    }

    let words = ["Variant", "Matrix", "Layer"].map(Cell::words);
    let numbers =
        ["Mean rank", "Ranks", "Energy kept", "Error inside", "Error outside", "Shrunk"];
    let head = words.into_iter().chain(numbers.map(Cell::number));
    Table {
        title: "Subspaces".to_owned(),
        note: "Over experts and seeds, \u{b1} standard deviation. Energy kept and errors are in percent; an error is the relative squared output error of the projected matrix, on the expert's own cluster (inside) and on the other clusters (outside). Shrunk counts the experts whose cluster was small, so that their moments were drawn towards those of all tokens.".to_owned(),
        rows: groups.iter().map(|(group, rows)| variant(group, rows)).collect(),
        head: head.collect(),
        foreign: false,
    }
}

fn variant(group: &Group<'_>, rows: &[&SubspaceRow]) -> Vec<Cell> {
    let layer = group.layer.map_or_else(
        || "all".to_owned(),
        |Layer { tower, block }| format!("{tower} {block}"),
    );
    let ranks = || rows.iter().map(|row| row.figures.rank);
    let (low, high) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
    let full = rows.iter().map(|row| row.figures.full_rank).max().unwrap_or(0);
    let shrunk = rows.iter().filter(|row| row.figures.shrinkage > 0.0).count();

    let mean = |of: fn(&SubspaceRow) -> f64| summary(rows.iter().map(|row| of(row)));

    vec![
        Cell::words(group.variant),
        Cell::words(group.matrix),
        Cell::words(layer),
        Cell::number(words::spread(mean(|row| f64::from(row.figures.rank)), 1.0, 1)),
        Cell::number(format!("{low}\u{2013}{high} of {full}")),
        Cell::number(words::mean_percent(mean(|row| row.figures.retained))),
        Cell::number(words::mean_percent(mean(|row| row.figures.error_inside))),
        Cell::number(words::mean_percent(mean(|row| row.figures.error_outside))),
        Cell::number(shrunk.to_string()),
    ]
}

fn experts(subspaces: &Subspaces) -> Table {
    let words = ["Layer", "Matrix", "Expert"].map(Cell::words);
    let numbers =
        ["Tokens", "Rank", "Energy kept", "Error inside", "Error outside", "Shrinkage"];
    let head = words.into_iter().chain(numbers.map(Cell::number));

    let mut rows: Vec<&SubspaceRow> = subspaces.experts.iter().collect();
    rows.sort_by_key(|&row| (&row.layer, &row.matrix, row.expert));
    let rows = rows.into_iter().map(|row| {
        let Layer { tower, block } = &row.layer;
        vec![
            Cell::words(format!("{tower} {block}")),
            Cell::words(&row.matrix),
            Cell::words(row.expert.to_string()),
            Cell::number(words::grouped(f64::from(row.figures.tokens))),
            Cell::number(format!("{} of {}", row.figures.rank, row.figures.full_rank)),
            Cell::number(words::number(100.0 * row.figures.retained, 2)),
            Cell::number(words::number(100.0 * row.figures.error_inside, 2)),
            Cell::number(words::number(100.0 * row.figures.error_outside, 2)),
            Cell::number(words::number(row.figures.shrinkage, 2)),
        ]
    });
    Table {
        title: format!("Experts of variant {}", subspaces.variant),
        note: "Percent, as above.".to_owned(),
        rows: rows.collect(),
        head: head.collect(),
        foreign: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residual_energy_starts_at_the_total_and_never_rises() {
        let row = |index, energy| SpectrumRow { index, energy, ..SpectrumRow::default() };
        let rows = [row(0, 0.7), row(1, 0.25), row(2, 0.05)];
        let points = residuals(&rows.iter().collect::<Vec<_>>());
        let values: Vec<f64> = points.iter().map(|p| p.mean).collect();
        for (found, expected) in values.iter().zip([1.0, 0.3, 0.05, 1e-12]) {
            assert!((found - expected).abs() < 1e-12, "{values:?}");
        }
    }
}
