//! Where the experts come from: k-means and the subspaces of its clusters.

use std::collections::BTreeMap;

use crate::report::chart::bars::BarChart;
use crate::report::chart::layers::Layer;
use crate::report::chart::lines::{LineChart, Point, Series};
use crate::report::document::{Block, Cell, Figure, Section, Table};
use crate::report::inputs::{
    Clustering, IterationRow, SpectrumRow, SubspaceRow, Subspaces,
};
use crate::report::stats::summary;
use crate::report::study::{Study, in_tower_order, ranked};
use crate::report::words;

const SMALL: (f64, f64) = (340.0, 210.0);

/// Clusters and subspaces, if there are any.
pub(in crate::report) fn section(study: &Study<'_>) -> Option<Section> {
    let mut blocks = Vec::new();
    if let Some(first) = study.inputs.clusterings.first() {
        blocks.extend(Block::figures(objectives(first), 3));
        blocks.extend(Block::figures(sizes(study).into_iter().collect(), 2));
    }
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
    let layers = in_tower_order(rows.iter().map(|r| (r.tower.clone(), r.layer)));
    layers.iter().filter_map(|layer| objective(rows, layer, clustering.seed)).collect()
}

fn objective(rows: &[IterationRow], layer: &Layer, seed: u64) -> Option<Figure> {
    let mut restarts: BTreeMap<(bool, u32), Vec<Point>> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.tower == layer.0 && r.layer == layer.1) {
        // The winner sorts first and is drawn on top.
        let points = restarts.entry((!row.chosen, row.restart)).or_default();
        points.push(Point::bare(f64::from(row.iteration), row.objective));
    }
    let series = restarts.into_iter().map(|((lost, restart), points)| Series {
        title: format!("restart {restart}{}", if lost { "" } else { ", chosen" }),
        class: if lost { "quiet" } else { "c1" }.to_owned(),
        marked: (!lost).then(|| points.len() - 1),
        points,
        ..Series::default()
    });
    let name = format!("{} block {}", layer.0, layer.1);
    let chart = LineChart {
        title: format!("k-means objective, {name}"),
        x_label: "iteration".to_owned(),
        y_label: "mean cosine".to_owned(),
        series: series.collect(),
        size: SMALL,
        ..LineChart::default()
    };
    let caption = format!(
        "Mean cosine of tokens to their centroid, one line a restart, the chosen one in colour; seed {seed}."
    );
    Figure::new(&format!("k-means: {name}"), &caption, chart.draw())
}

fn sizes(study: &Study<'_>) -> Option<Figure> {
    let all = &study.inputs.clusterings;
    let rows = || all.iter().flat_map(|c| &c.clusters);
    let layers = in_tower_order(rows().map(|r| (r.tower.clone(), r.layer)));
    let groups: Vec<Vec<f64>> = layers
        .iter()
        .map(|layer| {
            let seeds = all.iter().map(|c| (c.seed, shares(c, layer)));
            ranked(&seeds.collect())
        })
        .collect();
    let top = groups.iter().flatten().copied().fold(0.0, f64::max) * 1.06;
    let experts = study.config().moe.experts.max(1);
    let chart = BarChart {
        title: "Sizes of clusters".to_owned(),
        y_label: "share of tokens".to_owned(),
        class: "c1".to_owned(),
        layers,
        groups,
        top,
        rule: Some((1.0 / experts as f64, format!("1/{experts}"))),
        size: (540.0, 220.0),
    };
    Figure::new(
        "Cluster sizes",
        "Share of a layer's tokens in each cluster, in descending order within a seed, mean over seeds.",
        chart.draw(),
    )
}

fn shares(clustering: &Clustering, layer: &Layer) -> Vec<f64> {
    let here =
        clustering.clusters.iter().filter(|r| r.tower == layer.0 && r.layer == layer.1);
    let sizes: Vec<f64> = here.map(|r| f64::from(r.size)).collect();
    let total: f64 = sizes.iter().sum();
    sizes.into_iter().map(|size| size / total.max(1.0)).collect()
}

fn spectra(study: &Study<'_>, subspaces: &Subspaces) -> Vec<Figure> {
    let rows = &subspaces.spectra;
    let layers = in_tower_order(rows.iter().map(|r| (r.tower.clone(), r.layer)));
    let tau = study.config().subspaces.get(&subspaces.variant).map(|s| s.tau);
    let mut figures = Vec::new();
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
    let here =
        |r: &&SpectrumRow| r.tower == layer.0 && r.layer == layer.1 && r.matrix == matrix;
    for row in subspaces.spectra.iter().filter(here) {
        experts.entry(row.expert).or_default().push(row);
    }
    let series = experts.into_iter().map(|(expert, mut rows)| {
        rows.sort_by_key(|row| row.index);
        let own = |r: &&SubspaceRow| {
            r.tower == layer.0
                && r.layer == layer.1
                && r.matrix == matrix
                && r.expert == expert
        };
        let rank = subspaces.experts.iter().find(own).map(|r| crate::num::widen(r.rank));
        let points = residuals(&rows);
        let title = rank.map_or_else(String::new, |rank| format!(", rank {rank}"));
        Series {
            title: format!("expert {expert}{title}"),
            class: "c1 soft".to_owned(),
            marked: rank.filter(|rank| *rank < points.len()),
            points,
            ..Series::default()
        }
    });
    let name = format!("{} block {}, {matrix}", layer.0, layer.1);
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
    let caption = "Share of the output energy outside the first r directions, one line an expert; dots mark the kept ranks.";
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

/// How finely subspaces are tabled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Whole,
    ByLayer,
}

/// Variant, matrix and, by layer, whether it is the text tower's and its block.
type Group<'a> = (&'a str, &'a str, Option<(bool, u32)>);

fn variants(study: &Study<'_>, detail: Detail) -> Table {
    let mut groups: BTreeMap<Group<'_>, Vec<&SubspaceRow>> = BTreeMap::new();
    for one in &study.inputs.subspaces {
        for row in &one.experts {
            let layer =
                (detail == Detail::ByLayer).then(|| (row.tower != "vision", row.layer));
            groups.entry((&*one.variant, &*row.matrix, layer)).or_default().push(row);
        }
    }
    let head = ["Variant", "Matrix", "Layer"].map(Cell::words).into_iter();
    let head = head.chain(
        ["Mean rank", "Ranks", "Energy kept", "Error inside", "Error outside", "Shrunk"]
            .map(Cell::number),
    );
    let rows = groups.into_iter().map(|((variant, matrix, layer), rows)| {
        let layer = layer.map_or_else(
            || "all".to_owned(),
            |(text, layer)| format!("{} {layer}", if text { "text" } else { "vision" }),
        );
        let mean = |pick: fn(&SubspaceRow) -> f64| summary(rows.iter().map(|r| pick(r)));
        let ranks = || rows.iter().map(|r| r.rank);
        let full = rows.iter().map(|r| r.full_rank).max().unwrap_or(0);
        let (low, high) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
        let shrunk = rows.iter().filter(|r| r.shrinkage > 0.0).count();
        vec![
            Cell::words(variant),
            Cell::words(matrix),
            Cell::words(layer),
            Cell::number(words::spread(mean(|r| f64::from(r.rank)), 1.0, 1)),
            Cell::number(format!("{low}\u{2013}{high} of {full}")),
            Cell::number(words::mean_percent(mean(|r| r.retained))),
            Cell::number(words::mean_percent(mean(|r| r.error_inside))),
            Cell::number(words::mean_percent(mean(|r| r.error_outside))),
            Cell::number(shrunk.to_string()),
        ]
    });
    Table {
        title: "Subspaces".to_owned(),
        note: "Over experts and seeds, \u{b1} standard deviation. Energy kept and errors in percent: relative squared output error of the projected matrix on the expert's own cluster (inside) and on the other clusters (outside). Shrunk counts experts whose moments were drawn towards the whole because their cluster was small.".to_owned(),
        rows: rows.collect(),
        head: head.collect(),
        foreign: false,
    }
}

fn experts(subspaces: &Subspaces) -> Table {
    let head = ["Layer", "Matrix", "Expert"].map(Cell::words).into_iter();
    let head = head.chain(
        ["Tokens", "Rank", "Energy kept", "Error inside", "Error outside", "Shrinkage"]
            .map(Cell::number),
    );
    let mut rows: Vec<&SubspaceRow> = subspaces.experts.iter().collect();
    rows.sort_by_key(|r| (r.tower != "vision", r.layer, r.matrix.clone(), r.expert));
    let rows = rows.into_iter().map(|r| {
        vec![
            Cell::words(format!("{} {}", r.tower, r.layer)),
            Cell::words(&r.matrix),
            Cell::words(r.expert.to_string()),
            Cell::number(words::grouped(f64::from(r.tokens))),
            Cell::number(format!("{} of {}", r.rank, r.full_rank)),
            Cell::number(words::number(100.0 * r.retained, 2)),
            Cell::number(words::number(100.0 * r.error_inside, 2)),
            Cell::number(words::number(100.0 * r.error_outside, 2)),
            Cell::number(words::number(r.shrinkage, 2)),
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
        let row = |index, energy| SpectrumRow {
            tower: "text".into(),
            layer: 1,
            expert: 0,
            matrix: "fc1".into(),
            index,
            energy,
        };
        let rows = [row(0, 0.7), row(1, 0.25), row(2, 0.05)];
        let points = residuals(&rows.iter().collect::<Vec<_>>());
        let values: Vec<f64> = points.iter().map(|p| p.mean).collect();
        for (found, expected) in values.iter().zip([1.0, 0.3, 0.05, 1e-12]) {
            assert!((found - expected).abs() < 1e-12, "{values:?}");
        }
    }
}
